"""Which files make a document together, and its key and split.

Files of one stem in one folder are one document where they are one of each modality. Where there
are more of one modality, a caption file (`.txt`, else `.caption`, `.cap` or `.lab`) goes with the
image and the sound, if there is one of each at most, and every other file is a document of its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import MediaError
from bytelm.modalities.detect import START_BYTES, claimed_modality, detect_modality
from bytelm.pipelines.prepare.captions import CLASS_SUFFIX, SIDECAR_SUFFIXES, Captions
from bytelm.pipelines.prepare.documents import (
    CAPTION_ALONE,
    METADATA,
    DocumentPart,
    SkippedFile,
    SourceDocument,
    split_of,
)
from bytelm.pipelines.prepare.keys import KeyCandidate, unique_keys
from bytelm.pipelines.prepare.scan import Source, SourceFile
from bytelm.pipelines.prepare.splits import fill_empty_splits
from bytelm.pipelines.shards.format import SPLITS

_PART_ORDER = {modality: position for position, modality in enumerate((None, *MODALITIES))}
"""Position of each modality among a document's parts."""

_Group = Sequence[SourceFile]
"""The files of one document, in the order of their parts."""


class Grouping:
    """Groups files into documents."""

    def __init__(self, captions: Captions | None, shares: tuple[float, float, float]):
        self._captions = captions
        self._shares = shares
        self._used_captions: set[str] = set()
        self.skipped: list[SkippedFile] = []
        self.moved: Counter[str] = Counter()
        """Documents that small sets have in another split than their hash says, by that split."""

    def documents(
        self, sources: Sequence[Source], files_by_source: Sequence[Sequence[SourceFile]]
    ) -> list[SourceDocument]:
        """The documents of the files of each source, in the set's order. To be called once."""
        groups_by_source = [self._groups(files) for files in files_by_source]
        new_keys = _keys_of_clashes(sources, groups_by_source)
        ranked: list[tuple[int, bytes, SourceDocument]] = []  # by split and SHA-256 of the key
        is_by_hash = bytearray()
        for number, groups in enumerate(groups_by_source):
            for i, group in enumerate(groups):
                key = new_keys.get((number, i)) or group[0].key
                digest = hashlib.sha256(key.encode()).digest()
                split = group[0].split
                if split is None and len(group) > 1:
                    split = next((file.split for file in group if file.split), None)
                is_by_hash.append(split is None)
                split = split or split_of(digest, self._shares)
                document = SourceDocument(key, split, self._parts(group))
                ranked.append((SPLITS.index(split), digest, document))
        self._skip_unused_captions()
        self._fill_splits(ranked, is_by_hash)
        return [document for _, _, document in sorted(ranked)]

    def _groups(self, files: Sequence[SourceFile]) -> list[_Group]:
        """The files of each document of a source."""
        stems = [file.stem if file.offset is None else _stem_in_tar(file) for file in files]
        count = Counter(stems)
        groups: list[_Group] = []
        shared: dict[str, list[SourceFile]] = {}
        for file, stem in zip(files, stems, strict=True):
            if count[stem] == 1:
                groups.append((file,))
                continue
            modality = file.modality or self._detect(file)
            if modality:
                shared.setdefault(stem, []).append(file._replace(modality=modality))
        for group in shared.values():
            for document in _documents_of_stem(group):
                groups += self._with_one_caption(document)
        return groups

    def _with_one_caption(self, group: _Group) -> list[_Group]:
        """A group as documents that have one caption each.

        Where the captions file has a caption, the text of a caption file is metadata. Where only a
        dataset's table or JSON has one, the caption file counts; another text is a document of its
        own, but for the number of a class.
        """
        captioned = [file for file in group if file.modality != "text" and self._caption(file)]
        text = next((file for file in group if file.modality == "text"), None)
        if text is None or not captioned:
            return [group]
        is_sidecar = text.name.lower().endswith(SIDECAR_SUFFIXES)
        if is_sidecar and not any(self._given_name(file) for file in captioned):
            return [[file._replace(caption=None) for file in group]]
        media = [file for file in group if file is not text]
        if is_sidecar or text.name.lower().endswith(CLASS_SUFFIX):
            detail = f"{captioned[0].name} has another caption"
            self._skip(text.name, METADATA, detail, text.size)
            return [media]
        return [media, (text,)]

    def _detect(self, file: SourceFile) -> str | None:
        """The modality that a file's first bytes show. Where they show none, or other content than
        its name says, it is the one of its name, so that a broken pair is counted as one when the
        file is decoded; a file whose name says none is skipped."""
        try:
            with open(file.path, "rb") as opened:
                opened.seek(file.offset or 0)
                return detect_modality(file.name, opened.read(min(START_BYTES, file.size)))
        except OSError as error:
            reason, detail = "unreadable", error.strerror or "cannot be opened"
        except MediaError as error:
            reason, detail = error.reason, error.detail
            claimed = claimed_modality(file.name)
            if claimed:
                return claimed
        self._skip(file.name, reason, detail, file.size)
        if file.caption:
            size = len(file.caption.encode())
            self._skip(file.name, CAPTION_ALONE, "its file was skipped", size)
        return None

    def _parts(self, group: _Group) -> tuple[DocumentPart, ...]:
        """The parts of a document in their order, each caption before its file."""
        parts: list[DocumentPart] = []
        for file in group:
            caption = self._caption(file)
            if caption is not None:
                size = len(caption.encode())
                parts.append(DocumentPart("text", file.name, None, size, caption))
            parts.append(
                DocumentPart(file.modality, file.name, file.path, file.size, offset=file.offset)
            )
        return tuple(parts)

    def _caption(self, file: SourceFile) -> str | None:
        """A file's caption, from the captions file or else from its tar or its dataset's table."""
        name = self._given_name(file)
        if self._captions is None or name is None:
            return file.caption
        self._used_captions.add(name)
        return self._captions.texts[name]

    def _given_name(self, file: SourceFile) -> str | None:
        """The name under which the captions file has a caption of a file."""
        return self._captions.name_of(file.path, file.name) if self._captions else None

    def _skip(self, name: str, reason: str, detail: str, size: int = 0) -> None:
        self.skipped.append(SkippedFile(name, reason, detail, size))

    def _skip_unused_captions(self) -> None:
        if self._captions:
            for name, text in self._captions.texts.items():
                if name not in self._used_captions:
                    detail = "no file of this name became a document"
                    self._skip(name, CAPTION_ALONE, detail, len(text.encode()))

    def _fill_splits(
        self, ranked: list[tuple[int, bytes, SourceDocument]], is_by_hash: bytearray
    ) -> None:
        """Let no split of a small set be empty, as far as names do not decide."""
        counts = Counter(number for number, _, _ in ranked)
        is_small = len(ranked) < len(SPLITS) or len(counts) < len(SPLITS)
        by_hash = [i for i, flag in enumerate(is_by_hash) if flag] if is_small else []
        if not by_hash:
            return
        splits = [SPLITS[ranked[i][0]] for i in by_hash]
        others = Counter({SPLITS[number]: n for number, n in counts.items()})
        others.subtract(splits)
        filled = fill_empty_splits([ranked[i][1] for i in by_hash], splits, self._shares, others)
        for i, before, split in zip(by_hash, splits, filled, strict=True):
            if split != before:
                _, digest, document = ranked[i]
                ranked[i] = (SPLITS.index(split), digest, document._replace(split=split))
                self.moved[split] += 1


def _stem_in_tar(file: SourceFile) -> str:
    """The part of a name that the members of one document share: the tar and the stem."""
    return f"{file.path}\0{file.stem}"


def _documents_of_stem(files: Sequence[SourceFile]) -> Iterator[_Group]:
    """The documents of files of one stem, whose modalities are known."""
    count = Counter(file.modality for file in files)
    if max(count.values()) == 1:
        yield sorted(files, key=_part_position)
        return
    texts = [file for file in files if file.modality == "text"]
    media = [file for file in files if file.modality != "text"]
    caption = _caption_file(texts)
    is_captioned = caption and media and max(count[file.modality] for file in media) == 1
    if caption and is_captioned:
        yield sorted([caption, *media], key=_part_position)
    for file in files:
        if not is_captioned or (file.modality == "text" and file is not caption):
            yield (file,)


def _part_position(file: SourceFile) -> int:
    return _PART_ORDER[file.modality]


def _caption_file(texts: Sequence[SourceFile]) -> SourceFile | None:
    """The text that its suffix makes a caption of the other files of its stem."""
    for suffix in SIDECAR_SUFFIXES:
        named = [file for file in texts if file.name.lower().endswith(suffix)]
        if len(named) == 1:
            return named[0]
    return None


def _keys_of_clashes(
    sources: Sequence[Source], groups_by_source: Sequence[Sequence[_Group]]
) -> dict[tuple[int, int], str]:
    """New keys for documents that share theirs, by the numbers of source and group."""
    keys = [group[0].key for groups in groups_by_source for group in groups]
    seen = set(keys)
    if len(seen) == len(keys):
        return {}
    shared = {key for key, n in Counter(keys).items() if n > 1}
    clashes = [
        (number, i)
        for number, groups in enumerate(groups_by_source)
        for i, group in enumerate(groups)
        if group[0].key in shared
    ]
    candidates = []
    for number, i in clashes:
        main = groups_by_source[number][i][-1]
        place = sources[number].place
        candidates.append(KeyCandidate(main.name, place, main.offset, number))
    new_keys = unique_keys(candidates, seen - shared)
    return dict(zip(clashes, new_keys, strict=True))

"""Lossless compression under a model's probabilities: documents in memory, and files.

`coding` turns documents into the words of a range coder and back, `container` stores them, and
`documents` maps files to documents.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from bytelm.modalities.base import Sample
from bytelm.modalities.framing import MAX_ENDS
from bytelm.model.adaptation import Adaptation
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.coding import (
    ONE_RANK,
    PREFILL_THREADS,
    decode_documents,
    encode_documents,
)
from bytelm.pipelines.compression.container import (
    Container,
    ContainerEntry,
    name_problem,
    pack,
    unpack,
)
from bytelm.pipelines.compression.document_coder import Advance
from bytelm.pipelines.compression.documents import (
    Document,
    decode_sample,
    encode_file,
    file_content,
)
from bytelm.pipelines.compression.fingerprint import build_of, model_hash
from bytelm.pipelines.compression.inputs import STANDARD, find_inputs, read_input
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.runtime.progress import Progress, stderr_console
from bytelm.pipelines.runtime.ranks import Ranks
from bytelm.pipelines.storage.files import write_atomic

# --- in memory ---


def compress_documents(
    model: Megabyte,
    views: Mapping[str, str],
    documents: Sequence[tuple[str, bytes]],
    keep_files: bool = False,
    batch: int = 64,
    advance: Advance = lambda coded: None,
    adaptation: Adaptation | None = None,
) -> bytes:
    """Compress the contents of files into one container.

    Images and sounds are coded as decoded samples in the model's views. Texts, unknown kinds, and
    files that a view does not preserve exactly are coded byte for byte.

    Args:
        model: the model, in evaluation mode.
        views: the model's view of each modality.
        documents: (name, content) of each file; a name may have folders before it, as `a/b.txt`.
        keep_files: code images and sounds byte for byte too, in the view `file`.
        batch: most pieces that step together; decompression needs memory for as many.
        advance: called with the number of payload ids and ends that were just coded; an error that
            it raises ends the coding.
        adaptation: how a copy of the model learns from each document while it codes it, on the CPU;
            None: it does not.
    Returns:
        the container.
    Raises:
        ValueError: for a batch below 1, a name that no file can have, and two files that would be
            restored under one name.
    """
    _require_batch(batch)
    encoded = _encode_files(documents, views, keep_files, model.config.patch)
    _require_distinct_names(encoded, [name for name, _ in documents])
    return _pack(model, encoded, batch, advance, adaptation)


def decompress_documents(model: Megabyte, packed: bytes) -> list[tuple[str, bytes]]:
    """Restore the files of a container: (name, content) of each.

    Images come back as PNG and sounds as WAV or FLAC with the same samples, everything else byte
    for byte.

    Raises:
        ValueError: for data that is no container or of another format, another model than the one
            that compressed, and a sound that FLAC cannot hold.
        DamageError: for a container that is damaged, or that this build cannot decode.
    """
    where = "the container"
    container = _unpack(model, packed, where)
    restored = _restore(model, container, where, lambda coded: None, ONE_RANK)
    return [restored[number] for number in range(len(restored))]


# --- files ---


def compress(
    model: Megabyte,
    views: Mapping[str, str],
    paths: Sequence[Path],
    out: Path,
    keep_files: bool,
    batch: int,
    ranks: Ranks = ONE_RANK,
    adaptation: Adaptation | None = None,
) -> list[str]:
    """Compress files into one container file, as `compress_documents` does.

    Args:
        paths: files; folders, whose files are named relative to them; `-` for standard input.
        out: the container's path; `-` for standard output.
        ranks: code a share each; every one has to call it and reads all files. Rank 0 writes.
    Returns:
        a line of report for each file and for each one left out, and one for all of them.
    Raises:
        ValueError: as `compress_documents`, and for a file that cannot be read and an `out` that
            exists.
    """
    standard_input = _standard_input(ranks, paths)

    def read() -> tuple[list[Document], list[Path], list[Path]]:
        if ranks.rank == 0 and out != STANDARD and os.path.lexists(out):
            raise ValueError(f"{out} exists: choose another --out, or remove it")
        _require_batch(batch)
        inputs, left_out = find_inputs(paths)
        contents = (
            (name, standard_input if path == STANDARD else read_input(path))
            for name, path in inputs
        )
        documents = _encode_files(contents, views, keep_files, model.config.patch)
        sources = [path for _, path in inputs]
        _require_distinct_names(documents, sources)
        return documents, sources, left_out

    documents, sources, left_out = ranks.together(read)
    _require_same(ranks, [document.entry for document in documents], "files")
    with _progress(ranks, [document.entry for document in documents]) as progress:
        packed = _pack(model, documents, batch, progress.add, adaptation, ranks)
    if ranks.rank == 0:
        _write_container(out, packed)
    lines = [
        f"{path}: {document.segment.modality.name} in view {document.segment.view}, "
        f"{document.entry.size:,} bytes, comes back as {document.entry.name}"
        for path, document in zip(sources, documents, strict=True)
    ]
    lines += [f"{path}: left out, no regular file" for path in left_out]
    size = sum(document.entry.size for document in documents)
    per_byte = f", {8 * len(packed) / size:.3f} bits per byte" if size else ""
    return [*lines, f"{out}: {size:,} bytes in {len(packed):,}{per_byte}"]


def _write_container(out: Path, packed: bytes) -> None:
    if out == STANDARD:
        sys.stdout.buffer.write(packed)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, packed)


def decompress(
    model: Megabyte, path: Path, out: Path, ranks: Ranks = ONE_RANK
) -> tuple[list[Path], list[str]]:
    """Restore a container's files below a folder, as `decompress_documents` does.

    Nothing is written before everything is decoded and its checksums are verified, and each file
    is written whole.

    Args:
        path: the container; `-` for standard input.
        out: the folder; `-` writes the only file of a container to standard output.
        ranks: decode a share and write some of the files each; every one has to call it.
    Returns:
        the paths of the files, and a line for each file that has a name that cannot be restored.
    Raises:
        ValueError: as `decompress_documents`, for files that exist, and for several files to
            standard output.
        DamageError: as `decompress_documents`.
    """
    standard_input = _standard_input(ranks, [path])

    def read() -> Container:
        packed = standard_input if path == STANDARD else read_input(path)
        container = _unpack(model, packed, str(path))
        if ranks.rank == 0:
            _require_room(container, path, out)
        return container

    container = ranks.together(read)
    _require_same(ranks, container.entries, "containers")
    if out != STANDARD:
        ranks.require_shared(out)
    with _progress(ranks, container.entries) as progress:
        restored = _restore(model, container, str(path), progress.add, ranks)
    if out == STANDARD:
        if restored:
            sys.stdout.buffer.write(restored[0][1])
        return [], []
    out.mkdir(parents=True, exist_ok=True)
    own = {number: _write(out, number, *restored[number]) for number in restored}
    problems = {n: problem for part in ranks.gather(own) for n, problem in part.items()}
    names = [(entry.name, problems[n]) for n, entry in enumerate(container.entries)]
    lines = [f"{name!r} {problem}" for name, problem in names if problem]
    return [out / name for name, problem in names if not problem], lines


def _require_room(container: Container, path: Path, out: Path) -> None:
    """Raise ValueError where files of a container exist, or cannot go to standard output."""
    if out == STANDARD and len(container.entries) != 1:
        raise ValueError(
            f"{path} holds {len(container.entries)} files, and one alone can go to standard "
            "output: give a folder as --out"
        )
    for entry in container.entries:
        if name_problem(entry.name) is None and os.path.lexists(out / entry.name):
            raise ValueError(f"{out / entry.name} exists: choose another --out, or remove it")


def _write(out: Path, number: int, name: str, content: bytes) -> str | None:
    """Write a file below a folder; returns why it cannot have its name, or None."""
    problem = name_problem(name)
    if problem:
        return problem
    path = out / name
    # No longer than any name: the file's own may be as long as the system takes.
    part = path.with_name(f".{number}.bytelm-part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        return f"cannot be written: {error.strerror}"
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return None


def _standard_input(ranks: Ranks, paths: Sequence[Path]) -> bytes:
    """Standard input, which rank 0 reads for all, if it is one of the paths."""
    is_read = STANDARD in paths and ranks.rank == 0
    return ranks.gather(read_input(STANDARD) if is_read else b"")[0]


def _require_same(ranks: Ranks, entries: Sequence[ContainerEntry], what: str) -> None:
    """Raise ValueError where ranks have read different content."""

    def compare(first: Sequence[ContainerEntry]) -> None:
        if list(entries) != first:
            raise ValueError(
                f"it reads other {what} than rank 0: give {what} that the machines of all ranks "
                "share"
            )

    expected = ranks.gather(list(entries) if ranks.rank == 0 else [])[0]
    ranks.together(lambda: compare(expected))


def _progress(ranks: Ranks, entries: Sequence[ContainerEntry]) -> Progress:
    """Progress over the payloads and ends of some entries, which rank 0 shows by its own part."""
    total = sum(entry.size + MAX_ENDS for entry in entries)
    return Progress(stderr_console() if ranks.rank == 0 else None, -(-total // ranks.count))


# --- both ---


def _require_batch(batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch is {batch}, and must be at least 1")


def _encode_files(
    contents: Iterable[tuple[str, bytes]], views: Mapping[str, str], keep_files: bool, patch: int
) -> list[Document]:
    """The documents of files by (name, content)."""
    documents = []
    for name, data in contents:
        document = encode_file(name, data, views, keep_files, patch)
        problem = name_problem(document.entry.name)
        if problem:
            raise ValueError(
                f"{name} would come back as {document.entry.name}, which {problem}: rename it, or "
                "add --keep-files if its suffix is the matter"
            )
        documents.append(document)
    return documents


def _require_distinct_names(documents: Sequence[Document], sources: Sequence[object]) -> None:
    """ValueError that names two sources whose documents would be restored under one name."""
    source_by_name: dict[str, object] = {}
    for document, source in zip(documents, sources, strict=True):
        name = document.entry.name
        if name in source_by_name:
            raise ValueError(
                f"{source_by_name[name]} and {source} would both be restored as {name}: "
                "compress them apart"
            )
        source_by_name[name] = source


def _pack(
    model: Megabyte,
    documents: Sequence[Document],
    batch: int,
    advance: Advance,
    adaptation: Adaptation | None,
    ranks: Ranks = ONE_RANK,
) -> bytes:
    """Code documents and pack them into a container."""
    if adaptation is not None:
        model, batch = _on_cpu(model), 1
    streams = encode_documents(model, documents, batch, advance, ranks, adaptation)
    return pack(
        Container(
            model=model_hash(model),
            build=build_of(model),
            threads=PREFILL_THREADS,
            batch=batch,
            entries=tuple(document.entry for document in documents),
            words=np.concatenate(streams),
            first_streams=tuple(map(len, streams[:-1])),
            is_mixed=model.config.output_mixing,
            adaptation=adaptation,
        )
    )


def _on_cpu(model: Megabyte) -> Megabyte:
    """The model, or a copy of it, where gradients are the same in each run."""
    is_there = model.lm_head.weight.device.type == "cpu"
    return model if is_there else copy.deepcopy(model).cpu()


def _unpack(model: Megabyte, packed: bytes, where: str) -> Container:
    """The container in some bytes, which `where` names; ValueError for another model's."""
    container, expected = unpack(packed, where), model_hash(model)
    if container.model != expected:
        preset = container.adaptation.preset if container.adaptation else ""
        raise ValueError(
            f"{where} was compressed with the model {container.model.hex()}, and this one is "
            f"{expected.hex()}: give {preset or 'the model that compressed it'}"
        )
    if container.is_mixed != model.config.output_mixing:
        raise ValueError(
            f"{where} was compressed by an earlier way of mixing: use the bytelm that made it"
        )
    return container


def _restore(
    model: Megabyte, container: Container, where: str, advance: Advance, ranks: Ranks
) -> dict[int, tuple[str, bytes]]:
    """(name, content) of this rank's files of a container, which `where` names in errors, by their
    numbers in it; with one rank of every file.

    One rank has all files of a folder, so that files in each other's way are written in order.
    """
    if container.adaptation is not None:
        model = _on_cpu(model)
    try:
        documents = decode_documents(model, container, advance, ranks)
        tops = {entry.name.partition("/")[0]: None for entry in container.entries}
        own = set(ranks.share(tops))

        def verify() -> dict[int, Sample]:
            return {
                number: decode_sample(document, model.config.patch)
                for number, document in enumerate(documents)
                if document.entry.name.partition("/")[0] in own
            }

        samples = ranks.together(verify)
    except ValueError as error:
        cause = f"{where} does not decode to what was compressed: {error}"
        build = build_of(model)
        if container.build != build:
            cause += (
                f". It was made by {container.build} and this is {build}, which may "
                "round otherwise: decompress it there"
            )
        raise DamageError(cause) from error
    names = {number: container.entries[number].name for number in samples}
    return ranks.together(
        lambda: {n: (names[n], file_content(sample, names[n])) for n, sample in samples.items()}
    )

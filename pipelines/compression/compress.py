"""Lossless compression under a model's probabilities: documents in memory, and files.

`coding` turns documents into the words of a range coder and back, `container` stores them, and
`documents` maps files to documents.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from bytelm.modalities.framing import MAX_ENDS
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression.coding import Advance, decode_documents, encode_documents
from bytelm.pipelines.compression.container import (
    Container,
    ContainerEntry,
    name_problem,
    pack,
    unpack,
)
from bytelm.pipelines.compression.documents import (
    Document,
    decode_sample,
    encode_file,
    file_content,
)
from bytelm.pipelines.compression.fingerprint import build_of, model_hash
from bytelm.pipelines.compression.inputs import STANDARD, find_inputs, read_input
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.runtime.progress import Progress, on_stderr
from bytelm.pipelines.storage.files import write_atomic

# --- in memory ---


def compress_documents(
    model: Megabyte,
    views: Mapping[str, str],
    documents: Sequence[tuple[str, bytes]],
    keep_files: bool = False,
    batch: int = 64,
    advance: Advance = lambda coded: None,
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
    Returns:
        the container.
    Raises:
        ValueError: for a batch below 1, a name that no file can have, and two files that would be
            restored under one name.
    """
    _require_batch(batch)
    encoded = _encode_files(documents, views, keep_files, model.config.patch)
    _require_distinct_names(encoded, [name for name, _ in documents])
    return _pack(model, encoded, batch, advance)


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
    return _restore(model, container, where, lambda coded: None)


# --- files ---


def compress(
    model: Megabyte,
    views: Mapping[str, str],
    paths: Sequence[Path],
    out: Path,
    keep_files: bool,
    batch: int,
) -> list[str]:
    """Compress files into one container file, as `compress_documents` does.

    Args:
        paths: files; folders, whose files are named relative to them; `-` for standard input.
        out: the container's path; `-` for standard output.
    Returns:
        a line of report for each file and for each one left out, and one for all of them.
    Raises:
        ValueError: as `compress_documents`, and for a file that cannot be read and an `out` that
            exists.
    """
    if out != STANDARD and os.path.lexists(out):
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    _require_batch(batch)
    inputs, left_out = find_inputs(paths)
    contents = ((name, read_input(path)) for name, path in inputs)
    documents = _encode_files(contents, views, keep_files, model.config.patch)
    sources = [path for _, path in inputs]
    _require_distinct_names(documents, sources)
    with _progress([document.entry for document in documents]) as progress:
        packed = _pack(model, documents, batch, progress.add)
    if out == STANDARD:
        sys.stdout.buffer.write(packed)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, packed)
    lines = [
        f"{path}: {document.segment.modality.name} in view {document.segment.view}, "
        f"{document.entry.size:,} bytes, comes back as {document.entry.name}"
        for path, document in zip(sources, documents, strict=True)
    ]
    lines += [f"{path}: left out, no regular file" for path in left_out]
    size = sum(document.entry.size for document in documents)
    per_byte = f", {8 * len(packed) / size:.3f} bits per byte" if size else ""
    return [*lines, f"{out}: {size:,} bytes in {len(packed):,}{per_byte}"]


def decompress(model: Megabyte, path: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Restore a container's files below a folder, as `decompress_documents` does.

    Nothing is written before everything is decoded and its checksums are verified.

    Args:
        path: the container; `-` for standard input.
        out: the folder; `-` writes the only file of a container to standard output.
    Returns:
        the paths of the files, and a line for each file that has a name that cannot be restored.
    Raises:
        ValueError: as `decompress_documents`, for files that exist, and for several files to
            standard output.
        DamageError: as `decompress_documents`.
    """
    container = _unpack(model, read_input(path), str(path))
    if out == STANDARD and len(container.entries) != 1:
        raise ValueError(
            f"{path} holds {len(container.entries)} files, and one alone can go to standard "
            "output: give a folder as --out"
        )
    for entry in container.entries:
        if name_problem(entry.name) is None and os.path.lexists(out / entry.name):
            raise ValueError(f"{out / entry.name} exists: choose another --out, or remove it")
    with _progress(container.entries) as progress:
        restored = _restore(model, container, str(path), progress.add)
    if out == STANDARD:
        sys.stdout.buffer.write(restored[0][1])
        return [], []
    out.mkdir(parents=True, exist_ok=True)
    problems = [_write(out, name, content) for name, content in restored]
    lines = [f"{n!r} {p}" for (n, _), p in zip(restored, problems, strict=True) if p]
    return [out / n for (n, _), p in zip(restored, problems, strict=True) if not p], lines


def _write(out: Path, name: str, content: bytes) -> str | None:
    """Write a file below a folder; returns why it cannot have its name, or None."""
    problem = name_problem(name)
    if problem:
        return problem
    path = out / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        return f"cannot be written: {error.strerror}"
    return None


def _progress(entries: Sequence[ContainerEntry]) -> Progress:
    """Progress over the payloads and ends of some entries."""
    return on_stderr(sum(entry.size + MAX_ENDS for entry in entries))


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


def _pack(model: Megabyte, documents: Sequence[Document], batch: int, advance: Advance) -> bytes:
    """Code documents and pack them into a container."""
    words = encode_documents(model, documents, batch, advance)
    entries = tuple(document.entry for document in documents)
    threads = torch.get_num_threads()
    return pack(Container(model_hash(model), build_of(model), threads, batch, entries, words))


def _unpack(model: Megabyte, packed: bytes, where: str) -> Container:
    """The container in some bytes, which `where` names; ValueError for another model's."""
    container, expected = unpack(packed, where), model_hash(model)
    if container.model != expected:
        raise ValueError(
            f"{where} was compressed with the model {container.model.hex()}, and this one is "
            f"{expected.hex()}: give the model that compressed it"
        )
    return container


def _restore(
    model: Megabyte, container: Container, where: str, advance: Advance
) -> list[tuple[str, bytes]]:
    """(name, content) of every file of a container, which `where` names in errors."""
    try:
        with _threads(container.threads):
            documents = decode_documents(
                model, container.words, container.entries, container.batch, advance
            )
        samples = [decode_sample(document, model.config.patch) for document in documents]
    except ValueError as error:
        cause = f"{where} does not decode to what was compressed: {error}"
        build = build_of(model)
        if container.build != build:
            cause += (
                f". It was made by {container.build} and this is {build}, which may "
                "round otherwise: decompress it there"
            )
        raise DamageError(cause) from error
    names = [entry.name for entry in container.entries]
    return [(name, file_content(sample, name)) for name, sample in zip(names, samples, strict=True)]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with `count` threads of the processor: another number may round otherwise."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)

"""Compression: files under the model's probabilities and a range coder, and back.

A file is one document, framed as in training, and every id that evaluation scores is coded: SOM,
header, payload, EOM and EOD. Its pieces are rows that step through one `Decoder` together.
Decompression takes the very same steps in batches of the same shape, since probabilities that are
computed otherwise, as by a parallel forward, differ in their last bits and decode to nonsense.

    B rows of a batch    R rows that code an id in a step    n ids of a row    V ids
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from bytelm.modalities import BY_SOM, MODALITIES, framing
from bytelm.modalities.base import FILE_VIEW, Bytes, DecodeOptions, Header, Modality, Sample
from bytelm.modalities.detect import START_BYTES, modality_of
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.stored_names import stored_config, stored_parameter
from bytelm.pipelines.compression.container import (
    HASH_BYTES,
    Container,
    ContainerEntry,
    pack,
    unpack,
)
from bytelm.pipelines.compression.range_coding import Coder, Ids, RangeDecoder, RangeEncoder
from bytelm.pipelines.shards.reader import DamageError
from bytelm.pipelines.storage.files import write_atomic


@dataclass
class _Document:
    """A file as a document of one segment; decompression fills `payload` in."""

    segment: framing.Segment
    payload: Bytes

    def pieces(self, length: int, patch: int) -> list[_Piece]:
        """Its pieces, in rows of `length` ids."""
        parts = [(self.segment.modality, self.segment.size)]
        spans = framing.split_document(parts, patch, lambda: length)
        return [_Piece(self, span.start, span.start + span.length) for (span,) in spans]


@dataclass(frozen=True)
class _Piece:
    """A part of a document's body: its ids from `start` to `stop`, and no padding."""

    document: _Document
    start: int
    stop: int

    @property
    def payload(self) -> slice:
        """The payload bytes in it."""
        size = self.document.segment.size
        return slice(min(self.start, size), min(self.stop, size))

    @property
    def ends(self) -> tuple[int, ...]:
        """EOM and EOD, as far as they are in it."""
        size = self.document.segment.size
        return (framing.EOM, framing.EOD)[max(0, self.start - size) : max(0, self.stop - size)]

    @property
    def size(self) -> int:
        """Ids that are coded."""
        return self.payload.stop - self.payload.start + len(self.ends)

    def row(self, patch: int) -> _Row:
        """Its ids as the document has them."""
        segment, payload = self.document.segment, self.document.payload[self.payload]
        opening = framing.preamble(
            segment.modality, segment.header, segment.view, self.payload.start, patch
        )
        ids = np.concatenate([opening, payload, np.array(self.ends, np.uint16)])
        return _Row(segment.modality, ids.astype(np.uint16, copy=False), given=len(opening))

    def take(self, row: _Row) -> None:
        """Put a row's payload into the document; ValueError where it ends in another place."""
        count = self.payload.stop - self.payload.start
        payload, ends = np.split(row.ids[row.given :], [count])
        if (payload >= framing.PAD).any() or tuple(ends) != self.ends:
            raise ValueError("a payload ends in another place than it should")
        self.document.payload[self.payload] = payload


@dataclass(frozen=True)
class _Row:
    """Ids [n] from the start of a document or piece; coding puts those from `given` on in place."""

    modality: Modality
    ids: Ids
    given: int


# --- the two commands ---


def compress(
    model: Megabyte,
    views: Mapping[str, str],
    paths: Sequence[Path],
    out: Path,
    keep_files: bool,
    batch: int,
) -> list[str]:
    """Compress files into one container.

    Images and sounds are coded as decoded samples, in the model's views; texts, what is neither,
    and what a view does not keep exactly, byte for byte.

    Args:
        keep_files: code images and sounds byte for byte too, in the view `file`.
        batch: pieces that step together at most; decompression needs the memory for as many.
    Returns:
        lines that say what was done.
    Raises:
        ValueError: for a file that cannot be read, two files that would be restored under one
            name, and an `out` that exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out, or remove it")
    if batch < 1:
        raise ValueError(f"--batch is {batch}, and must be at least 1")
    patch = model.config.patch
    documents: list[_Document] = []
    sources: dict[str, Path] = {}  # by the restored name
    entries: list[ContainerEntry] = []
    for path in paths:
        document, sample = _read(path, views, keep_files, patch)
        name = _restored_name(path.name, document.segment)
        if name in sources:
            raise ValueError(
                f"{sources[name]} and {path} would both be restored as {name}: compress them apart"
            )
        sources[name] = path
        documents.append(document)
        entries.append(ContainerEntry(name, document.segment.size, zlib.crc32(sample.data)))

    writer = RangeEncoder()
    segments = [document.segment for document in documents]
    _code(model, writer, [_som_row(segment.modality) for segment in segments], batch)
    _code(model, writer, [_header_row(s.modality, s.header, s.view) for s in segments], batch)
    _code_payloads(model, writer, documents, batch)
    threads = torch.get_num_threads()
    packed = pack(
        Container(
            model_hash(model), build_of(model), threads, batch, tuple(entries), writer.words()
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, packed)
    size = sum(entry.size for entry in entries)
    per_byte = f", {8 * len(packed) / size:.3f} bits per byte" if size else ""
    lines = [
        f"{path}: {segment.modality.name} in view {segment.view}, {segment.size:,} bytes, "
        f"comes back as {name}"
        for (name, path), segment in zip(sources.items(), segments, strict=True)
    ]
    return [*lines, f"{out}: {size:,} bytes in {len(packed):,}{per_byte}"]


def decompress(model: Megabyte, path: Path, out: Path) -> list[Path]:
    """Restore a container's files in a folder; returns their paths.

    Images come back as PNG and sounds as WAV or FLAC with the same samples, the rest byte for
    byte. Nothing is written before all is decoded and its checksums are right.

    Raises:
        ValueError: for what is no container or of another format, another model than the one that
            compressed, and files that exist.
        DamageError: for a container that is damaged, or that this build cannot decode.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    container = unpack(packed, str(path))
    own = model_hash(model)
    if container.model != own:
        raise ValueError(
            f"{path} was compressed with the model {container.model.hex()}, and this one is "
            f"{own.hex()}: give the model that compressed it"
        )
    for entry in container.entries:
        if (out / entry.name).exists():
            raise ValueError(f"{out / entry.name} exists: choose another --out, or remove it")
    try:
        with _threads(container.threads):
            samples = _decode(model, container)
    except ValueError as error:
        cause = f"{path} does not decode to what was compressed: {error}"
        if container.build != build_of(model):
            cause += (
                f". It was made by {container.build} and this is {build_of(model)}, which may "
                "round otherwise: decompress it there"
            )
        raise DamageError(cause) from error
    out.mkdir(parents=True, exist_ok=True)
    return [
        _write(sample, out / entry.name)
        for entry, sample in zip(container.entries, samples, strict=True)
    ]


def _decode(model: Megabyte, container: Container) -> list[Sample]:
    """The samples of all files; ValueError where one is not what was compressed."""
    reader, patch = RangeDecoder(container.words), model.config.patch
    text = MODALITIES["text"]  # stands for what is yet to be read
    soms = [_som_row(text) for _ in container.entries]
    _code(model, reader, soms, container.batch)
    headers = []
    for row in soms:
        som = int(row.ids[0])
        if som not in BY_SOM:
            raise ValueError(f"a document begins with the id {som}")
        headers.append(_header_row(BY_SOM[som], Header(), BY_SOM[som].views[0]))
    _code(model, reader, headers, container.batch)

    documents = []
    for row, entry in zip(headers, container.entries, strict=True):
        header, view, _ = row.modality.unpack_header(_header_bytes(row))
        segment = framing.Segment(row.modality, header, view, entry.size)
        documents.append(_Document(segment, np.zeros(entry.size, np.uint8)))
    _code_payloads(model, reader, documents, container.batch)
    if not reader.is_at_end:
        raise ValueError("words are left when all is decoded")

    samples = []
    for document, entry in zip(documents, container.entries, strict=True):
        segment = document.segment
        sample = segment.modality.from_view(segment.header, document.payload, segment.view, patch)
        if zlib.crc32(sample.data) != entry.crc:
            raise ValueError(f"the checksum of {entry.name} is wrong")
        if _restored_name(entry.name, segment) != entry.name:
            raise ValueError(f"{entry.name} is no name of a restored {segment.modality.name}")
        samples.append(sample)
    return samples


# --- files ---


def _read(
    path: Path, views: Mapping[str, str], keep_files: bool, patch: int
) -> tuple[_Document, Sample]:
    """A file as a document, and the sample that it holds."""
    sample = None
    try:
        with open(path, "rb") as file:
            name = modality_of(file.read(START_BYTES)) or "text"
            modality, view = MODALITIES[name], FILE_VIEW if keep_files else views[name]
            if name != "text":
                sample = _exact_sample(modality, file, view, patch)
            if sample is None:  # a text, or what only a text keeps
                file.seek(0)
                modality, view = MODALITIES["text"], views["text"]
                sample = Sample("text", Header(), file.read(), is_file=view == FILE_VIEW)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    payload = np.array(modality.to_view(sample, view, patch))
    segment = framing.Segment(modality, sample.header, view, payload.size)
    return _Document(segment, payload), sample


def _exact_sample(modality: Modality, file: BinaryIO, view: str, patch: int) -> Sample | None:
    """The sample in an image or sound file; None where it has none that the view keeps exactly."""
    file.seek(0)
    try:
        sample = modality.decode(file, DecodeOptions(keep_files=view == FILE_VIEW))
        payload = modality.to_view(sample, view, patch)
        is_exact = modality.from_view(sample.header, payload, view, patch) == sample
    except ValueError:  # no such image or sound, or no such view of it
        return None
    return sample if is_exact else None


def _restored_name(name: str, segment: framing.Segment) -> str:
    """The name that a file gets back: its own, and for decoded samples that of their format."""
    known = segment.modality.suffixes
    if segment.modality.name == "text" or segment.view == FILE_VIEW:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{suffix.lower()}" if stem and suffix.lower() in known else f"{name}.{known[0]}"


def _write(sample: Sample, path: Path) -> Path:
    if sample.modality == "text" or sample.is_file:
        path.write_bytes(sample.data)
        return path
    return MODALITIES[sample.modality].write(sample, path.with_suffix(""), path.suffix[1:])


# --- rows of ids ---


def _som_row(modality: Modality) -> _Row:
    return _Row(modality, np.array([modality.som], np.uint16), given=0)


def _header_bytes(row: _Row) -> bytes:
    """The header of a row of SOM and header; ValueError where an id of it is no byte."""
    if (row.ids[1:] >= framing.PAD).any():
        raise ValueError("a header holds a special id")
    return row.ids[1:].astype(np.uint8).tobytes()


def _header_row(modality: Modality, header: Header, view: str) -> _Row:
    packed = modality.pack_header(header, view, 0)
    return _Row(modality, np.array([modality.som, *packed], np.uint16), given=1)


def _code(model: Megabyte, coder: Coder, rows: Sequence[_Row], batch: int) -> None:
    """Code rows, at most `batch` of them at once."""
    for first in range(0, len(rows), batch):
        _code_batch(model, coder, rows[first : first + batch], lambda ids: None)


def _code_payloads(
    model: Megabyte, coder: Coder, documents: Sequence[_Document], batch: int
) -> None:
    """Code the bodies of all documents, with their preambles given; `payload` becomes what the
    coder found. Pieces of about the same length step together.

    Raises ValueError where a payload does not end where it should.
    """
    patch = model.config.patch
    pieces = [p for d in documents for p in d.pieces(model.config.context, patch)]
    pieces.sort(key=lambda piece: -piece.size)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("bytes", total=sum(piece.size for piece in pieces))
        for first in range(0, len(pieces), batch):
            chosen = pieces[first : first + batch]
            rows = [piece.row(patch) for piece in chosen]
            _code_batch(model, coder, rows, lambda ids: progress.advance(task, ids))
            for piece, row in zip(chosen, rows, strict=True):
                piece.take(row)


@torch.no_grad()
def _code_batch(
    model: Megabyte, coder: Coder, rows: Sequence[_Row], advance: Callable[[int], object]
) -> None:
    """Step rows together, and code in each step the ids [R] that are not given."""
    device = model.lm_head.weight.device
    lengths = np.array([len(row.ids) for row in rows])
    given = np.array([row.given for row in rows])
    ids = np.full((len(rows), lengths.max()), framing.PAD, np.uint16)  # [B, n]
    for own, row in zip(ids, rows, strict=True):
        own[: len(row.ids)] = row.ids
    codes = torch.tensor([row.modality.code for row in rows], device=device)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)

    decoder = Decoder(model, len(rows), int(lengths.max()))
    logits = decoder.prefill([nothing] * len(rows), torch.zeros_like(codes))
    for place in range(int(lengths.max())):
        if place:
            before = torch.from_numpy(ids[:, place - 1].astype(np.int64)).to(device)
            logits = decoder.step(before, codes if place == 1 else None)
        coded = np.flatnonzero((given <= place) & (place < lengths))
        if coded.size:
            probabilities = logits.double().softmax(dim=1).cpu().numpy()[coded]  # [R, V]
            ids[coded, place] = coder.code(ids[coded, place], probabilities)
            advance(coded.size)
    for own, row in zip(ids, rows, strict=True):
        row.ids[:] = own[: len(row.ids)]


# --- the machine ---


def model_hash(model: Megabyte) -> bytes:
    """The first HASH_BYTES of the SHA-256 of a model's config and weights."""
    digest = hashlib.sha256(json.dumps(stored_config(model.config), sort_keys=True).encode())
    tensors = {stored_parameter(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()[:HASH_BYTES]


def build_of(model: Megabyte) -> str:
    """Versions and machine that decide the last bits of a model's probabilities."""
    device = model.lm_head.weight.device
    versions = " ".join(f"{n} {importlib.metadata.version(n)}" for n in ("bytelm", "constriction"))
    if device.type == "cuda":
        return f"{versions} torch {torch.__version__} on {torch.cuda.get_device_name(device)}"
    machine = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{versions} torch {torch.__version__} on {machine}"


def _processor() -> str:
    """The processor's name where the system tells it, or its kind."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads of the processor: another number may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Measures `PrepareCosts` with the project's own code, on generated files and the demo's.

Processor time is measured, so that waiting for this machine's disk does not count: the disks of a
cluster are assumptions.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import DecodeOptions, Header, Sample
from bytelm.pipelines.prepare.container_reader import ContainerReader
from bytelm.pipelines.prepare.merge import merge_parts
from bytelm.pipelines.prepare.parts import prepare_part
from bytelm.pipelines.prepare.piece_files import read_summary
from bytelm.pipelines.prepare.prepare import PrepareInput, PrepareOptions, list_input
from bytelm.pipelines.prepare.prepare_state import BLOCK_SHARDS, PrepareState
from bytelm.pipelines.prepare.scan import local_source
from bytelm.pipelines.prepare.set_folder import PARTS_FOLDER, open_parts_folder, save_state
from bytelm.pipelines.prepare.staged_input import load_staged_input, stage_input
from bytelm.pipelines.shards.format import Shard
from bytelm.pipelines.shards.writer import ShardWriter
from bytelm.tools.benchmarks.measure import processor_seconds_of
from bytelm.tools.repository import DEMO_FILES
from bytelm.tools.simulation.costs import PrepareCosts


class PrepareAmounts(NamedTuple):
    """How much is measured."""

    files: int = 20_000
    """Small files that are listed."""
    row_groups: int = 2_000
    document_bytes: int = 100_000
    """Bytes of a document that is written."""
    documents: int = 3_000
    """Documents that are written, merged and hashed."""
    saved_blocks: int = 1000
    """Blocks of the progress that is saved."""
    decode_bytes: float = 3e7
    """Stored bytes of each kind of file that are decoded."""


class _Decoding(NamedTuple):
    """The cost of a kind of files."""

    seconds: float
    """Of one stored byte."""
    source_share: float
    """Bytes of the files for each stored byte."""


def measure_prepare(amounts: PrepareAmounts) -> PrepareCosts:
    """Measure all costs of making a set, in a temporary folder."""
    text = np.random.default_rng(0).integers(32, 126, amounts.document_bytes, np.uint8).tobytes()
    photos = [path.read_bytes() for path in sorted(DEMO_FILES.glob("photo/*.jpg"))]
    sounds = [path.read_bytes() for path in sorted(DEMO_FILES.glob("audio/train/*.flac"))]
    jpeg = _measure_decoding("image", photos, amounts.decode_bytes)
    png = _measure_decoding("image", [_as_png(photo) for photo in photos], amounts.decode_bytes)
    flac = _measure_decoding("audio", sounds, amounts.decode_bytes)
    plain = _measure_decoding("text", [text], amounts.decode_bytes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listing_seconds, listing_memory, staging_seconds = _measure_listing(folder, amounts.files)
        merge_speed, item_seconds = _measure_merge(folder, text, amounts.documents)
        shard_seconds, block_seconds = _measure_saving(folder, amounts.saved_blocks)
        return PrepareCosts(
            list_file_seconds=listing_seconds,
            list_file_memory=listing_memory,
            list_row_group_seconds=_measure_row_groups(folder, amounts.row_groups),
            stage_file_seconds=staging_seconds,
            text_seconds_per_byte=plain.seconds,
            jpeg_seconds_per_byte=jpeg.seconds,
            png_seconds_per_byte=png.seconds,
            flac_seconds_per_byte=flac.seconds,
            jpeg_source_share=jpeg.source_share,
            png_source_share=png.source_share,
            flac_source_share=flac.source_share,
            sha256_bytes_per_second=_measure_sha256(text, amounts.documents),
            write_bytes_per_second=_measure_writing(folder, text, amounts.documents),
            merge_bytes_per_second=merge_speed,
            save_shard_seconds=shard_seconds,
            save_block_seconds=block_seconds,
            item_seconds=item_seconds,
        )


def _as_png(photo: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).save(file, "PNG")
    return file.getvalue()


def _measure_decoding(modality: str, files: Sequence[bytes], least: float) -> _Decoding:
    """Decode files again and again until they gave `least` stored bytes."""
    source = stored = 0

    def decode() -> None:
        nonlocal source, stored
        while stored < least:
            for data in files:
                sample = MODALITIES[modality].decode_file(io.BytesIO(data), DecodeOptions())
                source, stored = source + len(data), stored + len(sample.data)

    seconds = processor_seconds_of(decode)
    return _Decoding(seconds / stored, source / stored)


def _write_texts(folder: Path, count: int, data: bytes) -> None:
    """Write files with this content, a thousand to a folder."""
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"text-{number:07d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _list(source: Path, out: Path) -> PrepareInput:
    return list_input([local_source(source)], out, PrepareOptions(), ContainerReader())


def _measure_listing(folder: Path, files: int) -> tuple[float, float, float]:
    """Seconds and bytes of memory of a listed file, and seconds to store or load it for parts."""
    source, out = folder / "many", folder / "listed"
    _write_texts(source, files, b"text")
    listing = processor_seconds_of(lambda: _list(source, out))
    tracemalloc.start()
    listed = _list(source, out)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    open_parts_folder(out)
    options = PrepareOptions()
    store = processor_seconds_of(lambda: stage_input(out, [source], options, 1, lambda: listed))
    stored = load_staged_input(out).listed.found.documents
    staging = (store + processor_seconds_of(lambda: list(stored))) / 2
    return listing / files, memory / files, staging / files


def _measure_row_groups(folder: Path, groups: int) -> float:
    """Seconds to list one row group."""
    path = folder / "table" / "rows.parquet"
    path.parent.mkdir()
    table = pa.table({"text": [f"row {number}" for number in range(groups)]})
    pyarrow.parquet.write_table(table, path, row_group_size=1)
    return processor_seconds_of(lambda: _list(path.parent, folder / "listed table")) / groups


def _measure_merge(folder: Path, text: bytes, documents: int) -> tuple[float, float]:
    """Bytes per second of `merge` after one part, and seconds to read an item's summary."""
    source, out = folder / "texts", folder / "merged"
    _write_texts(source, documents, text)
    prepare_part([source], out, PrepareOptions(), 0, 1)
    items = range(len(load_staged_input(out).items))
    summaries = processor_seconds_of(lambda: [read_summary(out / PARTS_FOLDER, n) for n in items])
    speed = documents * len(text) / processor_seconds_of(lambda: merge_parts(out))
    return speed, summaries / len(items)


def _measure_writing(folder: Path, text: bytes, documents: int) -> float:
    """Bytes per second of a shard that is written document by document."""
    sample = Sample(modality="text", header=Header(), data=text)

    def write() -> None:
        writer = ShardWriter(folder, "train", 0)
        for number in range(documents):
            writer.add(f"text-{number}", ["text.txt"], [sample])
        writer.close()

    return documents * len(text) / processor_seconds_of(write)


def _measure_sha256(text: bytes, documents: int) -> float:
    """Bytes per second."""
    digest = hashlib.sha256()

    def update() -> None:
        for _ in range(documents):
            digest.update(text)

    return documents * len(text) / processor_seconds_of(update)


def _measure_saving(folder: Path, blocks: int) -> tuple[float, float]:
    """Seconds that a shard in no block, and a block, cost each time that the progress is saved."""
    hashes = ["0" * 64] * 2
    entry = Shard("train-000000.tar", "train", 10**8, hashes[0], 10**5, hashes[1], 2500, {})
    few, many = BLOCK_SHARDS - 1, blocks * BLOCK_SHARDS
    state = PrepareState("0" * 64, shards=[entry] * few)
    shards = _seconds_of_save(folder, state)
    state.shards += [entry] * (many - few)
    save_state(folder, state)  # writes the blocks
    return shards / few, _seconds_of_save(folder, state) / blocks


def _seconds_of_save(folder: Path, state: PrepareState) -> float:
    """Seconds of a save, the mean of several."""
    saves = 10

    def save() -> None:
        for _ in range(saves):
            save_state(folder, state)

    return processor_seconds_of(save) / saves

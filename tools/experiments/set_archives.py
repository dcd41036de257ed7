"""Whole splits of a set in one archive each, by the strongest codecs of any files.

    zpaq -m5    an archive of the files; Debian's zpaq
    xz -9e      the files behind one another
    PPMd        the same, by PPMd of order 6 with 256 MB

Texts are files as they are, images PPM, sounds WAV: zpaq has models for both.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bytelm.modalities.base import Sample
from bytelm.pipelines.evaluation.codec_settings import BYTE_CODECS, installed, netpbm, wav
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.tools.experiments.result_cells import CommandError

SOLID_CODECS = ("xz", "PPMd")
ZPAQ = "zpaq -m5"
ZPAQ_REMEDY = "apt install zpaq"


def missing_archivers() -> dict[str, str]:
    """The command that brings each archiver which this machine lacks, beside the codecs."""
    return {} if shutil.which("zpaq") else {ZPAQ: ZPAQ_REMEDY}


def archive_sizes(shard_set: ShardSet, split: str) -> dict[str, int]:
    """Bytes of the archive that each installed codec makes of a split."""
    names, payloads = [], []
    for number, sample in enumerate(_samples(shard_set, split)):
        suffix, content = _file_of(sample)
        names.append(f"{number:06d}{suffix}")
        payloads.append(content)
    solid = b"".join(payloads)
    sizes = {
        f"{codec.name}, one archive": codec.library(solid)
        for codec in installed(BYTE_CODECS)
        if codec.name in SOLID_CODECS
    }
    if shutil.which("zpaq"):
        sizes[f"{ZPAQ}, one archive"] = _zpaq_size(dict(zip(names, payloads, strict=True)))
    return sizes


def _samples(shard_set: ShardSet, split: str) -> Iterator[Sample]:
    for shard in shard_set.split(split):
        for row in shard_set.index(shard):
            yield shard_set.sample(shard, row)


def _file_of(sample: Sample) -> tuple[str, bytes]:
    """Suffix and content of a sample's file."""
    if sample.is_file or sample.modality == "text":
        return ".txt", bytes(sample.data)
    return (".ppm", netpbm(sample)) if sample.modality == "image" else (".wav", wav(sample))


def _zpaq_size(files: dict[str, bytes]) -> int:
    """Bytes of an archive of files by zpaq -m5. Raises `CommandError` where it fails."""
    with tempfile.TemporaryDirectory(prefix="bytelm-zpaq-") as folder:
        inside = Path(folder) / "files"
        inside.mkdir()
        for name, content in files.items():
            (inside / name).write_bytes(content)
        command = ["zpaq", "a", "../archive.zpaq", ".", "-m5"]
        null = subprocess.DEVNULL
        done = subprocess.run(
            command, cwd=inside, check=False, stdin=null, stdout=null, stderr=null
        )
        if done.returncode:
            raise CommandError(f"{ZPAQ} ended with status {done.returncode}")
        return (Path(folder) / "archive.zpaq").stat().st_size

"""Small files for the tests of prepare, and views of a set made of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile
import webdataset

from bytelm.pipelines.prepare.prepare import Prepared
from bytelm.pipelines.shards.reader import ShardSet


def png(path: Path, width: int = 6, height: int = 5, seed: int = 0) -> None:
    """Write an image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def sound(
    path: Path,
    frames: int = 400,
    seed: int = 0,
    kind: str = "FLAC",
    subtype: str | None = "PCM_16",
) -> None:
    """Write a sound of random samples."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, (frames, 1), np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16_000, format=kind, subtype=subtype)


def txt(path: Path, data: str | bytes = "a text") -> None:
    """Write a text, or any bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def small_source(folder: Path) -> Path:
    """Write forty small documents of all modalities, ten pairs among them; returns the folder."""
    for i in range(10):
        txt(folder / "text" / f"{i}.txt", f"text {i} " * (i + 1))
        png(folder / f"image {i}.png", 8 + i, 9, seed=i)
        sound(folder / f"sound{i}.flac", 300 + i, seed=i)
        png(folder / "pairs" / f"{i}.png", seed=100 + i)
        txt(folder / "pairs" / f"{i}.txt", f"picture {i}")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def documents(folder: Path) -> dict[str, list[dict[str, object]]]:
    """The segments of each document by key, as its JSON describes them, with `data` and `split`."""
    by_key: dict[str, list[dict[str, object]]] = {}
    for shard in ShardSet(folder).shards:
        url = str(folder / shard.name)
        for sample in webdataset.WebDataset(url, shardshuffle=False):
            description = json.loads(sample["json"])
            for segment in description["segments"]:
                segment["data"] = sample[segment["member"].partition(".")[2]]
                segment["split"] = shard.split
            assert description["key"] == sample["__key__"] not in by_key
            by_key[description["key"]] = description["segments"]
    return by_key


def skipped(prepared: Prepared) -> dict[str, str]:
    """The reason of each skipped file by its name. Checks the report's order and counts, too."""
    entries = prepared.report["skipped_files"]
    assert entries == sorted(entries, key=lambda e: (e["name"], e["reason"], e["detail"]))
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["reason"]] = counts.get(entry["reason"], 0) + entry["count"]
    assert prepared.report["skipped"] == counts
    return {e["name"]: e["reason"] for e in entries}

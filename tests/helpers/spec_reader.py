"""A reader of shard sets and rows, written from the pages docs/*-format.md alone.

It shares no code with bytelm: what it reads right is what the pages say.

    P ids in a patch      n bytes of a payload      H W c lines, pixels in a line, channels
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODALITIES = ("text", "image", "audio")
RECORD = np.dtype(
    [
        *[("document", "<u4"), ("modality", "u1"), ("is_file", "u1"), ("channels", "u1")],
        *[("width", "<u2"), ("height", "<u2"), ("rate", "<u4"), ("first_crc", "<u4")],
        *[("offset", "<u8"), ("size", "<u8")],
    ]
)
PART_RECORD = np.dtype(
    [
        *[("split", "u1"), ("number", "<u4"), ("size", "<u8"), ("sha256", "u1", 32)],
        *[("index_size", "<u8"), ("index_sha256", "u1", 32)],
        *[("documents", "<u8"), ("bytes", "<u8", 3)],
    ]
)
CHUNK = 16_384
SEAL = len(',\n "sha256": "') + 64 + len('"\n}\n')
PAD, EOM, EOD = 256, 257, 258
SOM = {259: "text", 260: "image", 261: "audio"}
HEADER_BYTES = {"text": 5, "image": 10, "audio": 10}
VIEWS = {
    "text": ("utf8",),
    "image": ("raster", "planar", "patch"),
    "audio": ("s16le", "s16be", "u8", "mulaw"),
}


@dataclass(frozen=True)
class StoredSegment:
    """A segment as the shard holds it."""

    modality: str
    fields: dict[str, int]
    """Width, height, channels and rate, where they are not 0."""
    data: bytes
    is_file: bool
    source: str


@dataclass(frozen=True)
class RowSegment:
    """The part of a segment that stands in a row."""

    modality: str
    fields: dict[str, int]
    view: str
    offset: int
    payload: bytes
    ends: tuple[int, ...]
    scored: np.ndarray
    """Positions in the row of the ids that are scored."""


# --- shards ---


def read_set(folder: Path) -> dict[str, list[StoredSegment]]:
    """The segments of every document, by key; AssertionError where the set is not as specified."""
    manifest = read_manifest(folder)
    documents: dict[str, list[StoredSegment]] = {}
    for entry in manifest["shards"]:
        documents |= read_shard(folder, entry)
    return documents


def read_manifest(folder: Path) -> dict[str, Any]:
    raw = (folder / "manifest.json").read_bytes()
    text, seal = raw[:-SEAL], raw[-SEAL:]
    assert seal == b',\n "sha256": "%b"\n}\n' % hashlib.sha256(text).hexdigest().encode()
    manifest = json.loads(raw.decode("utf-8", "surrogateescape"))
    assert list(manifest) == ["format", "root", "splits", "parts", "report", "sha256"]
    assert manifest["format"] == 3
    manifest["shards"] = [entry for part in manifest["parts"] for entry in read_part(folder, part)]
    lines = [
        f"{s['name']} {s['split']} {s['sha256']} {s['index_sha256']}\n" for s in manifest["shards"]
    ]
    assert manifest["root"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    for split, counts in manifest["splits"].items():
        shards = [s for s in manifest["shards"] if s["split"] == split]
        assert counts["shards"] == len(shards)
        assert counts["documents"] == sum(s["documents"] for s in shards)
        for modality, size in counts["bytes"].items():
            assert size == sum(s["bytes"][modality] for s in shards)
    return manifest


def read_part(folder: Path, part: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the shards of a part."""
    data = (folder / part["name"]).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert (len(data), sha256) == (part["size"], part["sha256"])
    assert part["name"] == f"manifest-{sha256[:16]}.npy"
    records = np.load(io.BytesIO(data))
    assert records.dtype == PART_RECORD
    assert PART_RECORD.itemsize == 117
    assert len(records) == part["shards"] <= 4096
    entries = []
    for record in records:
        split = ("train", "val", "test")[record["split"]]
        entries.append(
            {
                "name": f"{split}-{record['number']:06d}.tar",
                "split": split,
                "size": int(record["size"]),
                "sha256": bytes(record["sha256"]).hex(),
                "index_size": int(record["index_size"]),
                "index_sha256": bytes(record["index_sha256"]).hex(),
                "documents": int(record["documents"]),
                "bytes": dict(zip(MODALITIES, record["bytes"].tolist(), strict=True)),
            }
        )
    return entries


def read_counts(folder: Path, split: str, options: dict[str, Any]) -> np.ndarray:
    """[2, shards] rows and cost of the shards of a split, with whole documents in stored order."""
    manifest = read_manifest(folder)
    held = manifest["splits"][split]["bytes"]
    line = json.dumps(
        {
            "version": 2,
            "root": manifest["root"],
            "split": split,
            "views": {m: v for m, v in sorted(options["views"].items()) if held[m]},
            "context": options["context"],
            "patch": options["patch"],
            "packing": "whole",
            "pair_order": "stored",
            "seed": options["seed"],
        }
    ).encode()
    name = f"counts-{manifest['root'][:16]}-{hashlib.sha256(line).hexdigest()[:16]}.npy"
    data = (folder / name).read_bytes()
    assert data[-32:] == hashlib.sha256(line + data[:-32]).digest()
    counts: np.ndarray = np.load(io.BytesIO(data[:-32]))
    return counts


def read_shard(folder: Path, entry: dict[str, Any]) -> dict[str, list[StoredSegment]]:
    """The documents of one shard, by the index; the tar's own JSON is checked against it."""
    tar = (folder / entry["name"]).read_bytes()
    index_file = (folder / entry["name"]).with_suffix(".npy").read_bytes()
    assert (len(tar), hashlib.sha256(tar).hexdigest()) == (entry["size"], entry["sha256"])
    assert len(index_file) == entry["index_size"]
    assert hashlib.sha256(index_file).hexdigest() == entry["index_sha256"]
    assert index_file[:8] == b"\x93NUMPY\x01\x00"
    stream = io.BytesIO(index_file)
    records, checksums = np.load(stream), np.load(stream)
    assert records.dtype == RECORD
    assert RECORD.itemsize == 35
    assert checksums.dtype == "<u4"
    assert not stream.read()

    check_tar(tar)
    documents: dict[str, list[StoredSegment]] = {}
    expected_crc = 0
    for record in records:
        offset, size = int(record["offset"]), int(record["size"])
        data = tar[offset : offset + size]
        chunks = [data[i : i + CHUNK] for i in range(0, size, CHUNK)]
        assert record["first_crc"] == expected_crc
        expected_crc += len(chunks)
        assert [zlib.crc32(c) for c in chunks] == checksums[expected_crc - len(chunks) :][
            : len(chunks)
        ].tolist()
        name = tar[offset - 512 : offset - 412].rstrip(b"\0").decode("ascii")
        key = name.split(".")[0]
        fields = {f: int(record[f]) for f in ("width", "height", "channels", "rate") if record[f]}
        modality = MODALITIES[record["modality"]]
        segments = documents.setdefault(key, [])
        described = describe(tar, key)["segments"][len(segments)]
        assert described["member"] == name
        assert described["modality"] == modality
        assert {k: described[k] for k in described.keys() & RECORD.names} == fields | (
            {1: {"is_file": True}, 2: {"is_deep": True}}.get(int(record["is_file"]), {})
        ) | {"modality": modality}
        segments.append(
            StoredSegment(modality, fields, data, bool(record["is_file"] == 1), described["source"])
        )
        assert record["document"] == list(documents).index(key)
    assert expected_crc == len(checksums)
    assert len(documents) == entry["documents"]
    for modality in MODALITIES:
        stored = [s for d in documents.values() for s in d if s.modality == modality]
        assert sum(len(s.data) for s in stored) == entry["bytes"][modality]
    return documents


def describe(tar: bytes, key: str) -> dict[str, Any]:
    """A document's KEY.json."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        file = archive.extractfile(f"{key}.json")
        assert file is not None
        described = json.load(file)
    assert described["key"] == key
    return described


def check_tar(tar: bytes) -> None:
    assert len(tar) % 10_240 == 0
    assert not any(tar[-1024:])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            assert member.isreg()
            assert tar[member.offset + 257 : member.offset + 265] == b"ustar\x0000"
            assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)
            assert (member.uname, member.gname) == ("", "")


# --- views ---


def payload_of(segment: StoredSegment, view: str, patch: int) -> bytes:
    """The payload of a stored segment under a view."""
    assert segment.is_file == (view == "file")
    if view in ("file", "utf8", "raster", "s16le"):
        return segment.data
    if segment.modality == "audio":
        return audio_payload(np.frombuffer(segment.data, "<i2").astype(np.int64), view)
    fields = segment.fields
    pixels = np.frombuffer(segment.data, np.uint8).reshape(
        fields["height"], fields["width"], fields["channels"]
    )
    if view == "planar":
        return b"".join(pixels[:, :, c].tobytes() for c in range(fields["channels"]))
    return tiles(pixels, patch)


def audio_payload(samples: np.ndarray, view: str) -> bytes:
    if view == "s16be":
        return samples.astype(">i2").tobytes()
    if view == "u8":
        return ((samples >> 8) + 128).astype(np.uint8).tobytes()
    x = samples / 32768
    f = np.sign(x) * np.log(1 + 255 * np.abs(x)) / math.log(256)
    return np.floor((f + 1) / 2 * 255 + 0.5).astype(np.uint8).tobytes()


def tiles(pixels: np.ndarray, patch: int) -> bytes:
    """The view `patch` of pixels [H W c]."""
    height, width, channels = pixels.shape
    area = patch // channels
    a = max(a for a in range(1, area + 1) if area % a == 0 and a <= area // a)
    b = area // a
    lines, columns = height // a, width // b
    parts = [
        pixels[y * a : (y + 1) * a, x * b : (x + 1) * b].tobytes()
        for y in range(lines)
        for x in range(columns)
    ]
    return b"".join(
        [*parts, pixels[: lines * a, columns * b :].tobytes(), pixels[lines * a :].tobytes()]
    )


# --- rows ---


def read_row(ids: list[int], patch: int) -> list[RowSegment]:
    """The segments in a row of ids, in order."""
    segments = []
    position = 0
    while position < len(ids):
        if ids[position] == PAD:
            assert ids[position : position + patch] == [PAD] * patch
            position += patch
            continue
        modality = SOM[ids[position]]
        header_end = position + 1 + HEADER_BYTES[modality]
        fields, view, offset = read_header(modality, bytes(ids[position + 1 : header_end]))
        begin = next_patch(header_end, patch)
        assert set(ids[header_end:begin]) <= {PAD}
        stop = begin
        while stop < len(ids) and ids[stop] < 256:
            stop += 1
        ends = tuple(i for i in ids[stop : stop + 2] if i in (EOM, EOD))
        opening = range(position, header_end) if offset == 0 else range(0)
        scored = np.array([*opening, *range(begin, stop + len(ends))])
        payload = bytes(ids[begin:stop])
        segments.append(RowSegment(modality, fields, view, offset, payload, ends, scored))
        position = next_patch(stop + len(ends), patch)
        assert set(ids[stop + len(ends) : position]) <= {PAD}
    return segments


def read_header(modality: str, raw: bytes) -> tuple[dict[str, int], str, int]:
    """Fields, view and payload offset."""
    fields: dict[str, int] = {}
    if modality == "image":
        fields = {"width": big(raw[0:2]), "height": big(raw[2:4]), "channels": raw[4]}
    elif modality == "audio":
        fields = {"rate": big(raw[0:4]), "channels": raw[4]}
    view = "file" if raw[-5] == 255 else VIEWS[modality][raw[-5]]
    return {name: value for name, value in fields.items() if value}, view, big(raw[-4:])


def big(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def next_patch(position: int, patch: int) -> int:
    return -(-position // patch) * patch

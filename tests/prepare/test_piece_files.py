"""Piece files: what is synced, and what damage is found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.source_files import txt

from bytelm.modalities.base import DecodeOptions
from bytelm.pipelines.prepare.decode_pool import DecodePool
from bytelm.pipelines.prepare.documents import DocumentPart, SourceDocument
from bytelm.pipelines.prepare.piece_files import (
    decode_items,
    is_whole,
    members_path,
    read_pieces,
    summary_path,
)
from bytelm.pipelines.prepare.work_items import work_items

SHARES = (1.0, 0.0, 0.0)


def write_item(folder: Path, is_durable: bool) -> None:
    """The piece file of item 0, of two texts."""
    documents = []
    for name in ("a", "b"):
        path = folder / f"{name}.txt"
        txt(path, name * 1000)
        part = DocumentPart("text", path.name, str(path), path.stat().st_size)
        documents.append(SourceDocument(name, "train", (part,)))
    with DecodePool(DecodeOptions(), workers=1) as pool:
        items = work_items(documents, [])
        list(decode_items(items, documents, [], SHARES, pool, folder, is_durable))


@pytest.mark.parametrize("is_durable", [True, False])
def test_pieces_that_go_soon_are_not_synced(
    is_durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    write_item(tmp_path, is_durable)
    assert bool(synced) == is_durable
    assert is_whole(tmp_path, 0)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("path_of", [members_path, summary_path])
@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
def test_damage_by_a_machine_that_went_down_is_found(
    path_of: Callable[[Path, int], Path], damage: str, tmp_path: Path
) -> None:
    """Files that end early, and bytes that are zeros."""
    write_item(tmp_path, is_durable=False)
    path = path_of(tmp_path, 0)
    data = path.read_bytes()
    half = data[: len(data) // 2]
    path.write_bytes({"empty": b"", "half": half, "zeros": half + bytes(len(half))}[damage])
    assert not is_whole(tmp_path, 0)


def test_pieces_that_are_damaged_are_not_read(tmp_path: Path) -> None:
    write_item(tmp_path, is_durable=False)
    members_path(tmp_path, 0).write_bytes(b"")
    with pytest.raises(OSError, match=r"members is damaged.*remove it and item-000000\.npz there"):
        list(read_pieces(tmp_path, 0, [(0, 0, 2)]))

"""How much damaged tars have lost.

A tar that was cut off does not say how long it was. Where whole tars lie in the same folder, their
median size is the best guess, since the shards of a dataset are of about equal size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from bytelm.pipelines.storage.tar_reader import TarFlaw


class ReadTar(NamedTuple):
    """A tar among the sources."""

    name: str
    """Relative to its source."""
    folder: str
    size: int
    """Bytes."""
    members: int
    """Members that could be read."""
    parts: int
    """Tars that were joined to this one, and itself."""
    damage: TarFlaw | None


class TarLoss(NamedTuple):
    """Loss of a damaged tar."""

    tar: ReadTar
    damage: TarFlaw
    """With the bytes and members lost as `size` and `count`."""
    unseen_members: int
    """Members lost, which nobody has counted among those seen."""
    unseen_bytes: int
    """Bytes lost beyond the end of the file."""


def weigh_damage(tars: Sequence[ReadTar]) -> Iterator[TarLoss]:
    """The loss of each damaged tar."""
    whole: dict[str, list[ReadTar]] = {}
    for tar in tars:
        if tar.damage is None:
            whole.setdefault(tar.folder, []).append(tar)
    for tar in tars:
        if tar.damage is None:
            continue
        damage = tar.damage
        unseen_bytes = max(damage.size - tar.size, 0)
        if damage.is_cut:
            estimate = _estimate(tar.size, damage, whole.get(tar.folder, []))
            unseen_bytes += estimate.size - damage.size
            damage = estimate
        yield TarLoss(tar, damage, damage.count - 1, unseen_bytes)


def _estimate(tar_size: int, damage: TarFlaw, neighbours: Sequence[ReadTar]) -> TarFlaw:
    """The damage of a tar that was cut off at `tar_size` bytes, by the whole tars beside it."""
    members = sum(tar.members for tar in neighbours)
    if not members:
        return replace(damage, detail=f"{damage.detail}; how much followed is unknown")
    missing = int(median(tar.size / tar.parts for tar in neighbours)) - tar_size
    size = max(damage.size + missing, damage.size)
    count = max(round(size * members / sum(tar.size for tar in neighbours)), damage.count)
    detail = (
        f"{damage.detail}; an estimate by the {len(neighbours)} whole tars beside it: about "
        f"{count:,} members and {size:,} bytes are lost"
    )
    return replace(damage, detail=detail, size=size, count=count)

"""Rows of the plan as batches: payloads read from shards, framed, and checked for damage.

B rows of a batch    L ids in a row    P ids in a patch    S spans of a row
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from bytelm.modalities import BY_CODE, framing
from bytelm.modalities.base import Bytes
from bytelm.modalities.framing import Framed
from bytelm.model.codec_features.kernels import compile_kernels
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.layout import Layout
from bytelm.pipelines.data.batch import Batch, Damage, Origin
from bytelm.pipelines.data.noise import add_noise
from bytelm.pipelines.data.plan import Plan, Position
from bytelm.pipelines.data.source_order import PlannedRow
from bytelm.pipelines.errors import DamageError
from bytelm.pipelines.shards.format import DEEP
from bytelm.pipelines.storage.lru import LruCache

PAYLOAD_CACHE_BYTES = 1 << 26
MAX_POOLED_BUFFERS = 8


class BufferPool:
    """Buffers that are handed out again once no array or tensor refers to them, so that a batch
    costs no fresh pages."""

    def __init__(self) -> None:
        self._buffers: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        """A buffer of `size` bytes with arbitrary content."""
        for i in range(len(self._buffers)):
            # Two references: the list's, and the argument's of this call.
            if len(self._buffers[i]) == size and sys.getrefcount(self._buffers[i]) == 2:
                return self._buffers[i]
        buffer = np.empty(size, np.uint8)
        if len(self._buffers) < MAX_POOLED_BUFFERS:
            self._buffers.append(buffer)
        return buffer


class RowDataset(Dataset[Batch]):
    """Batches by the positions of their rows; None makes a row of padding."""

    def __init__(
        self,
        plan: Plan,
        mask_damage: bool = False,
        codec_patch: int = 0,
        noise: Mapping[str, float] | None = None,
    ):
        """
        Args:
            plan: the rows.
            mask_damage: turn damaged spans into PAD; otherwise damage raises DamageError.
            codec_patch: P of a model that reads codec features, to compute them with each batch;
                0 computes none.
            noise: mean share of payload bytes, by modality, that `add_noise` replaces in the ids of
                a batch, whose targets keep them; None replaces none, and there are no targets.
        """
        self.plan = plan
        self.noise = noise
        self.mask_damage = mask_damage
        self.codec_patch = codec_patch
        if codec_patch:
            compile_kernels()  # before workers are forked, which then have them
        self._payloads = LruCache[tuple[int, str, int], Bytes](PAYLOAD_CACHE_BYTES)
        self._buffers = BufferPool()
        self._prefetched: set[tuple[int, str]] = set()
        views = plan.config.views
        self._is_plain = np.array(  # by modality and form
            [
                [m.is_plain(view, False), True, m.is_plain(view, True)]
                for m in BY_CODE
                for view in [views[m.name]]
            ]
        )

    def __getitems__(self, positions: Sequence[Position | None]) -> Batch:
        """The batch of the rows at some positions."""
        batch, rows = self._allocate(len(positions))
        for position, row in zip(positions, rows, strict=True):
            if position is None:
                row.pad_from(0)
                batch.origins.append(None)
                continue
            self._prefetch(position)
            planned = self.plan.row(*position)
            batch.damage += self._read_row(planned, row)
            if self.noise and batch.targets is not None:
                batch.targets[len(batch.origins)] = torch.from_numpy(row.ids)
                add_noise(row, self.noise, (self.plan.config.seed, *position))
            documents = tuple(np.unique(planned.index["document"]).tolist())
            location = self.plan.sources[planned.source].set.location
            batch.origins.append(Origin(location, planned.shard.name, documents))
        if self.codec_patch:
            batch.codec_features = compute_codec_features(
                batch.ids, batch.document, self.codec_patch
            )
        batch.layout = Layout.of(batch.document)
        return batch

    def _allocate(self, count: int) -> tuple[Batch, list[Framed]]:
        """A batch of `count` rows in a pooled buffer, and each of its rows as arrays to fill."""
        length, patch = self.plan.config.row_length, self.plan.config.patch
        by_id, by_patch = (count, length), (count, length // patch)
        ids_size, patches_size = count * length, count * (length // patch)
        ends = np.cumsum([4 * patches_size, 2 * ids_size, ids_size, patches_size])
        parts = np.split(self._buffers.take(int(ends[-1])), ends[:-1])
        document = parts[0].view(np.int32).reshape(by_patch)
        ids = parts[1].view(np.uint16).reshape(by_id)
        role, modality = parts[2].reshape(by_id), parts[3].reshape(by_patch)
        batch = Batch(
            ids=torch.from_numpy(ids),
            patch_modality=torch.from_numpy(modality),
            document=torch.from_numpy(document),
            role=torch.from_numpy(role),
            origins=[],
            damage=[],
        )
        if self.noise:
            batch.targets = torch.full_like(batch.ids, framing.PAD)
        rows = [Framed(ids[b], role[b], modality[b], document[b], patch) for b in range(count)]
        return batch, rows

    def _prefetch(self, position: Position) -> None:
        """Fetch remote shards of the windows in use and the next ones ahead, and release those
        of past windows."""
        if not any(source.set.is_remote for source in self.plan.sources):
            return
        needed = self.plan.needed_shards(*position)
        names = {(source, shard.name) for source, shard in needed}
        if names == self._prefetched:
            return
        for number, source in enumerate(self.plan.sources):
            source.set.prefetch([shard for n, shard in needed if n == number])
        self._prefetched = names

    def _read_row(self, planned: PlannedRow, row: Framed) -> list[Damage]:
        """Read and frame a row; returns the damage that was masked."""
        damage: dict[int, Damage] = {}
        bounds = framing.write_row(row, planned.spans, self._read_payloads(planned, damage))
        for span in damage:
            row.ids[bounds[span] : bounds[span + 1]] = framing.PAD
            row.role[bounds[span] : bounds[span + 1]] = framing.UNSCORED
        return list(damage.values())

    def _read_payloads(
        self, planned: PlannedRow, damage: dict[int, Damage]
    ) -> Iterator[Bytes | memoryview]:
        """The payload bytes of each span; zeros for a damaged one, which `damage` then names."""
        reader = self.plan.sources[planned.source].set.reader(planned.shard)
        index, spans = planned.index, planned.spans
        is_plain = self._is_plain[index["modality"], index["is_file"]]
        columns = (
            *(is_plain, spans.payload_start, spans.payload_stop),
            *(index["offset"], index["size"], index["first_crc"]),
        )
        for span, (plain, start, stop, offset, size, first_crc) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            payload: Bytes | memoryview
            try:
                if plain:
                    payload = reader.view(offset, size, first_crc, start, stop)
                else:
                    payload = self._convert(planned, span, start, stop)
            except DamageError as error:
                if not self.mask_damage:
                    raise
                damage[span] = Damage(str(error), stop - start)
                payload = np.zeros(stop - start, np.uint8)
            yield payload

    def _convert(self, planned: PlannedRow, span: int, start: int, stop: int) -> Bytes:
        """Payload bytes [start, stop) of a span's segment under a view that is not plain."""
        shard_set, patch = self.plan.sources[planned.source].set, self.plan.config.patch
        member = planned.index[span]
        modality = BY_CODE[member["modality"]]
        view = self.plan.config.views[modality.name]
        stored = modality.stored_range(view, start, stop, bool(member["is_file"] == DEEP))
        if stored is not None:
            stored_start, stored_stop, skip = stored
            sample = shard_set.sample(planned.shard, member, stored_start, stored_stop)
            return modality.to_view(sample, view, patch)[skip : skip + stop - start]
        key = (planned.source, planned.shard.name, int(member["offset"]))
        payload = self._payloads.get(key)
        if payload is None:
            payload = modality.to_view(shard_set.sample(planned.shard, member), view, patch)
            assert payload.size == planned.spans.size[span], "plan and codec disagree on a size"
            self._payloads.put(key, payload, payload.size)
        return payload[start:stop]

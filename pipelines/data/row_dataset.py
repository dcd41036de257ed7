"""Rows of the plan, read from shards and framed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bytelm.modalities import BY_CODE, framing
from bytelm.modalities.base import FILE_VIEW_CODE, Bytes, Modality
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.pipelines.data.batch import FILLER_DOCUMENT, FRAME, PAYLOAD, Batch, Damage, Origin
from bytelm.pipelines.data.plan import Plan, PlannedRow
from bytelm.pipelines.data.samplers import Position
from bytelm.pipelines.shards.reader import DamageError
from bytelm.pipelines.storage.lru import LruCache

PAYLOAD_CACHE_BYTES = 1 << 26
MAX_POOLED_BUFFERS = 8


@dataclass
class _RowArrays:
    """One row of a batch that is being filled: ids and role [L], the others [L/P]."""

    ids: npt.NDArray[np.uint16]
    role: Bytes
    modality: Bytes
    document: npt.NDArray[np.int32]

    def clear(self, patches: int, patch: int) -> None:
        """Make everything from a patch on filler."""
        self.ids[patches * patch :] = framing.PAD
        self.role[patches * patch :] = 0
        self.modality[patches:] = 0
        self.document[patches:] = FILLER_DOCUMENT


class BufferPool:
    """Buffers that are given out again once nobody holds an array or a tensor of them, so that a
    batch costs no fresh pages."""

    def __init__(self) -> None:
        self._buffers: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        """A buffer of `size` bytes, of any content."""
        for i in range(len(self._buffers)):
            # Two references: the list's, and the argument's of this call.
            if len(self._buffers[i]) == size and sys.getrefcount(self._buffers[i]) == 2:
                return self._buffers[i]
        buffer = np.empty(size, np.uint8)
        if len(self._buffers) < MAX_POOLED_BUFFERS:
            self._buffers.append(buffer)
        return buffer


class RowDataset(Dataset[Batch]):
    """Batches by the positions of their rows; None gives a row of filler."""

    def __init__(self, plan: Plan, mask_damage: bool = False, codec_features: bool = False):
        """
        Args:
            mask_damage: turns damaged pieces into PAD; otherwise damage raises DamageError.
            codec_features: compute the model's codec features with each batch.
        """
        self.plan = plan
        self.mask_damage = mask_damage
        self.codec_features = codec_features
        self._payloads = LruCache[tuple[int, str, int], Bytes](PAYLOAD_CACHE_BYTES)
        self._buffers = BufferPool()
        self._in_use: set[tuple[int, str]] = set()

    def __getitems__(self, positions: Sequence[Position | None]) -> Batch:
        config = self.plan.config
        shape = (len(positions), config.row_length)
        count, patches = shape[0] * shape[1], shape[1] // config.patch
        by_patch = (shape[0], patches)
        ends = np.cumsum([4 * shape[0] * patches, 2 * count, count, shape[0] * patches])
        parts = np.split(self._buffers.take(int(ends[-1])), ends[:-1])
        document = parts[0].view(np.int32).reshape(by_patch)
        ids = parts[1].view(np.uint16).reshape(shape)
        role, modality = parts[2].reshape(shape), parts[3].reshape(by_patch)
        origins: list[Origin | None] = []
        damage: list[Damage] = []
        for b, position in enumerate(positions):
            arrays = _RowArrays(ids[b], role[b], modality[b], document[b])
            if position is None:
                arrays.clear(0, config.patch)
                origins.append(None)
                continue
            self._prefetch(*position)
            row = self.plan.row(*position)
            damage += self._fill(row, arrays)
            documents = tuple(np.unique(row.index["document"]).tolist())
            location = self.plan.sources[row.source].set.location
            origins.append(Origin(location, row.shard.name, documents))
        batch = Batch(
            ids=torch.from_numpy(ids),
            patch_modality=torch.from_numpy(modality),
            document=torch.from_numpy(document),
            role=torch.from_numpy(role),
            origins=origins,
            damage=damage,
        )
        if self.codec_features:
            batch.codec_features = compute_codec_features(
                batch.ids.long(), batch.document, config.patch
            )
        return batch

    def _prefetch(self, epoch: int, row: int) -> None:
        """Have remote shards of the windows in use and the next ones fetched, and let go of those
        behind."""
        if not any(source.set.is_remote for source in self.plan.sources):
            return
        needed = self.plan.needed_shards(epoch, row)
        wanted = {(source, shard.name) for source, shard in needed}
        if wanted == self._in_use:
            return
        for number, source in enumerate(self.plan.sources):
            own = [shard for s, shard in needed if s == number]
            source.set.prefetch(own)
        self._in_use = wanted

    def _fill(self, row: PlannedRow, out: _RowArrays) -> list[Damage]:
        """Write a row's ids and what is known of each. Each place is written about once: large
        rows are bound by memory."""
        patch = self.plan.config.patch
        codes = row.index["modality"]
        opening = np.zeros(len(row.at), np.int64)
        is_plain = row.index["is_file"].astype(np.bool_)
        present = [BY_CODE[code] for code in sorted(set(codes.tolist()))]
        for modality in present:
            spans = codes == modality.code
            opening[spans] = framing.preamble_length(modality, patch)
            is_plain[spans] |= self.plan.config.views[modality.name] in modality.plain_views
        length = opening + row.length
        body = row.at + opening
        end = int(length.sum())
        out.clear(end // patch, patch)
        out.document[: end // patch] = np.repeat(row.piece.astype(np.int32), length // patch)
        out.modality[: end // patch] = np.repeat(codes, length // patch)

        damage = self._write_payloads(row, body, is_plain, out)
        for modality in present:
            self._write_preambles(modality, np.flatnonzero(codes == modality.code), row, out)
        self._write_ends(body, row, out)
        for span in damage:
            out.ids[row.at[span] : row.at[span] + length[span]] = framing.PAD
            out.role[row.at[span] : row.at[span] + length[span]] = 0
        return list(damage.values())

    def _write_payloads(
        self,
        row: PlannedRow,
        body: npt.NDArray[np.int64],
        is_plain: npt.NDArray[np.bool_],
        out: _RowArrays,
    ) -> dict[int, Damage]:
        """The payload of every span, and PAD around it; the spans that are damaged."""
        damage: dict[int, Damage] = {}
        reader = self.plan.sources[row.source].set.reader(row.shard)
        sizes = np.minimum(row.start + row.length, row.sizes) - np.minimum(row.start, row.sizes)
        columns = (row.at, body, row.start, sizes, body + row.length)
        stored = (row.index[name] for name in ("offset", "size", "first_crc"))
        for i, (at, begin, start, size, end, offset, whole, first_crc) in enumerate(
            zip(*(c.tolist() for c in (*columns, *stored)), strict=True)
        ):
            stop = begin + size
            out.ids[at:begin] = out.ids[stop:end] = framing.PAD
            out.role[at:begin] = out.role[stop:end] = 0
            data: Bytes | memoryview
            try:
                if is_plain[i]:
                    data = reader.view(offset, whole, first_crc, start, start + size)
                else:
                    data = self._convert(row, i, start, start + size)
            except DamageError as error:
                if not self.mask_damage:
                    raise
                damage[i] = Damage(str(error), size)
                continue
            out.ids[begin:stop] = data
            out.role[begin:stop] = PAYLOAD
        return damage

    def _write_preambles(
        self,
        modality: Modality,
        spans: npt.NDArray[np.int64],
        row: PlannedRow,
        out: _RowArrays,
    ) -> None:
        """SOM and header of every span of one modality, scored where a segment begins."""
        index = row.index[spans]
        view = modality.view_code(self.plan.config.views[modality.name])
        codes = np.where(index["is_file"], FILE_VIEW_CODE, view).astype(np.uint8)
        offsets = np.minimum(row.start, row.sizes)[spans]
        fields = {name: index[name] for name in modality.header_fields}
        places = row.at[spans, None] + np.arange(1 + modality.header_size)
        out.ids[places[:, 0]] = modality.som
        out.ids[places[:, 1:]] = modality.pack_headers(fields, codes, offsets)
        out.role[places] = np.where(row.start[spans] == 0, FRAME, 0)[:, None]

    @staticmethod
    def _write_ends(body: npt.NDArray[np.int64], row: PlannedRow, out: _RowArrays) -> None:
        """EOM of every segment that ends here, and EOD of every document."""
        for end, after, wanted in (
            (framing.EOM, 0, np.ones_like(row.is_last)),
            (framing.EOD, 1, row.is_last),
        ):
            place = row.sizes + after - row.start
            here = wanted & (place >= 0) & (place < row.length)
            out.ids[(body + place)[here]] = end
            out.role[(body + place)[here]] = FRAME

    def _convert(self, row: PlannedRow, span: int, start: int, stop: int) -> Bytes:
        """Payload bytes [start, stop) of a span's segment under a view that is not plain."""
        source = self.plan.sources[row.source].set
        member = row.index[span]
        modality = BY_CODE[member["modality"]]
        view = self.plan.config.views[modality.name]
        stored = modality.stored_range(view, start, stop)
        if stored is not None:
            first, last, before = stored
            part = modality.to_view(
                source.sample(row.shard, member, first, last), view, self.plan.config.patch
            )
            return part[before : before + stop - start]
        key = (row.source, row.shard.name, int(member["offset"]))
        payload = self._payloads.get(key)
        if payload is None:
            sample = source.sample(row.shard, member)
            payload = modality.to_view(sample, view, self.plan.config.patch)
            assert payload.size == row.sizes[span], "plan and codec disagree on a payload's size"
            self._payloads.put(key, payload, payload.size)
        return payload[start:stop]

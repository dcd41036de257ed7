"""The sampling settings at which what a model draws costs what real files cost.

A byte that a model draws is by chance one that no real file would have there, and what follows is
then drawn behind something that the model was not trained on: draws cost more bits under the model
itself than real files do. Limits make them cheaper, and too narrow ones cheaper than real files:
white areas, silence, repetitions. The limit between the two is found by bisection, with the
beginnings of real files, for payloads that are new and for those that are finished from their first
half.

What is limited differs, by measurement (docs/log.md). In texts min-p keeps out the unlikely bytes
that lead a draw off, and leaves the likely ones as they are. On a page that is white, or in
silence, every beginning is unlikely, and the temperature limits it less; and what the mixture draws
behind the first half of an image costs too little at temperature 1, so that nothing is to be cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import FILE_VIEW, Bytes, Header, Sample
from bytelm.modalities.generation_guides import fixed, utf8
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import FINISHED, NEW, DatasetInfo
from bytelm.pipelines.evaluation.sample_scoring import payload_nats
from bytelm.pipelines.generation.generate import draw_payloads
from bytelm.pipelines.generation.request import Request
from bytelm.pipelines.shards.format import OWN_FILE
from bytelm.pipelines.shards.reader import ShardSet

PIECE_BYTES = {"text": 1_024, "image": 12_288, "audio": 16_384}
"""Bytes of a file's beginning, by modality: an image of 64 x 64 pixels, half a second at 16 kHz."""
LEAST_BYTES = 64
"""A file with fewer is passed over."""
STEPS = 8
"""Settings that are tried at most."""
CLOSE = 0.02
"""Relative difference of the costs below which the search ends."""

Scale = Callable[[float], Sampling]
"""Settings for a number from 0 to 1, of which higher ones draw what costs more."""


def by_temperature(value: float) -> Sampling:
    """Temperatures from 0.5 to 1.5."""
    return Sampling(temperature=0.5 + value)


def by_min_p(value: float) -> Sampling:
    """Values of min-p from 0.3 down to 0.0003; above 0.8 none, and temperatures from 1 to 1.5."""
    if value > 0.8:
        return Sampling(temperature=1.0 + 2.5 * (value - 0.8))
    return Sampling(min_p=0.3 * 0.001 ** (value / 0.8))


SCALES: Mapping[tuple[str, str], Scale] = {
    ("text", NEW): by_min_p,
    ("text", FINISHED): by_min_p,
    ("image", NEW): by_temperature,
    ("image", FINISHED): by_temperature,
    ("audio", NEW): by_temperature,
    ("audio", FINISHED): by_temperature,
}
"""The setting that is searched, by modality and by NEW or FINISHED."""


@dataclass(frozen=True)
class Trial:
    """Settings, and the cost of what was drawn with them."""

    sampling: Sampling
    bits: float
    """Bits per drawn byte under the model, at temperature 1."""


@dataclass(frozen=True)
class Calibration:
    """Trials for the payloads of one modality, new or finished ones."""

    real_bits: float
    """Bits per byte of the same bytes of real files."""
    trials: Sequence[Trial]
    """All settings that were tried, in order."""

    @property
    def best(self) -> Trial:
        """The trial whose cost is nearest to that of real files."""
        return min(self.trials, key=lambda trial: abs(trial.bits - self.real_bits))


def calibrate(
    model: Megabyte,
    pieces: Sequence[Piece],
    scale: Scale,
    kind: str,
    report: Callable[[Trial], object] = lambda trial: None,
) -> Calibration:
    """Find the settings with which drawn payloads cost what real ones cost, in fp32.

    Args:
        pieces: beginnings of real files of one modality, at least one. The same ones, and the same
            seeds, serve for all settings.
        scale: the settings to search.
        kind: NEW draws whole payloads; FINISHED second halves, behind the first ones.
        report: called with each trial.
    """
    prompts = [piece.half if kind == FINISHED else 0 for piece in pieces]
    requests = [piece.request(prompt) for piece, prompt in zip(pieces, prompts, strict=True)]
    real_bits = _bits(model, requests, [piece.payload for piece in pieces])
    trials: list[Trial] = []
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        value = (low + high) / 2
        sampling = scale(value)
        drawn = draw_payloads(model, requests, range(len(requests)), sampling, "fp32")
        payloads = [np.frombuffer(payload, np.uint8) for payload in drawn]
        trials.append(Trial(sampling, _bits(model, requests, payloads)))
        report(trials[-1])
        excess = trials[-1].bits / real_bits - 1.0
        if abs(excess) < CLOSE:
            break
        low, high = (low, value) if excess > 0.0 else (value, high)
    return Calibration(real_bits, trials)


@dataclass(frozen=True)
class Piece:
    """The beginning of a real file, in the model's view."""

    modality: str
    header: Header
    view: str
    payload: Bytes

    @property
    def half(self) -> int:
        """Bytes that are given where the piece is finished: half of it, of a text in whole
        characters."""
        half = self.payload.size // 2
        while self.modality == "text" and self.payload[half] & 0xC0 == 0x80:
            half -= 1
        return half

    def request(self, prompt: int) -> Request:
        """A request for a payload of this header and size with the piece's first `prompt` bytes."""
        guide = utf8() if self.modality == "text" else fixed()
        size, given = self.payload.size, self.payload[:prompt].tobytes()
        return Request(self.modality, self.header, self.view, size, given, guide=guide)


def read_pieces(
    sets: Sequence[ShardSet], info: DatasetInfo, modality: str, split: str, count: int, patch: int
) -> list[Piece]:
    """Beginnings of at most `count` real files, as evenly from each set as the sets allow.

    A set of fewer texts gives several passages of each. There is none where the sets have no file
    of the modality, or the model reads such files as they are.

    Args:
        patch: P of the model.
    Raises:
        DamageError: for a damaged file.
    """
    view = info.views[modality]
    if view == FILE_VIEW:
        return []
    sources = [_pieces_of_set(s, modality, view, split, count, patch) for s in sets]
    pieces: list[Piece] = []
    while sources and len(pieces) < count:
        for source in list(sources):
            piece = next(source, None)
            if piece is None:
                sources.remove(source)
            else:
                pieces.append(piece)
    return pieces[:count]


def _pieces_of_set(
    shard_set: ShardSet, modality: str, view: str, split: str, count: int, patch: int
) -> Iterator[Piece]:
    """At most `count` pieces, spread over the files of a set."""
    code, size = MODALITIES[modality].code, PIECE_BYTES[modality]
    rows = [
        (shard, row)
        for shard in shard_set.split(split)
        for row in shard_set.index(shard)
        if row["modality"] == code and row["is_file"] != OWN_FILE and row["size"] >= LEAST_BYTES
    ]
    passages = math.ceil(count / max(1, len(rows))) if modality == "text" else 1
    for number in np.linspace(0, len(rows), min(count, len(rows)), endpoint=False).astype(int):
        sample = shard_set.sample(*rows[number])
        for start in range(0, min(passages * size, len(sample.data)), size):
            payload = MODALITIES[modality].to_view(_from(sample, start), view, patch)[:size]
            if payload.size >= LEAST_BYTES:
                yield Piece(modality, sample.header, view, payload)


def _from(sample: Sample, start: int) -> Sample:
    """The rest of a text, from its next character on; any other sample as it is, from 0."""
    if start == 0:
        return sample
    rest = sample.data[start:].decode("utf-8", "ignore")
    return replace(sample, data=rest.encode())


def _bits(model: Megabyte, requests: Sequence[Request], payloads: Sequence[Bytes]) -> float:
    """Bits per byte behind the prompts of payloads, at temperature 1; 0 if there is no byte."""
    nats = [
        payload_nats(model, request.modality, request.header, request.view, payload)[
            len(request.prompt) :
        ]
        for request, payload in zip(requests, payloads, strict=True)
    ]
    count = sum(map(len, nats))
    return sum(float(n.sum()) for n in nats) / max(1, count) / math.log(2)

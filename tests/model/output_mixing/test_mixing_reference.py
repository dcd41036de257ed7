"""The kernel's float32 against plain Python in float64."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.mixing_reference import ReferenceMixer

from bytelm.model.codec_features.layout import IS_LOW, KIND, LINE, PLACE, PLACES, SIZE, UNIT
from bytelm.model.codec_features.state import BYTES, PIXELS, SAMPLES
from bytelm.model.output_mixing import kernels, predictors
from bytelm.model.output_mixing.bit_coder import IDLE_CODER
from bytelm.model.output_mixing.state import PREDICTION, new_mixers, new_predictors

N, V = 400, 264
LENGTH = 1_000


def document(kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] of a payload with an id that is no byte, and their places [N, PLACES]."""
    generator, count = np.random.default_rng(kind), np.arange(N)
    if kind == BYTES:
        words = generator.choice(["the ", "whale ", "and ", "sea "], N)
        ids = np.frombuffer("".join(words).encode()[:N], np.uint8).astype(np.int64)
    elif kind == PIXELS:
        ids = (count // 24 * 9 + count % 3 * 40 + generator.integers(0, 4, N)) % 256
    else:
        wave = 6000 * np.sin(np.arange(N // 2) / 9) + generator.normal(0, 30, N // 2)
        ids = wave.astype(">i2").view(np.uint8).astype(np.int64)
    ids[N // 2] = 257
    places = np.zeros((N, PLACES), np.int32)
    unit = 3 if kind == PIXELS else 2
    places[:, KIND], places[:, UNIT], places[:, LINE] = kind, unit, 24
    places[:, SIZE], places[:, PLACE] = count, count % unit
    places[:, IS_LOW] = (count % 2) * (kind == SAMPLES)
    return ids, places


@pytest.mark.parametrize("kind", [BYTES, PIXELS, SAMPLES])
@pytest.mark.parametrize("trust", [0.0, 4.0])
def test_nats_are_those_of_plain_python(kind: int, trust: float) -> None:
    """The network knows nothing, or often knows the byte."""
    ids, places = document(kind)
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 1, (N, V)).astype(np.float32)
    logits[np.arange(N), ids] += (trust * generator.random(N)).astype(np.float32)
    predicted, nats = np.zeros(N, PREDICTION), np.empty(N)
    predictors.predict_ids(new_predictors(1, LENGTH), np.zeros_like(ids), ids, places, predicted)
    mixers, opens_document = new_mixers(1, LENGTH), np.arange(N) == 0
    kernels.read_ids(mixers, 0, IDLE_CODER, logits, ids, predicted, opens_document, nats)
    reference = ReferenceMixer(mixers.counts.shape[2], mixers.refinements.shape[1])
    of_ids = zip(logits, ids.tolist(), predicted, strict=True)
    expected = [reference.nats(*of_id) for of_id in of_ids]
    np.testing.assert_allclose(nats, expected, rtol=2e-4, atol=2e-4)
    assert np.mean(nats[-100:]) < 4.5


@pytest.mark.parametrize("kind", [BYTES, PIXELS, SAMPLES])
@pytest.mark.parametrize("count", [0, N - 1])
def test_ids_are_drawn_from_the_distribution_of_plain_python(kind: int, count: int) -> None:
    """Behind a prompt of some ids, and of none."""
    ids, places = document(kind)
    logits = np.random.default_rng(2).normal(0, 1, (N, V)).astype(np.float32)
    predicted, nats = np.zeros(N, PREDICTION), np.empty(count)
    predictors.predict_ids(new_predictors(1, LENGTH), np.zeros_like(ids), ids, places, predicted)
    mixers, opens_document = new_mixers(1, LENGTH), np.arange(N) == 0
    read = logits[:count], ids[:count], predicted[:count], opens_document[:count]
    kernels.read_ids(mixers, 0, IDLE_CODER, *read, nats)
    reference = ReferenceMixer(mixers.counts.shape[2], mixers.refinements.shape[1])
    for of_id in zip(*read[:3], strict=True):
        reference.nats(of_id[0], int(of_id[1]), of_id[2])
    reference.learns = False
    mixed = logits[count : count + 1].copy()
    next_one, mixes = predicted[count : count + 1], np.ones(1, np.bool_)
    of_row = mixers.rows[0]
    bytes_before = np.array([[of_row["byte_before"], of_row["byte"]]])
    row, tree = np.zeros(1, np.int64), np.empty(kernels.TREE, np.float32)
    kernels.mix_logits(mixers, row, bytes_before, mixed, next_one, mixes, tree)
    log_p = mixed[0] - np.log(np.exp(mixed[0].astype(np.float64)).sum())
    expected = [-reference.nats(logits[count], id_, next_one[0]) for id_ in range(V)]
    likely = np.array(expected) > np.log(kernels.LEAST_DRAWN)
    assert likely.any()
    np.testing.assert_allclose(log_p[likely], np.array(expected)[likely], rtol=5e-4, atol=5e-4)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)

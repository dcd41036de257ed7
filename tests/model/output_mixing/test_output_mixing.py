"""Output mixing: a causal distribution, the same for whole documents and step by step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_config, tiny_model
from torch import Tensor

from bytelm.modalities import MODALITIES, framing
from bytelm.modalities.base import Header
from bytelm.model.codec_features.layout import KIND, SIZE
from bytelm.model.codec_features.state import NO_PAYLOAD
from bytelm.model.codec_features.vectorized import compute_places
from bytelm.model.config import ModelConfig
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.megabyte import Megabyte
from bytelm.model.output_mixing.state import new_predictors

PATCH, CONTEXT = 4, 640
MODERN = {"tie_embeddings": False, "codec_features": True, "cross_patch_attention": 4}
SEGMENTS = {
    "text": ("text", Header(), "utf8"),
    "raster": ("image", Header(width=11, height=60, channels=3), "raster"),
    "grey": ("image", Header(width=9, height=80, channels=1), "raster"),
    "deep": ("image", Header(width=7, height=20, channels=2), "deep"),
    "mono": ("audio", Header(rate=8000, channels=1), "s16be"),
    "stereo": ("audio", Header(rate=44100, channels=2), "s16be"),
    "mulaw": ("audio", Header(rate=8000, channels=1), "mulaw"),
}
KINDS = ["text", "raster", "deep", "mono", "stereo"]


def payload(name: str, size: int) -> np.ndarray:
    """Bytes that predictors of the kind can predict in part."""
    generator = np.random.default_rng(len(name) + size)
    if name == "text":
        words = b"the whale and the sea and the ship ".split(b" ")
        picked = b" ".join(words[i] for i in generator.integers(0, len(words), size))
        return np.frombuffer(picked[:size], np.uint8)
    time = np.arange(size // 2 + 1)
    if SEGMENTS[name][0] == "audio":
        wave = 9000 * np.sin(time / 7) + generator.normal(0, 20, len(time))
        return wave.astype(">i2").view(np.uint8)[:size]
    return (np.arange(size) // 3 % 60 * 4 + generator.integers(0, 3, size)).astype(np.uint8)


def framed(name: str, size: int) -> Tensor:
    """A document of one segment as ids [n]."""
    modality, header, view = SEGMENTS[name]
    segment = framing.Segment(MODALITIES[modality], header, view, size)
    span = framing.Span(0, 0, int(framing.body_length(size, PATCH)))
    data = payload(name, size)
    row = framing.frame([span], [segment], lambda _, start, stop: data[start:stop], PATCH)
    return torch.from_numpy(row.ids.astype(np.int64))


def mixing_model(**options: object) -> Megabyte:
    return tiny_model("two", context=CONTEXT, output_mixing=True, **MODERN, **options).eval()


@torch.no_grad()
def nats_of(model: Megabyte, *documents: Tensor) -> Tensor:
    """Nats of documents in one row, [n]."""
    number = [torch.full((len(d) // PATCH,), i) for i, d in enumerate(documents)]
    document = torch.cat(number).int()[None]
    ids = torch.cat(documents)[None]
    return model(ids, document, torch.zeros_like(ids, dtype=torch.uint8))[0]


@pytest.mark.parametrize("name", KINDS)
def test_nats_depend_on_no_later_id(name: str) -> None:
    model, ids = mixing_model(), framed(name, 300)
    changed = ids.clone()
    at = len(ids) // 2
    changed[at:-PATCH] = (changed[at:-PATCH] + 91) % 256
    before, after = nats_of(model, ids), nats_of(model, changed)
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at:], after[at:])


def test_documents_of_a_row_have_the_nats_that_they_have_alone() -> None:
    model = mixing_model()
    documents = [framed(name, 100) for name in ("text", "mono", "text", "raster")]
    together = nats_of(model, *documents).split([len(d) for d in documents])
    for document, nats in zip(documents, together, strict=True):
        torch.testing.assert_close(nats, nats_of(model, document), atol=1e-5, rtol=1e-5)


def test_a_decoder_gives_the_logits_of_the_network() -> None:
    model, ids = mixing_model(), framed("text", 100)
    decoder = Decoder(model, 1)
    logits = [decoder.prefill([ids[:40]])]
    logits += [decoder.step(ids[i : i + 1]) for i in range(40, len(ids) - 1)]
    with torch.no_grad():
        expected = model.logits(ids[None])[0, 40:]
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "most"), [("text", 3.5), ("raster", 5.0), ("mono", 6.5)])
def test_an_untrained_network_is_overruled(name: str, most: float) -> None:
    ids = framed(name, 560)
    bits = nats_of(mixing_model(), ids)[ids < 256] / math.log(2)
    assert bits[-200:].mean() < most
    assert nats_of(tiny_model("two", context=CONTEXT, **MODERN), ids)[-200:].mean() > 5


def test_gradients_are_those_of_the_network() -> None:
    ids = framed("text", 100)[None]
    document = torch.zeros(1, 1, dtype=torch.int32)
    model, plain = mixing_model(), tiny_model("two", context=CONTEXT, **MODERN)
    nats = [m(ids, document, torch.zeros_like(ids, dtype=torch.uint8)) for m in (model, plain)]
    assert torch.equal(*nats)
    assert nats[0].requires_grad


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_have_the_nats_of_all_at_once(chunk: int) -> None:
    documents = [framed("text", 100), framed("raster", 150)]
    expected = nats_of(mixing_model(), *documents)
    nats = nats_of(mixing_model(local_chunk=chunk), *documents)
    torch.testing.assert_close(nats, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SEGMENTS))
def test_places_count_the_bytes_of_a_payload(name: str) -> None:
    ids = framed(name, 90)
    places = compute_places(ids[None], torch.zeros(1, 1, dtype=torch.int32), PATCH)[0]
    opening = framing.preamble_length(MODALITIES[SEGMENTS[name][0]], PATCH)
    assert (places[:opening, KIND] == NO_PAYLOAD).all()
    assert (places[opening : opening + 90, KIND] != NO_PAYLOAD).all()
    assert places[opening : opening + 90, SIZE].tolist() == list(range(90))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec_features": False}, "set codec_features to true"),
        ({"modality_heads": 3}, "set modality_heads to 0"),
    ],
)
def test_options_that_do_not_go_together_are_named(options: dict[str, int], message: str) -> None:
    config = tiny_config("two", output_mixing=True, **MODERN)
    with pytest.raises(ValueError, match=message):
        replace(config, **options)


def test_older_configs_do_not_mix() -> None:
    values = tiny_config("two", **MODERN).to_dict()
    del values["output_mixing"]
    assert not ModelConfig.from_dict(values).output_mixing


def test_matches_have_room_for_a_long_document() -> None:
    """Hashes of a million bytes mostly have slots of their own; the table of a row stays small."""
    for length, slots in ((12_544, 1 << 16), (1_000_000, 1 << 20)):
        assert new_predictors(1, length).positions.shape == (1, slots)

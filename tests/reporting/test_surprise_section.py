"""A report shows typical and extreme documents of the data, whole or in part, and says which."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sets import SetMaker, audio, image, text
from helpers.tiny_models import tiny_config

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header, Sample
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.evaluation.sample_scoring import sample_nats
from bytelm.pipelines.reporting.picked_documents import (
    IMAGE_SIDE,
    SOUND_BYTES,
    excerpt,
    first_samples,
    pick_documents,
    read_pick,
)
from bytelm.pipelines.reporting.run_media import scored_sets
from bytelm.pipelines.reporting.surprise_section import surprise_section
from bytelm.pipelines.shards.reader import ShardSet

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def entry(key: str, bits: float, modality: str = "text", size: int = 1000) -> dict[str, Any]:
    return {"key": key, "set": "set", "modality": modality, "bytes": size, "bits": bits * size}


def picked(documents: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pick.key, pick.reason) for pick in pick_documents(documents)]


def test_the_median_and_both_ends_are_picked() -> None:
    documents = [entry(f"d{bits}", bits) for bits in (3, 1, 5, 2, 4)]
    assert picked(documents) == [
        *(("d3", "typical"), ("d5", "most surprising"), ("d1", "least surprising"))
    ]
    assert picked(documents[::-1]) == picked(documents)


def test_the_typical_documents_of_all_modalities_come_first() -> None:
    documents = [entry(f"{m}{i}", i, m) for m in VIEWS for i in range(3)]
    assert [key for key, _ in picked(documents)[:3]] == ["text1", "image1", "audio1"]


def test_few_documents_are_picked_once() -> None:
    assert picked([entry("a", 1)]) == [("a", "the only one")]
    assert picked([entry("a", 1), entry("b", 2)]) == [
        *(("b", "most surprising"), ("a", "least surprising"))
    ]
    assert picked([]) == picked([entry("a", 0, size=0)]) == []


def test_documents_of_a_few_bytes_are_picked_only_where_there_are_no_others() -> None:
    tiny = [entry(f"tiny{i}", i, size=3) for i in range(9)]
    assert picked([*tiny, entry("a", 4)]) == [("a", "the only one")]
    assert len(picked(tiny)) == 3


def test_parts_of_large_documents_are_whole_characters_pixels_and_frames() -> None:
    part, words = excerpt(text("é".encode() * 1500 + b"x"))
    assert (len(part.data), words) == (2000, "the first 2,000 bytes of 3,001")
    part, words = excerpt(text(b"x" + "é".encode() * 1500))
    assert part.data.decode() == "x" + "é" * 999
    large = image(300, 200)
    part, words = excerpt(large)
    assert part.header == Header(IMAGE_SIDE, IMAGE_SIDE, 3)
    pixels = np.frombuffer(large.data, np.uint8).reshape(200, 300, 3)
    assert part.data == pixels[36:164, 86:214].tobytes()
    assert words == "128 × 128 pixels from the middle of 300 × 200"
    part, words = excerpt(audio(300_000, channels=3, rate=48000))
    assert len(part.data) == SOUND_BYTES // 6 * 6
    assert words == "the first 0.23 s of 6.2 s"
    raw = Sample("audio", Header(channels=1, rate=8000), bytes(50_000), is_file=True)
    assert len(excerpt(raw)[0].data) == 16_384


@pytest.mark.parametrize("sample", [text(b"short"), image(9, 9), audio(90)])
def test_small_documents_stay_whole(sample: Sample) -> None:
    assert excerpt(sample) == (sample, "")


@pytest.fixture
def small_set(make_set: SetMaker) -> ShardSet:
    texts = [[text(b"one"), image(3, 3, seed=1)], [text(b"two two")], [audio(40, seed=2)]]
    return make_set([], val=texts)


def test_picked_documents_are_found_by_key_and_modality(small_set: ShardSet) -> None:
    (pick,) = pick_documents([entry("val-0", 1, "image")])
    assert read_pick(small_set, "val", pick) == image(3, 3, seed=1)
    (missing,) = pick_documents([entry("val-1", 1, "image")])
    assert read_pick(small_set, "val", missing) is None
    assert first_samples(small_set, "val", "text", 1) == [text(b"one")]


@pytest.fixture
def model() -> Megabyte:
    torch.manual_seed(0)
    return Megabyte(tiny_config("two", context=64)).eval()


def section(
    model: Megabyte, documents: list[dict[str, Any]], shard_set: ShardSet, seconds: float = 60
) -> str:
    info = DatasetInfo.from_extra({"views": VIEWS})
    return surprise_section(model, info, documents, {"set": shard_set}, "val", seconds)


ENTRIES = [entry("val-0", 2), entry("val-0", 2, "image"), entry("val-2", 3, "audio")]


def test_the_section_has_a_map_of_each_modality(model: Megabyte, small_set: ShardSet) -> None:
    html = section(model, ENTRIES, small_set)
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["Texts", "Images", "Sounds"]
    assert html.count("the only one: val-0, 2.00 bits/byte as a whole") == 2
    sample = image(3, 3, seed=1)
    total = sample_nats(model, sample, "raster").sum() / math.log(2)
    assert f"27 bytes cost {total:,.0f} bits" in html


def test_a_set_that_is_gone_and_a_document_that_is_gone_have_a_line(
    model: Megabyte, small_set: ShardSet
) -> None:
    html = section(model, [entry("<b>9</b>", 2)], small_set)
    assert "has no document &lt;b&gt;9&lt;/b&gt; in val any more" in html
    html = section(model, [{**entry("val-0", 2), "set": "<gone>"}], small_set)
    assert "not shown: the set &lt;gone&gt; cannot be read" in html


def test_documents_without_time_left_have_a_line(model: Megabyte, small_set: ShardSet) -> None:
    html = section(model, ENTRIES, small_set, seconds=-1)
    assert html.count("not scored: there was no time left") == 3


def test_a_sample_alone_costs_what_its_pieces_cost(model: Megabyte, tmp_path: Path) -> None:
    sample = text(b"a text that is longer than the context of the model, so it is cut" * 3)
    rows = []
    nats = sample_nats(model, sample, "utf8", lambda: rows.append(1))
    assert nats.shape == (len(sample.data),)
    assert np.isfinite(nats).all()
    assert len(rows) > 1
    begin = MODALITIES["text"].to_view(sample, "utf8", 4)[:20].tobytes()
    np.testing.assert_allclose(sample_nats(model, text(begin), "utf8"), nats[:20], rtol=1e-4)


def test_the_sets_of_an_evaluation_are_found_by_their_root_hash(
    make_set: SetMaker, small_set: ShardSet
) -> None:
    other = make_set([], name="other", val=[[text(b"another")]])
    entries = [
        {"path": "from/another/folder", "root": small_set.root},
        {"path": other.location, "root": other.root},
        {"path": str(small_set.location), "root": "of a set that was made anew"},
        {"path": "gone", "root": "unknown"},
    ]
    found = scored_sets(entries, [small_set])
    assert {path: shard_set.root for path, shard_set in found.items()} == {
        "from/another/folder": small_set.root,
        other.location: other.root,
    }

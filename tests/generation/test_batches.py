"""Files drawn in batches: rows of any lengths together, by steps of a CPU and of a GPU alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_MODEL, status
from helpers.host_reads import NoHostReads
from helpers.tapes import TapedSteps
from helpers.tiny_models import OPTIONS

from bytelm.modalities.base import Header
from bytelm.model.config import ModelConfig
from bytelm.model.decoding import static_decoder
from bytelm.model.decoding.row_drawer import StaticRows
from bytelm.model.decoding.row_sampler import RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.data.dataset_info import DatasetInfo
from bytelm.pipelines.generation import batching, generate
from bytelm.pipelines.generation.batching import batch_by_memory
from bytelm.pipelines.generation.generate import generate_samples
from bytelm.pipelines.generation.request import (
    Request,
    audio_request,
    condition_from_text,
    image_request,
    text_request,
)

IMAGES = [Header(3, 3, 3), Header(9, 5, 3), Header(1, 30, 1), Header(10, 9, 3)]
SOUNDS = [(Header(channels=1, rate=8000), 0.005), (Header(channels=2, rate=8000), 0.009)]
CAPTION = condition_from_text("a red square", "utf8")
REQUESTS: dict[str, list[Request]] = {
    "texts": [text_request("Кит", size, "utf8") for size in (40, 7, 90)],
    "images": [image_request(header, "raster") for header in IMAGES],
    "captioned": [image_request(header, "raster", condition=CAPTION) for header in IMAGES[1:]],
    "sounds": [audio_request(header, "s16be", seconds) for header, seconds in SOUNDS],
}
SAMPLING = Sampling(temperature=1.1, top_k=90, top_p=0.95)


def tiny(**options: object) -> Megabyte:
    torch.manual_seed(2)
    shape = {**TINY_MODEL, "embedding_std": 1.0, "init_std": 0.4, **options}
    return Megabyte(ModelConfig.from_dict(shape)).eval()


def draw(model: Megabyte, requests: Sequence[Request], batch: int | None) -> list[bytes]:
    """Data of the samples, in the order of the requests."""
    drawn = generate_samples(model, requests, range(len(requests)), SAMPLING, "fp32", batch=batch)
    return [sample.data for _, sample in sorted(drawn)]


@pytest.mark.parametrize("name", REQUESTS)
def test_rows_of_any_lengths_share_a_batch_and_keep_their_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, requests = tiny(**OPTIONS["modern"]), REQUESTS[name]
    sizes: list[int] = []
    row_drawer = generate.row_drawer

    def counted(model: Megabyte, rows: int, *arguments: object) -> object:
        sizes.append(rows)
        return row_drawer(model, rows, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "row_drawer", counted)
    together = draw(model, requests, None)
    assert sizes == [len(requests)]
    assert draw(model, requests, 2) == draw(model, requests, 1) == together


def static_rows(
    model: Megabyte, batch: int, length: int, sampler: RowSampler, steps: int
) -> StaticRows:
    return StaticRows(model, batch, length, sampler)


@pytest.mark.parametrize(
    ("option", "name"),
    [("modern", "captioned"), ("modern", "sounds"), ("all", "texts"), ("paper", "images")],
)
def test_steps_of_a_gpu_draw_the_same_bytes(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed on the CPU; whole files with guides, captions and prompts, some in two pieces."""
    model, requests = tiny(**OPTIONS[option]), REQUESTS[name]
    stepped = draw(model, requests, None)
    monkeypatch.setattr(generate, "row_drawer", static_rows)
    monkeypatch.setattr(static_decoder, "StepGraphs", TapedSteps)
    assert draw(model, requests, None) == stepped


def test_a_guided_step_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_many = static_decoder.StaticDecoder.draw

    def watched(decoder: static_decoder.StaticDecoder, count: int) -> None:
        with NoHostReads():
            draw_many(decoder, count)

    monkeypatch.setattr(static_decoder.StaticDecoder, "draw", watched)
    monkeypatch.setattr(generate, "row_drawer", static_rows)
    assert len(draw(tiny(**OPTIONS["modern"]), REQUESTS["texts"], None)) == 3


def test_a_batch_fits_into_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(**OPTIONS["modern"])
    rows_in = partial(batch_by_memory, model, model.config.context, "fp32", longest_prompt=0)
    monkeypatch.setattr(batching, "available_bytes", lambda: 10**12)
    assert rows_in() == batching.MOST_ROWS["cpu"]
    cached = 4 * batching.cached_numbers(model.config, model.config.context)
    monkeypatch.setattr(batching, "available_bytes", lambda: 10 * cached)
    assert 1 <= rows_in() < 5
    monkeypatch.setattr(batching, "available_bytes", lambda: 10)
    assert rows_in() == 1


def test_the_command_draws_the_same_files_for_any_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = {"text": "utf8", "image": "raster", "audio": "s16be"}
    info = DatasetInfo(views, {"image": IMAGES[:2]}, frozenset(), frozenset(views))
    model = tiny()
    save_pretrained(model, model.config, tmp_path / "model", info.to_extra())
    files = []
    for batch in (1, 4):
        out = tmp_path / f"out{batch}"
        common = ["generate", str(tmp_path / "model"), "--modality", "image", "--out", str(out)]
        assert status([*common, "--count", "5", "--batch", str(batch)]) == 0
        files.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert len(files[0]) == 5
    assert files[0] == files[1]
    assert status([*common, "--batch", "0"]) == 2
    assert "--batch" in capsys.readouterr().err

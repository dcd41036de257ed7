"""Steps of fixed shapes: their logits, what a replay of them gives, and that nobody waits."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.tapes import NoHostReads, TapedSteps
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_model
from torch import Tensor

from bytelm.model.decoding import static_decoder
from bytelm.model.decoding.row_drawer import StaticRows, SteppedRows
from bytelm.model.decoding.row_sampler import GuideTables, RowSampler
from bytelm.model.decoding.sampling import Sampling
from bytelm.model.decoding.static_decoder import StaticDecoder
from bytelm.model.megabyte import Megabyte

CPU = torch.device("cpu")
ALL_SHAPES_OF = ("modern", "all", "attention_window")
"""Options that are tried with every shape; the others with two."""
CASES = [
    (shape, option)
    for option in OPTIONS
    for shape in (SHAPES if option in ALL_SHAPES_OF else ("two", "three"))
]


def sampler_of(rows: int, **sampling: Any) -> RowSampler:
    guide, room = GuideTables.of_bytes(264), [99] * rows
    return RowSampler(Sampling(**sampling), range(rows), guide, room, CPU)


def prompts_of(rows: int, held: int) -> Tensor:
    """Prompts inside of the payload of an image in lines of nine bytes."""
    prompts = opened(torch.randint(0, 256, (1, held))).repeat(rows, 1)
    prompts[:, 11:16] = 256
    prompts[:, 16:] = torch.randint(0, 256, (rows, held - 16))
    return prompts


def drawn(model: Megabyte, prompts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """All ids of the rows, and the logits of those that were drawn."""
    decoder = StaticDecoder(model, len(prompts), prompts.shape[1] + count, sampler_of(len(prompts)))
    decoder.begin(prompts, 1)
    logits = []
    for _ in range(count):
        logits.append(decoder.logits.clone())
        decoder.draw(1)
    return decoder.last_ids(prompts.shape[1] + count), torch.stack(logits, dim=1)


@pytest.mark.parametrize(("shape", "option"), CASES)
def test_logits_are_the_uncached(shape: str, option: str) -> None:
    options = options_of(option, shape)
    model = tiny_model(shape, context=56, init_std=0.05, embedding_std=0.5, **options).eval()
    for held in (16, 27):
        ids, logits = drawn(model, prompts_of(3, held), 56 - held)
        with torch.no_grad():
            expected = model.logits(ids, modality=torch.ones_like(ids, dtype=torch.uint8))
        torch.testing.assert_close(logits, expected[:, held:], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("option", ["modern", "all"])
def test_decodes_under_autocast(option: str) -> None:
    model = tiny_model("two", **options_of(option, "two")).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ids, logits = drawn(model, prompts_of(2, 21), 27)
        expected = model.logits(ids, modality=torch.ones_like(ids, dtype=torch.uint8))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected[:, 21:].float(), atol=0.05, rtol=0.0)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def replayed_and_stepped(
    model: Megabyte, prompts: Sequence[Tensor], count: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], list[Any]]:
    """The same rows drawn by replays of recorded steps, and by a `Decoder`."""
    monkeypatch.setattr(static_decoder, "StepGraphs", TapedSteps)
    rows, length = len(prompts[0]), prompts[0].shape[1] + count
    results = []
    for drawer in (StaticRows, SteppedRows):
        sampler = sampler_of(rows, temperature=0.9, top_k=200, min_p=0.001)
        rows_drawn = drawer(model, rows, length, sampler)
        ids = []
        for prompt in prompts:
            rows_drawn.begin(prompt, 1)
            ids += [rows_drawn.draw(n).ids for n in (1, 5, count - 6)]
        results.append(ids)
    return results[0], results[1]


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize(
    ("shape", "option"), [("two", "modern"), ("three", "all"), ("one", "rope")]
)
def test_replays_draw_what_a_decoder_draws(
    shape: str, option: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after another prompt: every tensor of a recorded step is still in its place."""
    options = options_of(option, shape)
    model = tiny_model(shape, context=88, init_std=0.3, **options).eval()
    prompts = [prompts_of(rows, 17), prompts_of(rows, 17)]
    replayed, stepped = replayed_and_stepped(model, prompts, 40, monkeypatch)
    for ours, theirs in zip(replayed, stepped, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("opener", [260, 261, 259])
@pytest.mark.parametrize("option", ["codec_features", "all"])
def test_a_step_waits_for_nothing(option: str, opener: int) -> None:
    model = tiny_model("three", context=88, **options_of(option, "three")).eval()
    prompts = prompts_of(2, 20)
    prompts[:, 0] = opener
    if opener == 261:
        prompts[:, 5:7] = 1  # a channel of big-endian samples
    sampler = sampler_of(2, temperature=0.9, top_k=9, top_p=0.9, min_p=0.01)
    decoder = StaticDecoder(model, 2, 88, sampler)
    decoder.begin(prompts, 1)
    with NoHostReads():
        decoder.draw(68)
    assert decoder.last_ids(68).unique().numel() > 3


def test_compiled_steps_give_the_same_logits_for_any_number_of_rows() -> None:
    """Traced as for a GPU, but run by PyTorch's own operations."""
    model = tiny_model("two", context=56, init_std=0.05, **options_of("modern", "two")).eval()
    for rows in (2, 5):
        prompts = prompts_of(rows, 17)
        logits = []
        for is_compiled in (False, True):
            decoder = StaticDecoder(model, rows, 56, sampler_of(rows))
            if is_compiled:
                decoder.compile("aot_eager")
            decoder.begin(prompts, 1)
            decoder.draw(39)
            logits.append(decoder.logits)
        torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-6)


def test_a_host_read_is_seen() -> None:
    one = torch.ones(1)
    for read in (
        lambda: one.item(),
        lambda: one[one > 0],
        lambda: bool(one),
        lambda: one.nonzero(),
    ):
        with NoHostReads(), pytest.raises(AssertionError, match="on the host"):
            read()


def test_mistakes_are_named() -> None:
    decoder = StaticDecoder(tiny_model("two"), 2, 24, sampler_of(2))
    with pytest.raises(ValueError, match="call begin"):
        decoder.draw(1)
    with pytest.raises(ValueError, match="3 prompts for 2 rows"):
        decoder.begin(torch.zeros(3, 8, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="at least one patch of 4 ids"):
        decoder.begin(torch.zeros(2, 3, dtype=torch.int64), 0)
    decoder.begin(torch.zeros(2, 8, dtype=torch.int64), 0)
    decoder.draw(16)
    with pytest.raises(ValueError, match="holds the decoder's 24 ids"):
        decoder.draw(1)
    with_features = StaticDecoder(tiny_model("two", codec_features=True), 2, 24, sampler_of(2))
    with pytest.raises(ValueError, match="whole preamble"):
        with_features.begin(torch.zeros(2, 8, dtype=torch.int64), 0)

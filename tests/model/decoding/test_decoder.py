"""Cached decoding against the uncached forward, and the decoder's own rules."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_config, tiny_model
from torch import Tensor

from bytelm.model.config import StageConfig
from bytelm.model.decoding import step_layout
from bytelm.model.decoding.cached_stage import CachedStage
from bytelm.model.decoding.decoder import Decoder
from bytelm.model.decoding.step_layout import holds_bf16
from bytelm.model.megabyte import Megabyte


@pytest.mark.parametrize("lengths", [[0, 0, 0], [8, 8, 8], [0, 3, 29], [17, 0, 8], [48, 47, 40]])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cached_logits_are_the_uncached(shape: str, option: str, lengths: list[int]) -> None:
    model = tiny_model(shape, context=56, init_std=0.05, **options_of(option, shape))
    ids = opened(torch.randint(0, 264, (3, 56)))
    modality = torch.randint(0, 3, (3, 56), dtype=torch.uint8)
    before = F.pad(modality, (1, 0))  # a document starts with the head of modality 0
    with torch.no_grad():
        expected = model.logits(ids, modality=modality)
    rows = torch.arange(3)
    decoder = Decoder(model, 3)
    prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    logits = decoder.prefill(prompts, before[rows, lengths])
    while True:
        held = decoder.positions
        torch.testing.assert_close(logits, expected[rows, held], atol=3e-5, rtol=1e-6)
        if held.max() == 55:
            break
        logits = decoder.step(ids[rows, held], before[rows, held + 1])


@pytest.mark.parametrize("option", [o for o in OPTIONS if "modality_heads" not in OPTIONS[o]])
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_prompts_have_the_uncached_logits(shape: str, option: str) -> None:
    """Those of all ids, and the caches behind them are those of `prefill`."""
    model = tiny_model(shape, context=56, init_std=0.05, **options_of(option, shape))
    ids, lengths = opened(torch.randint(0, 264, (3, 56))), [0, 17, 40]
    modality = torch.ones(3, 56, dtype=torch.uint8)
    with torch.no_grad():
        expected = model.logits(ids, modality=modality)
    decoder = Decoder(model, 3)
    prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    for (row,), logits in decoder.prefill_whole(prompts, torch.ones(3)):
        assert len(logits) == lengths[row] + 1
        torch.testing.assert_close(logits, expected[row, : len(logits)], atol=3e-5, rtol=1e-6)
    for step in range(15):
        at = torch.tensor(lengths) + step
        logits = decoder.step(ids[torch.arange(3), at])
        torch.testing.assert_close(logits, expected[torch.arange(3), at + 1], atol=3e-5, rtol=1e-6)


@pytest.mark.parametrize("lengths", [[8, 8, 8], [0, 3, 29]])
@pytest.mark.parametrize("option", ["modern", "all", "attention_window"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_takes_steps_by_modules(shape: str, option: str, lengths: list[int]) -> None:
    model = tiny_model(shape, init_std=0.05, **options_of(option, shape)).double()
    ids, rows = opened(torch.randint(0, 264, (3, 48))), torch.arange(3)
    modality = torch.tensor([[1], [0], [2]], dtype=torch.uint8).expand(3, 48)
    with torch.no_grad():
        expected = model.logits(ids, modality=modality)
    decoder = Decoder(model, 3)
    decoder.prefill([row[:n] for row, n in zip(ids, lengths, strict=True)], modality[:, 0])
    for _ in range(17):
        held = decoder.positions
        logits = decoder.step(ids[rows, held])
        torch.testing.assert_close(logits, expected[rows, held + 1].float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("option", ["modern", "all", "cross_patch_attention"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_with_the_same_prompt_are_those_of_a_row_alone(shape: str, option: str) -> None:
    """The prompt is run once; ids and modalities that differ behind it belong to their rows."""
    model = tiny_model(shape, context=56, init_std=0.05, **options_of(option, shape))
    prompt, other = opened(torch.randint(0, 264, (2, 19)))
    prompts, codes = [prompt, other, prompt, prompt], torch.tensor([1, 1, 1, 2])
    together, following = Decoder(model, 4), torch.randint(0, 256, (20, 4))
    logits = [together.prefill(prompts, codes), *map(together.step, following)]
    for row in range(4):
        alone = Decoder(model, 1)
        expected = [alone.prefill([prompts[row]], codes[row : row + 1])]
        expected += [alone.step(ids[row : row + 1]) for ids in following]
        assert torch.equal(torch.stack(logits)[:, row], torch.cat(expected))


def test_a_new_prefill_forgets_the_old_rows() -> None:
    model = tiny_model("three")
    fresh, used = Decoder(model, 2, 24), Decoder(model, 2, 24)
    used.prefill([torch.arange(24), torch.arange(20)])
    prompts = [torch.tensor([5, 6, 7]), torch.tensor([], dtype=torch.int64)]
    assert torch.equal(used.prefill(prompts), fresh.prefill(prompts))
    for value in range(10):
        ids = torch.tensor([value, 100 + value])
        assert torch.equal(used.step(ids), fresh.step(ids))
    assert used.positions.tolist() == [13, 10]


def test_a_step_runs_only_the_stages_that_reach_a_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("three").double()  # positions of 8, 4 and 1 bytes
    advanced: list[tuple[int, int]] = []  # (bytes of a position, rows) of each stage that ran
    advance = CachedStage.advance

    def recorded(stage: CachedStage, token_input: Tensor, *inputs: Any) -> Tensor:
        advanced.append((stage.position_bytes, len(token_input)))
        return advance(stage, token_input, *inputs)

    monkeypatch.setattr(CachedStage, "advance", recorded)

    def steps(lengths: list[int]) -> list[list[tuple[int, int]]]:
        decoder = Decoder(model, 2)
        decoder.prefill([torch.arange(length) for length in lengths])
        by_step = []
        for _ in range(6):
            decoder.step(torch.zeros(2, dtype=torch.int64))
            by_step.append(list(advanced))
            advanced.clear()
        return by_step

    assert steps([2, 7]) == [  # the rows hold 3 and 8 ids, then 4 and 9, ... up to 8 and 13
        [(8, 1), (4, 1), (1, 2)],
        [(4, 1), (1, 2)],
        [(1, 2)],
        [(1, 2)],
        [(4, 1), (1, 2)],
        [(8, 1), (4, 1), (1, 2)],
    ]
    assert steps([2, 2]) == [
        [(1, 2)],
        [(4, 2), (1, 2)],
        [(1, 2)],
        [(1, 2)],
        [(1, 2)],
        [(8, 2), (4, 2), (1, 2)],
    ]


@pytest.mark.parametrize("lengths", [[12, 12], [12, 5]])
@pytest.mark.parametrize("option", ["untied", "all"])
def test_decodes_under_autocast(option: str, lengths: list[int]) -> None:
    model = tiny_model("two", **options_of(option, "two"))
    ids, rows = opened(torch.randint(0, 256, (2, 24))), torch.arange(2)
    with torch.autocast("cpu", torch.bfloat16):
        decoder = Decoder(model, 2)
        prompts = [row[:n] for row, n in zip(ids, lengths, strict=True)]
        decoder.prefill(prompts, torch.tensor([1, 2]))
        logits = [decoder.step(ids[rows, torch.tensor(lengths) + at]) for at in range(11)]
    modality = torch.tensor([[1], [2]], dtype=torch.uint8).expand(2, 24)
    with torch.no_grad():
        expected = model.logits(ids, modality=modality)
    assert logits[0].dtype == torch.float32
    for row, n in enumerate(lengths):
        decoded = torch.stack([of_step[row] for of_step in logits])
        torch.testing.assert_close(decoded, expected[row, n + 1 : n + 12], atol=0.1, rtol=0.0)


def test_fills_a_row_to_the_last_id_and_no_further() -> None:
    decoder = Decoder(tiny_model("two"), 2, length=10)
    one = torch.zeros(2, dtype=torch.int64)
    decoder.prefill([torch.arange(9), torch.arange(4)])
    assert decoder.step(one).isfinite().all()
    with pytest.raises(ValueError, match="holds the decoder's 10 ids"):
        decoder.step(one)
    assert decoder.positions.tolist() == [10, 5]


def test_mistakes_are_named() -> None:
    model = tiny_model("two", dropout=0.1)
    empty = torch.zeros(0, dtype=torch.int64)
    heads = Decoder(tiny_model("two", tie_embeddings=False, modality_heads=2), 1)
    with pytest.raises(ValueError, match="give the modality"):
        heads.prefill([empty])
    with pytest.raises(ValueError, match=r"model\.eval"):
        Decoder(model, 1)
    model.eval()
    with pytest.raises(ValueError, match="context of 48"):
        Decoder(model, 1, length=49)
    with pytest.raises(ValueError, match="at least 1"):
        Decoder(model, 0)
    decoder = Decoder(model, 2, length=10)
    with pytest.raises(ValueError, match="call prefill"):
        decoder.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 prompts for 2 rows"):
        decoder.prefill([empty])
    with pytest.raises(ValueError, match="11 ids is longer"):
        decoder.prefill([empty, torch.arange(11)])
    decoder.prefill([empty, empty])
    with pytest.raises(ValueError, match="one id for each of 2 rows"):
        decoder.step(torch.zeros(2, 1, dtype=torch.int64))


def test_matrices_in_bf16_give_the_logits_of_the_same_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("two", **options_of("all", "two"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    ids = opened(torch.randint(0, 256, (5, 24)))
    found: list[bool] = []

    def run(rows: int) -> Tensor:
        decoder = Decoder(model, rows)
        decoder.prefill([ids[0, :0]] * rows, torch.zeros(rows, dtype=torch.int64))
        return torch.stack([decoder.step(ids[:rows, at]) for at in range(24)])

    def note(numbers: Tensor) -> bool:
        found.append(holds_bf16(numbers))
        return found[-1]

    monkeypatch.setattr(step_layout, "holds_bf16", note)
    in_bf16 = [run(1), run(5)]
    assert found
    assert all(found)
    monkeypatch.setattr(step_layout, "holds_bf16", lambda numbers: False)
    assert torch.equal(in_bf16[0], run(1))
    assert torch.equal(in_bf16[1], run(5))


WIDE: dict[str, Any] = {
    "stages": (StageConfig(384, 2, 6), StageConfig(1088, 1, 17)),
    "patch_sizes": (8,),
    "ngram_table_size": 50,
}
"""A model with n-grams and wide stages, whose matrices have many panels."""


@pytest.mark.parametrize("lengths", [[17] * 21, [0, 3, 24, 31, 8, 8, 1] * 3])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", [*SHAPES, "wide"])
def test_a_row_is_the_same_alone(shape: str, option: str, lengths: list[int]) -> None:
    """Logits are bit-identical alone, among three and among 21."""
    if shape == "wide" and option not in ("paper", "all"):
        pytest.skip("wide stages differ in their products alone")
    if shape == "wide":
        config = replace(tiny_config("two", **OPTIONS[option], init_std=0.05), **WIDE)
        model = Megabyte(config)
    else:
        model = tiny_model(shape, **options_of(option, shape))
    ids = opened(torch.randint(0, 256, (21, 48)))
    modality = torch.randint(0, 3, (21,))

    def run(rows: list[int]) -> Tensor:
        decoder = Decoder(model, len(rows))
        prompts = [ids[row, : lengths[row]] for row in rows]
        logits = [decoder.prefill(prompts, modality[rows])]
        logits += [decoder.step(ids[rows, at]) for at in range(17)]
        return torch.stack(logits)

    together = run([*range(21)])
    for rows in ([0], [3], [20], [2, 9, 17]):
        assert torch.equal(run(rows), together[:, rows])

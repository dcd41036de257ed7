"""Drawing ids: greedy, temperature, top-p, masks, seeds."""

import pytest
import torch
from torch import Tensor

from bytelm.model.sampling import sample


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _counts(logits: Tensor, draws: int, **options: float | Tensor | None) -> Tensor:
    """How often each id of one row's logits is drawn."""
    options = {"temperature": 1.0, "top_p": 1.0, **options}
    rows = logits.expand(draws, -1)
    ids = sample(rows, generators=_generators(*range(draws)), **options)  # type: ignore[arg-type]
    return torch.bincount(ids, minlength=logits.shape[-1])


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.9]])
    assert sample(logits, 0.0, 1.0, _generators(0, 1)).tolist() == [1, 0]
    allowed = torch.tensor([[True, False, True], [False, True, True]])
    assert sample(logits, 0.0, 1.0, _generators(0, 1), allowed).tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    drawn = _counts(logits, 4_000, temperature=temperature) / 4_000
    expected = (logits / temperature).softmax(0)
    torch.testing.assert_close(drawn, expected, atol=0.025, rtol=0.0)


def test_top_p_keeps_the_fewest_ids_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert _counts(logits, 500, top_p=0.5).nonzero().flatten().tolist() == [1]
    assert _counts(logits, 500, top_p=0.51).nonzero().flatten().tolist() == [1, 2]
    drawn = _counts(logits, 4_000, top_p=0.8) / 4_000
    torch.testing.assert_close(drawn, torch.tensor([0.0, 0.625, 0.375, 0.0]), atol=0.025, rtol=0.0)


def test_only_allowed_ids_are_drawn() -> None:
    allowed = torch.tensor([[True, False, True, False]]).expand(500, -1)
    drawn = _counts(torch.tensor([0.0, 50.0, 0.0, 50.0]), 500, allowed=allowed)
    assert drawn[[1, 3]].tolist() == [0, 0]
    assert drawn[[0, 2]].min() > 150


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.tensor([1.0, 1.001, -torch.inf, 0.0])
    assert _counts(logits, 50, temperature=1e-12).tolist() == [0, 50, 0, 0]


def test_a_row_depends_only_on_its_own_generator() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 264)
    together = sample(logits, 1.0, 0.9, _generators(3, 1, 4, 1))
    for row, seed in enumerate([3, 1, 4, 1]):
        alone = sample(logits[row : row + 1], 1.0, 0.9, _generators(seed))
        assert alone.item() == together[row].item()


def test_successive_draws_differ_and_a_seed_repeats_them() -> None:
    logits = torch.zeros(1, 264)

    def draws() -> list[int]:
        generators = _generators(7)
        return [int(sample(logits, 1.0, 1.0, generators)) for _ in range(20)]

    assert draws() == draws()
    assert len(set(draws())) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"generators": []}, "0 generators for 1 rows"),
        ({"allowed": torch.zeros(1, 3, dtype=torch.bool)}, "allows no id"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    good = {"temperature": 1.0, "top_p": 1.0, "generators": _generators(0)}
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 3), **(good | options))

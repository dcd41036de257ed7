"""Drawing ids: greedy, temperature, top-k, top-p, min-p, masks, seeds."""

import pytest
import torch
from torch import Tensor

from bytelm.model.decoding.sampling import (
    NOISE_BLOCK,
    Noise,
    Sampling,
    sample,
    sample_by_tensors,
)

CPU = torch.device("cpu")


def _counts(logits: Tensor, draws: int, allowed: Tensor | None = None, **options: float) -> Tensor:
    """Draws of each id from one row's logits."""
    noise = Noise(range(draws), CPU).draw()
    ids = sample(logits.expand(draws, -1), Sampling(**options), noise, allowed)  # type: ignore[arg-type]
    return torch.bincount(ids, minlength=logits.shape[-1])


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.9]])
    greedy, noise = Sampling(temperature=0.0), torch.zeros(2)
    assert sample(logits, greedy, noise).tolist() == [1, 0]
    allowed = torch.tensor([[True, False, True], [False, True, True]])
    assert sample(logits, greedy, noise, allowed).tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    drawn = _counts(logits, 4_000, temperature=temperature) / 4_000
    expected = (logits / temperature).softmax(0)
    torch.testing.assert_close(drawn, expected, atol=0.025, rtol=0.0)


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert _counts(logits, 500, top_k=1).count_nonzero() == 1, "one of two equals"
    assert _counts(logits, 500, top_k=2).nonzero().flatten().tolist() == [1, 3]
    assert _counts(logits, 500, top_k=9).count_nonzero() == 4
    drawn = _counts(logits, 4_000, top_k=3) / 4_000
    expected = logits.masked_fill(torch.arange(4) == 0, -torch.inf).softmax(0)
    torch.testing.assert_close(drawn, expected, atol=0.025, rtol=0.0)


def test_top_p_keeps_the_fewest_ids_that_reach_it() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    assert _counts(logits, 500, top_p=0.5).nonzero().flatten().tolist() == [1]
    assert _counts(logits, 500, top_p=0.51).nonzero().flatten().tolist() == [1, 2]
    drawn = _counts(logits, 4_000, top_p=0.8) / 4_000
    torch.testing.assert_close(drawn, torch.tensor([0.0, 0.625, 0.375, 0.0]), atol=0.025, rtol=0.0)


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    logits = torch.tensor([0.1, 0.5, 0.24, 0.16]).log()
    assert _counts(logits, 500, min_p=1.0).nonzero().flatten().tolist() == [1]
    assert _counts(logits, 500, min_p=0.4).nonzero().flatten().tolist() == [1, 2]
    assert _counts(logits, 500, min_p=0.15).count_nonzero() == 4


def test_limits_apply_together() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    drawn = _counts(logits, 500, top_k=3, top_p=0.7)
    assert drawn.nonzero().flatten().tolist() == [0, 1], "0.4 / 0.9 and 0.3 / 0.9 reach 0.7"


def test_only_allowed_ids_are_drawn() -> None:
    allowed = torch.tensor([[True, False, True, False]]).expand(500, -1)
    logits = torch.tensor([0.0, 50.0, 0.0, 50.0])
    for options in ({}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.5}):
        drawn = _counts(logits, 500, allowed, **options)
        assert drawn[[1, 3]].tolist() == [0, 0]
        assert drawn[[0, 2]].min() > 150


def test_the_smallest_and_largest_noise_draw_ids_of_positive_probability() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1)
    noise = torch.tensor([0.0, 1.0 - 2.0**-32], dtype=torch.float64)
    assert sample(logits, Sampling(), noise).tolist() == [1, 2]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.tensor([1.0, 1.001, -torch.inf, 0.0])
    assert _counts(logits, 50, temperature=1e-12).tolist() == [0, 50, 0, 0]


def test_a_row_depends_only_on_its_own_seed() -> None:
    torch.manual_seed(0)
    logits = torch.randn(NOISE_BLOCK + 9, 4, 264)
    sampling, seeds = Sampling(top_p=0.9, top_k=50, min_p=0.01), [3, 1, 4, 1]
    noise = Noise(seeds, CPU)
    together = torch.stack([sample(step, sampling, noise.draw()) for step in logits])
    for row, seed in enumerate(seeds):
        noise = Noise([seed], CPU)
        alone = [sample(step[row : row + 1], sampling, noise.draw()).item() for step in logits]
        assert together[:, row].tolist() == alone


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_k=12),
        Sampling(top_p=0.9),
        Sampling(min_p=0.02),
        Sampling(temperature=1.3, top_k=100, top_p=0.8, min_p=0.01),
    ],
)
def test_the_kernel_draws_what_tensors_draw(sampling: Sampling, scale: float) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(300, 264)
    allowed = torch.rand(300, 264) < 0.5
    noise = Noise(range(300), CPU).draw()
    for mask in (None, allowed):
        expected = sample_by_tensors(logits, sampling, noise, mask)
        assert torch.equal(sample(logits, sampling, noise, mask), expected)


def test_successive_draws_differ_and_a_seed_repeats_them() -> None:
    logits = torch.zeros(1, 264)

    def draws() -> list[int]:
        noise = Noise([7], CPU)
        return [int(sample(logits, Sampling(), noise.draw())) for _ in range(20)]

    assert draws() == draws()
    assert len(set(draws())) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
    ],
)
def test_mistakes_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]

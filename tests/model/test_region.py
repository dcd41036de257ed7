"""Compiled regions: the values of the eager model, compiled once whatever the documents are.

Most tests take the backend `aot_eager`: all of the compiler but the kernels that it writes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_model
from torch import Tensor
from torch._dynamo.utils import counters

from bytelm.model.layers import UnitRMS, unit_rms
from bytelm.model.megabyte import Megabyte
from bytelm.model.region import Region

ROWS, LENGTH = 2, 48


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, documents and modalities of rows whose documents lie anywhere."""
    torch.manual_seed(seed)
    ids = opened(torch.randint(264, (ROWS, LENGTH)))
    opens = torch.rand(ROWS, LENGTH // 8) < torch.rand(())
    modality = torch.randint(3, (ROWS, LENGTH), dtype=torch.uint8)
    return ids, opens.cumsum(1).int(), modality


def nats_and_gradients(model: Megabyte, seed: int = 0) -> dict[str, Tensor]:
    """Nats of a random batch, and the gradient of their mean by parameter."""
    model.zero_grad()
    batch = random_batch(seed)
    torch.manual_seed(seed)  # of dropout
    nats = model(*batch)
    nats.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"nats": nats.detach(), **gradients}


def assert_compiled_is_eager(model: Megabyte, backend: str, atol: float = 1e-5) -> None:
    expected = nats_and_gradients(copy.deepcopy(model))
    model.compile_regions(backend)
    torch.testing.assert_close(nats_and_gradients(model), expected, atol=atol, rtol=1e-5)
    assert graphs() > 0


@pytest.mark.parametrize(
    ("shape", "option"),
    [
        ("one", "all"),
        ("two", "paper"),
        ("three", "paper"),
        ("four", "all"),
        ("projected", "modern"),
    ],
)
def test_every_number_of_stages_has_the_eager_nats_and_gradients(shape: str, option: str) -> None:
    assert_compiled_is_eager(tiny_model(shape, **options_of(option, shape)), "aot_eager")


@pytest.mark.long
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_option_has_the_eager_nats_and_gradients(shape: str, option: str) -> None:
    assert_compiled_is_eager(tiny_model(shape, **options_of(option, shape)), "aot_eager")


def test_dropout_and_checkpointing_have_the_eager_nats_and_gradients() -> None:
    """Recomputed with the noise of the forward pass, in chunks of which the last one is shorter."""
    options = options_of("paper", "two") | {"local_chunk": 5, "activation_checkpointing": True}
    assert_compiled_is_eager(tiny_model("two", **options, dropout=0.3), "aot_eager")


def test_the_compilers_kernels_have_the_eager_nats_and_gradients() -> None:
    options = {"rope": True, "qk_norm": True, "swiglu": True}
    assert_compiled_is_eager(tiny_model("one", **options), "inductor")


def test_fifty_layouts_compile_nothing_after_the_first_one() -> None:
    """Under autocast to bf16, checkpointed, with evaluations between the steps."""
    options = {"rope": True, "qk_norm": True, "cross_patch_attention": 4}
    memory = {"local_chunk": 8, "activation_checkpointing": True}
    model = tiny_model("two", **options, **memory)
    model.compile_regions("aot_eager")
    compiled = 0
    for seed in range(50):
        with torch.autocast("cpu", torch.bfloat16):
            nats_and_gradients(model, seed)
        compiled = compiled or graphs()
        if seed % 10 == 0:
            ids, document, modality = random_batch(seed)
            with torch.no_grad():
                model(ids[: seed % 3 + 1], document[: seed % 3 + 1], modality[: seed % 3 + 1])
        assert graphs() == compiled, f"compiled again for layout {seed}"
    assert 0 < compiled <= 26


def test_bf16_compiled_is_as_far_from_fp32_as_eager_is() -> None:
    model = tiny_model("one", **options_of("modern", "one"))
    exact = nats_and_gradients(model)["nats"]
    compiled = copy.deepcopy(model)
    compiled.compile_regions("aot_eager")
    errors = []
    for either in (model, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((nats_and_gradients(either)["nats"] - exact).abs().mean())
    assert 0 < errors[1] < 1.2 * errors[0]


def test_blocks_of_a_stage_share_their_graphs() -> None:
    """The first block's input has the same shape as that of the others."""
    options: dict[str, Any] = options_of("paper", "one")
    model = tiny_model("one", **options)
    assert len(model.stages[0].blocks) == 2
    model.compile_regions("aot_eager")
    nats_and_gradients(model)
    assert graphs() == 5  # embed, before attention, after it, close, cross-entropy


def test_evaluation_is_eager() -> None:
    model = tiny_model("one", **options_of("modern", "one"))
    with torch.no_grad():
        expected = model(*random_batch(0))
        model.compile_regions("aot_eager")
        assert torch.equal(model(*random_batch(0)), expected)
    assert graphs() == 0


def test_a_compiled_model_keeps_its_parameters_names_and_can_be_copied() -> None:
    model = tiny_model("one", **options_of("modern", "one"))
    names = list(model.state_dict())
    model.compile_regions("aot_eager")
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    expected = nats_and_gradients(copied)["nats"]
    plain = tiny_model("one", **options_of("modern", "one"))
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(nats_and_gradients(plain)["nats"], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(nats_and_gradients(model)["nats"], expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_formula_of_the_unit_norm_is_the_hand_written_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 7, 3, 8).to(dtype)
    region = Region(unit_rms)
    region.compile("aot_eager")
    results = []
    for function in (UnitRMS.apply, region):
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        output.backward(gradient)
        results.append((output.detach(), leaf.grad))
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)
    assert graphs() == 1


def test_a_region_that_reads_a_value_is_refused() -> None:
    """Rather than cut in two, which would synchronise with the device in each step."""
    region = Region(lambda x: x * 2 if x.sum() > 0 else x)
    region.compile("aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        region(torch.ones(3, requires_grad=True))

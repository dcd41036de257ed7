"""The way of a GPU through the model: it waits for nothing, and has the numbers of a CPU's way.

No GPU is needed. Fake tensors on one show what forward passes would run; with attention in plain
products in place of the kernels, a CPU runs the same code and its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.host_reads import HostReadError, NoHostReads
from helpers.plain_attention import plain_short_attention, plain_varlen_attn
from helpers.tiny_models import OPTIONS, SHAPES, opened, options_of, tiny_config, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from bytelm.model.attention_context import PackedContext
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.layout import Layout
from bytelm.model.megabyte import Megabyte

DOCUMENT = torch.tensor(
    [[0, 0, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3], [4, 4, 4, 5, -1, -1]], dtype=torch.int32
)
MODALITY = (torch.arange(144) // 8 % 3).reshape(3, 48).to(torch.uint8)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Layout]


def inputs() -> Inputs:
    """A packed batch as a data worker gives it: documents of 1 to 6 patches of 8 ids."""
    generator = torch.Generator().manual_seed(3)
    ids = opened(torch.randint(0, 256, (3, 48), generator=generator), at=16)
    features = compute_codec_features(ids, DOCUMENT, 8)
    return ids, DOCUMENT, MODALITY, features, Layout.of(DOCUMENT)


def settings(option: str, shape: str) -> dict[str, Any]:
    """The option, with checkpointing and chunks for some of them."""
    number = list(OPTIONS).index(option)
    checkpointing = {"activation_checkpointing": number % 2 == 1, "local_chunk": number % 3 * 2}
    return options_of(option, shape) | checkpointing


def run_on_fake_gpu(shape: str, option: str) -> tuple[Megabyte, Tensor, set[str]]:
    """A model in bf16 of fake tensors on a GPU, its nats, and the operators that it ran."""

    def fake(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    ids, document, modality, features, layout = inputs()
    with torch.device("meta"):
        model = Megabyte(tiny_config(shape, **settings(option, shape))).bfloat16()
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(fake(weight)))
        model.tie_output()
        batch = *map(fake, (ids, document, modality, features)), layout.map(fake)
        with NoHostReads() as mode:
            nats = model(*batch)
    return model, nats, mode.operators


CASES = [
    *[("three", option) for option in OPTIONS],
    *[(shape, option) for shape in SHAPES for option in ("modern", "all") if shape != "three"],
]


@pytest.mark.parametrize(("shape", "option"), CASES)
def test_a_forward_pass_on_a_gpu_reads_no_value_and_runs_its_kernels(
    shape: str, option: str
) -> None:
    model, nats, operators = run_on_fake_gpu(shape, option)
    assert nats.device.type == "cuda"
    assert nats.shape == (3, 48)
    # FlashAttention takes heads of a multiple of 8 channels.
    has_flash = model.stages[0].channels % 8 == 0
    assert ("torch_attn::_varlen_attn" in operators) == has_flash
    assert ("bytelm::short_attention" in operators) == (shape != "one")


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors say that they are on a GPU, and plain products stand in for its kernels."""
    context = "bytelm.model.attention_context"
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(f"{context}.takes_documents", lambda q: True)
    monkeypatch.setattr(f"{context}.is_short", lambda q, n: True)
    monkeypatch.setattr(f"{context}.short_attention", plain_short_attention)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", unread(plain_varlen_attn))


def unread(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The stand-in of a kernel, which may read values, as the kernel does on the device."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        with NoHostReads.allowed():
            return function(*args, **kwargs)

    return call


def nats_and_gradients(model: Megabyte, batch: Inputs) -> list[Tensor]:
    """Nats, and the gradients of every parameter of the step's loss."""
    nats = model(*batch)
    nats.where(MODALITY > 0, 0.0).sum().backward()
    return [nats.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_gpu_has_the_nats_and_gradients_of_a_cpu_and_reads_no_value(
    shape: str, option: str, request: pytest.FixtureRequest
) -> None:
    options = settings(option, shape)
    expected = nats_and_gradients(tiny_model(shape, **options).double(), inputs())
    model, batch = tiny_model(shape, **options).double(), inputs()
    request.getfixturevalue("_as_on_a_gpu")
    with NoHostReads():
        found = nats_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.usefixtures("_as_on_a_gpu")
def test_documents_in_one_call_have_the_attention_of_their_groups(window: int) -> None:
    groups = [(3, 1), (2, 4), (1, 9), (2, 20)]
    lengths = [length for count, length in groups for _ in range(count)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v, gradient = torch.randn(4, sum(lengths), 2, 8)
    tensors = [x.requires_grad_() for x in (q, k, v)]
    outputs = [
        PackedContext(groups, window, cu_seqlens).attend(*tensors),
        PackedContext(groups, window)._attend_by_group(*tensors),
    ]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0.0)
    grads = [torch.autograd.grad(output, tensors, gradient) for output in outputs]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: int(x.max()),
        lambda x: x.tolist(),
        lambda x: bool(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.bincount(),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x),
    ],
)
def test_a_planted_read_is_found(
    read: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage_0 = Megabyte._run_stage_0

    def reading(self: Megabyte, patches: Any, context: Any) -> Tensor:
        read(patches.position)
        return run_stage_0(self, patches, context)

    run_on_fake_gpu("two", "paper")
    monkeypatch.setattr(Megabyte, "_run_stage_0", reading)
    with pytest.raises((HostReadError, DataDependentOutputException)):
        run_on_fake_gpu("two", "paper")


def test_a_planted_copy_to_the_host_is_found() -> None:
    with FakeTensorMode(), NoHostReads():
        x = torch.empty(3, device="cuda")
        with pytest.raises(HostReadError):
            x.cpu()
        with pytest.raises(HostReadError):
            x.to("cpu", non_blocking=True)
        with pytest.raises(HostReadError):
            torch.empty(3).to("cuda")


def test_a_forward_pass_that_makes_its_layout_reads_values() -> None:
    ids, document, modality, features, _ = inputs()
    with pytest.raises(HostReadError), NoHostReads():
        tiny_model("two")(ids, document, modality, features)

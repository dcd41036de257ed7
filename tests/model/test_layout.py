"""The order of patches by document: against its definition, refined, and on its way to a GPU."""

from __future__ import annotations

import pytest
import torch
from helpers.host_reads import HostReadError, NoHostReads
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bytelm.model.layout import BYTES_PER_PATCH, Layout

ROWS = st.integers(1, 7).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-1, 3), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


def expected(document: list[list[int]]) -> Layout:
    """The layout by its definition."""
    runs: list[list[int]] = []
    for row, numbers in enumerate(document):
        for patch, number in enumerate(numbers):
            if patch == 0 or number != numbers[patch - 1]:
                runs.append([])
            runs[-1].append(row * len(numbers) + patch)
    runs.sort(key=len)
    lengths = [len(run) for run in runs]
    return Layout(
        groups=[(lengths.count(length), length) for length in sorted(set(lengths))],
        order=torch.tensor([patch for run in runs for patch in run]),
        position=torch.tensor([position for run in runs for position in range(len(run))]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
    )


def assert_same(layout: Layout, other: Layout) -> None:
    assert list(layout.groups) == list(other.groups)
    for name in ("order", "position", "cu_seqlens"):
        ours, theirs = getattr(layout, name), getattr(other, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name


@given(ROWS)
def test_documents_lie_one_after_another_by_length(document: list[list[int]]) -> None:
    assert_same(Layout.of(torch.tensor(document)), expected(document))


@given(ROWS, st.integers(1, 4))
def test_a_layout_of_blocks_refines_to_that_of_their_patches(
    document: list[list[int]], parts: int
) -> None:
    blocks = torch.tensor(document)
    patches = blocks.repeat_interleave(parts, dim=1)
    assert_same(Layout.of(blocks).refined(parts), Layout.of(patches))


def test_the_bytes_of_a_patch_are_those_that_the_loader_counts() -> None:
    layout = Layout.of(torch.arange(100).view(2, 50))
    tensors = layout.order, layout.position, layout.cu_seqlens[1:]
    assert sum(x.nbytes for x in tensors) == 100 * BYTES_PER_PATCH


def test_a_layout_refines_on_a_gpu_without_a_wait_and_is_made_with_one() -> None:
    layout = Layout.of(torch.tensor([[0, 0, 1]]))

    def on_gpu(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype).to("cuda", non_blocking=True)

    with FakeTensorMode(), NoHostReads():
        assert layout.map(on_gpu).refined(3).order.is_cuda
        with pytest.raises(HostReadError):
            Layout.of(torch.zeros(1, 3, device="cuda"))

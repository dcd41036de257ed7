"""Muon against PyTorch's, and the way of matrices between ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from helpers.tiny_models import tiny_model
from torch import Tensor

from bytelm.pipelines.training.muon import Muon
from bytelm.pipelines.training.muon_sharding import MatrixShards
from bytelm.pipelines.training.optimizer import hidden_matrices

SHAPES = [torch.Size(s) for s in ((6, 4), (4, 6), (5, 5), (6, 4), (1, 3), (40, 3))]


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_in_bfloat16_is_that_of_torch(shape: tuple[int, int]) -> None:
    """Several matrices of one shape, as a batch, five steps of the same gradients."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours, theirs = ([s.clone().requires_grad_() for s in starts] for _ in range(2))
    rest = [torch.zeros(1, requires_grad=True)]
    muon = Muon(ours, rest, torch.bfloat16, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(shape, generator=generator)
            other.grad = own.grad.clone()
        muon.step()
        reference.step()
    for own, other, start in zip(ours, theirs, starts, strict=True):
        assert (own - start).abs().mean() > 0.01
        torch.testing.assert_close(own, other, rtol=0, atol=1e-4)


def test_tables_heads_and_vectors_are_no_hidden_matrices() -> None:
    options = {"tie_embeddings": False, "ngram_table_size": 50, "conv_patch_encoder": True}
    model = tiny_model("projected", **options)
    taken = {id(p) for p in hidden_matrices(model)}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert all(dict(model.named_parameters())[name].ndim == 2 for name in names)
    assert {name.split(".")[2] for name in names} == {
        "blocks",
        "parent",
        "patch_in",
        "patch_out",
        "ngram_in",
    }
    rest = {name for name, _ in model.named_parameters()} - names
    assert {"lm_head.weight", "stages.0.byte_embed.weight", "stages.0.norm.weight"} <= rest


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_matrices_cross_ranks_whole(ranks: int, tmp_path: Path) -> None:
    """ZeRO 1's and ZeRO 3's slices, where ranks hold nothing, or a matrix lies on three ranks."""
    torch.multiprocessing.spawn(_send_matrices, (ranks, tmp_path / "store"), ranks)


def _send_matrices(rank: int, ranks: int, store: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    matrices = [torch.arange(s.numel()).view(s) + 1000.0 * i for i, s in enumerate(SHAPES)]
    where = ranks, rank, torch.device("cpu")
    stream = torch.cat([m.flatten() for m in matrices])
    size = -(-len(stream) // ranks) + 10
    stream = torch.nn.functional.pad(stream, (0, ranks * size - len(stream)))
    cuts = [
        torch.nn.functional.pad(m.flatten(), (0, -m.numel() % ranks)).chunk(ranks)[rank]
        for m in matrices
    ]
    for slices, flat in (
        (
            MatrixShards.from_flat_partition(SHAPES, size, *where),
            stream[rank * size : (rank + 1) * size],
        ),
        (MatrixShards.from_padded_parts(SHAPES, *where), torch.cat(cuts)),
    ):
        seen: list[Tensor] = []

        def doubled(whole: list[Tensor], seen: list[Tensor] = seen) -> list[Tensor]:
            seen += whole
            return [2 * m for m in whole]

        results = slices.map_whole_matrices(doubled, flat)
        parts = slices.local_parts(flat)
        for result, part in zip(results, parts, strict=True):
            assert torch.equal(result, 2 * part)
        assert all(any(torch.equal(m, known) for known in matrices) for m in seen)
        counts = torch.tensor([len(seen), sum(len(part) for part in parts)])
        dist.all_reduce(counts)
        assert counts.tolist() == [len(matrices), sum(m.numel() for m in matrices)]
    dist.barrier()
    dist.destroy_process_group()  # threads of a group that is left abort the process now and then

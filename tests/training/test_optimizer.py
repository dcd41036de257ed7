"""Muon equals PyTorch's, and matrices travel between ranks whole."""

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
    """Three matrices of one shape, computed as a batch, take five steps of the same gradients."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours, theirs = ([s.clone().requires_grad_() for s in starts] for _ in range(2))
    rest = [torch.zeros(1, requires_grad=True)]
    muon = Muon(ours, rest, torch.bfloat16, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(5):
        for p, reference_p in zip(ours, theirs, strict=True):
            p.grad = torch.randn(shape, generator=generator)
            reference_p.grad = p.grad.clone()
        muon.step()
        reference.step()
    for p, reference_p, start in zip(ours, theirs, starts, strict=True):
        assert (p - start).abs().mean() > 0.01
        torch.testing.assert_close(p, reference_p, rtol=0, atol=1e-4)


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
    """In the layouts of ZeRO 1 and ZeRO 3, with ranks that hold nothing and a matrix on three."""
    torch.multiprocessing.spawn(_send_matrices, (ranks, tmp_path / "store"), ranks)


def _send_matrices(rank: int, ranks: int, store: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=ranks)
    matrices = [torch.arange(s.numel()).view(s) + 1000.0 * i for i, s in enumerate(SHAPES)]
    this_rank = ranks, rank, torch.device("cpu")
    stream = torch.cat([m.flatten() for m in matrices])
    size = -(-len(stream) // ranks) + 10
    stream = torch.nn.functional.pad(stream, (0, ranks * size - len(stream)))
    cuts = [
        torch.nn.functional.pad(m.flatten(), (0, -m.numel() % ranks)).chunk(ranks)[rank]
        for m in matrices
    ]
    for shards, flat in (
        (
            MatrixShards.from_flat_partition(SHAPES, size, *this_rank),
            stream[rank * size : (rank + 1) * size],
        ),
        (MatrixShards.from_padded_parts(SHAPES, *this_rank), torch.cat(cuts)),
    ):
        received: list[Tensor] = []

        def double(owned: list[Tensor], received: list[Tensor] = received) -> list[Tensor]:
            received += owned
            return [2 * m for m in owned]

        results = shards.map_whole_matrices(double, flat)
        parts = shards.local_parts(flat)
        for result, part in zip(results, parts, strict=True):
            assert torch.equal(result, 2 * part)
        assert all(any(torch.equal(m, matrix) for matrix in matrices) for m in received)
        counts = torch.tensor([len(received), sum(len(part) for part in parts)])
        dist.all_reduce(counts)
        assert counts.tolist() == [len(matrices), sum(m.numel() for m in matrices)]
    dist.barrier()
    dist.destroy_process_group()  # threads of a group that is left abort the process now and then

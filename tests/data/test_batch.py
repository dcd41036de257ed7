"""A batch on its way to a GPU."""

from __future__ import annotations

import torch
from helpers.host_reads import NoHostReads
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bytelm.model.layout import Layout
from bytelm.pipelines.data.batch import Batch


def test_the_inputs_and_the_loss_of_a_step_go_to_a_gpu_without_a_wait() -> None:
    layout = Layout.of(torch.tensor([[0, 0, 1], [2, -1, -1]], dtype=torch.int32))
    with FakeTensorMode(), NoHostReads():
        batch = Batch(
            ids=torch.zeros(2, 24, dtype=torch.uint16),
            patch_modality=torch.zeros(2, 3, dtype=torch.uint8),
            document=torch.zeros(2, 3, dtype=torch.int32),
            role=torch.zeros(2, 24, dtype=torch.uint8),
            origins=[None, None],
            damage=[],
            codec_features=torch.zeros(2, 24, 9, dtype=torch.int16),
            layout=layout.map(lambda x: torch.empty(x.shape, dtype=x.dtype)),
        ).to(torch.device("cuda"))
        *tensors, on_gpu = batch.inputs(torch.device("cuda"))
        nats = torch.zeros(2, 24, device="cuda")
        loss = nats.where(batch.scored, 0.0).sum()
    assert on_gpu is not None
    inputs: list[Tensor | None] = [*tensors, on_gpu.order, on_gpu.position, on_gpu.cu_seqlens, loss]
    assert all(x is not None and x.is_cuda for x in inputs)
    assert tensors[2] is not None
    assert tensors[2].shape == (2, 24)

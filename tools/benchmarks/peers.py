"""Models of one size from three code bases, each behind the same training step.

`bytelm` is ours, with the paper's feed-forward and an output of its own; `megabyte-pytorch` is
MEGABYTE-pytorch 0.3.6 and `mblm` is mblm 0.4.2, both from PyPI (`pip install 'bytelm[bench]'`).
All have the same stages, context, vocabulary and optimizer; what remains different is theirs:
both peers prepend a start token to every sequence (9 positions for 8 bytes), shift tokens, use
GELU, biases and a norm around the patch embedding; MEGABYTE-pytorch has one number of heads for
all stages (8 of 64 channels), so that its local attention is wider than its stage.

    P   bytes of a patch
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.runtime.allocator import keep_freed_memory

VOCAB_SIZE = 264
PAD_ID = 256
HEAD = 64
"""Channels of a head."""


@dataclass(frozen=True)
class Shape:
    """What all contestants share: two stages, global and local."""

    context: int
    patch: int
    global_width: int
    global_layers: int
    local_width: int
    local_layers: int

    @property
    def patches(self) -> int:
        return self.context // self.patch


def our_config(shape: Shape) -> ModelConfig:
    """The shape as ours: no checkpointing, all patches at once."""
    return ModelConfig(
        stages=(
            StageConfig(shape.global_width, shape.global_layers, shape.global_width // HEAD),
            StageConfig(shape.local_width, shape.local_layers, shape.local_width // HEAD),
        ),
        patch_sizes=(shape.patch,),
        context=shape.context,
        vocab_size=VOCAB_SIZE,
        pad_id=PAD_ID,
        tie_embeddings=False,
        embedding_std=1.0,
        init_std=0.05,
    )


def checkpointed(config: ModelConfig) -> ModelConfig:
    """The same with checkpointing, its local stage and loss in chunks of CHUNK_BYTES."""
    chunk = max(1, CHUNK_BYTES // config.patch)
    return replace(config, activation_checkpointing=True, local_chunk=chunk)


class Contestant:
    """A model and its optimizer; `step` is one whole training step of one row."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        self.model = model.train()
        self.loss = loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, ids: Tensor) -> float:
        """Forward in bf16, backward, clip, update; ids [1, T]. Returns nats per byte."""
        loss = self.backward(ids)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def backward(self, ids: Tensor) -> Tensor:
        """Forward and backward; returns the loss."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = self.loss(ids)
        loss.backward()
        return loss

    def make_state(self) -> None:
        """Lets the optimizer make its state, which it does in its first step.

        One parameter after the other, so that no memory stays behind that a step would use.
        """
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
            parameter.grad = None

    def counted_flops(self, ids: Tensor) -> int:
        """Of forward and backward, as PyTorch counts them: 2 for each multiply-add of a product.

        Attention by PyTorch's kernel for CPUs, for which its counter has no entry, counts all
        pairs of places, and twice as much in the backward pass as in the forward. For ours take
        `training_flops_per_byte`, which counts the same of the model's equations.
        """
        ops = torch.ops.aten
        flops_of = {
            ops._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            ops._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        }
        with FlopCounterMode(display=False, custom_mapping=flops_of) as counter:
            self.backward(ids)
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def _attention_flops(q: list[int], k: list[int], v: list[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(
    _: object, q: list[int], k: list[int], v: list[int], *__: object, **___: object
) -> int:
    return 2 * sdpa_flop_count(q, k, v)


def build(name: str, shape: Shape, *, checkpointing: bool = False) -> Contestant:
    """The contestant `name` of NAMES.

    checkpointing: as far as the code base has it: ours by chunk and layer, mblm's by chunk of the
        local stage, none in MEGABYTE-pytorch.
    """
    torch.manual_seed(0)
    return _BUILDERS[name](shape, checkpointing)


def keep_memory(name: str) -> None:
    """Ours keeps freed memory, as `bytelm train` does; to be called first in a process of its own.

    The peers do not: it slows PyTorch's own attention down.
    """
    if name == "bytelm":
        keep_freed_memory()


def _bytelm(shape: Shape, checkpointing: bool) -> Contestant:
    config = our_config(shape)
    model = Megabyte(checkpointed(config) if checkpointing else config)
    document = torch.zeros(1, 1, dtype=torch.int32)

    def loss(ids: Tensor) -> Tensor:
        return model(ids, document, torch.zeros_like(ids, dtype=torch.uint8)).mean()

    return Contestant(model, loss)


def megabyte_pytorch(shape: Shape, *, rotary: bool = False) -> nn.Module:
    """MEGABYTE-pytorch of a shape; its one number of heads is that of the global width.

    rotary: turns queries and keys by their place (`rel_pos`), which is off by default.
    """
    from MEGABYTE_pytorch import MEGABYTE

    return MEGABYTE(
        num_tokens=VOCAB_SIZE,
        dim=(shape.global_width, shape.local_width),
        depth=(shape.global_layers, shape.local_layers),
        max_seq_len=(shape.patches, shape.patch),
        heads=shape.global_width // HEAD,
        pad_id=PAD_ID,
        rel_pos=rotary,
        flash_attn=True,
    )


def mblm(shape: Shape, *, rotary: bool = False, chunks: int | None = None) -> nn.Module:
    """mblm of a shape.

    rotary: as in `megabyte_pytorch`.
    chunks: pieces in which the local stage runs under checkpointing; None is without.
    """
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # that there is no mamba_ssm
        from mblm import MBLM, MBLMModelConfig, TransformerBlock

    blocks = [
        TransformerBlock(
            attn_head_dims=HEAD,
            attn_num_heads=width // HEAD,
            attn_use_rot_embs=rotary,
            ff_multiplier=4,
            use_flash_attn=True,
        )
        for width in (shape.global_width, shape.local_width)
    ]
    return MBLM(
        MBLMModelConfig(
            num_tokens=VOCAB_SIZE,
            pad_token_id=PAD_ID,
            hidden_dims=[shape.global_width, shape.local_width],
            num_layers=[shape.global_layers, shape.local_layers],
            seq_lens=[shape.patches, shape.patch],
            train_checkpoint_chunks=[chunks] if chunks else None,
            block=blocks,
        )
    )


def _megabyte_pytorch(shape: Shape, checkpointing: bool) -> Contestant:
    model = megabyte_pytorch(shape)
    return Contestant(model, lambda ids: model(ids, return_loss=True))


def _mblm(shape: Shape, checkpointing: bool) -> Contestant:
    model = mblm(shape, chunks=max(1, shape.context // CHUNK_BYTES) if checkpointing else None)
    return Contestant(model, model)


CHUNK_BYTES = 4096
"""With checkpointing, the bytes whose local stage runs at once, ours and mblm's."""

_BUILDERS: dict[str, Callable[[Shape, bool], Contestant]] = {
    "bytelm": _bytelm,
    "megabyte-pytorch": _megabyte_pytorch,
    "mblm": _mblm,
}
NAMES = tuple(_BUILDERS)
PEERS = NAMES[1:]

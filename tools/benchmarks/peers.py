"""Models of one shape from three code bases, each behind the same training step.

`bytelm` is ours, with the paper's feed-forward and an output matrix of its own; `megabyte-pytorch`
is MEGABYTE-pytorch 0.3.6 and `mblm` is mblm 0.4.2, both from PyPI (`pip install 'bytelm[bench]'`).
All have the same stages, context, vocabulary and optimizer. The peers keep these differences: both
prepend a start token to every sequence (9 positions for 8 bytes), shift tokens, and use GELU,
biases and a norm around the patch embedding; MEGABYTE-pytorch has one number of heads for all
stages (8 of 64 channels), so that its local attention is wider than its stage.

    P bytes of a patch    B rows    T ids in a row
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.runtime.allocator import keep_freed_memory

VOCAB_SIZE = 264
PAD_ID = 256
HEAD = 64
"""Channels of a head."""
CHUNK_BYTES = 4096
"""Bytes whose local stage runs at once under checkpointing, in our model and in mblm."""


@dataclass(frozen=True)
class Shape:
    """Size of a model of two stages, global and local."""

    context: int
    patch: int
    global_width: int
    global_layers: int
    local_width: int
    local_layers: int

    @property
    def patches(self) -> int:
        """Patches of a row."""
        return self.context // self.patch


SHORT = Shape(8_192, 8, 512, 6, 256, 4)
LONG = Shape(32_768, 8, 512, 6, 256, 4)


def our_config(shape: Shape) -> ModelConfig:
    """Our model of a shape: no checkpointing, all patches at once."""
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
    """The config with checkpointing, its local stage and loss in chunks of CHUNK_BYTES."""
    chunk = max(1, CHUNK_BYTES // config.patch)
    return replace(config, activation_checkpointing=True, local_chunk=chunk)


class BenchmarkModel:
    """A model and its optimizer; `step` is one whole training step of B rows."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
        """
        Args:
            loss: mean nats per byte of ids [B, T].
        """
        self.model = model.train()
        self.loss = loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, ids: Tensor) -> float:
        """Forward in bf16, backward, clip, update; ids [B, T]. Returns nats per byte."""
        return self.update(ids).item()

    def update(self, ids: Tensor) -> Tensor:
        """A step whose loss stays on the device, so that the host need not wait for it."""
        loss = self.backward(ids)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def backward(self, ids: Tensor) -> Tensor:
        """Forward in bf16 and backward; returns the loss."""
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = self.loss(ids)
        loss.backward()
        return loss

    def make_optimizer_state(self) -> None:
        """Make the optimizer's state, which AdamW makes in its first step.

        One parameter after the other, so that the allocator keeps no memory that a step would use.
        """
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
            parameter.grad = None


def build(name: str, shape: Shape, *, checkpointing: bool = False) -> BenchmarkModel:
    """The model `name` of NAMES.

    Args:
        checkpointing: as far as the code base has it: ours by chunk and layer, mblm's by chunk of
            the local stage, none in MEGABYTE-pytorch.
    """
    torch.manual_seed(0)
    return _BUILDERS[name](shape, checkpointing)


def set_allocator(name: str) -> None:
    """Keep freed memory in a process of our model, as `bytelm train` does. Call before allocating.

    The peers keep glibc's default, since keeping memory slows PyTorch's own attention down.
    """
    if name == "bytelm":
        keep_freed_memory()


def _build_bytelm(shape: Shape, checkpointing: bool) -> BenchmarkModel:
    config = our_config(shape)
    model = Megabyte(checkpointed(config) if checkpointing else config)
    document = torch.zeros(1, 1, dtype=torch.int32)

    def loss(ids: Tensor) -> Tensor:
        return model(ids, document, torch.zeros_like(ids, dtype=torch.uint8)).mean()

    return BenchmarkModel(model, loss)


def megabyte_pytorch(shape: Shape, *, rotary: bool = False) -> nn.Module:
    """MEGABYTE-pytorch of a shape; its one number of heads is that of the global width.

    Args:
        rotary: rotary position embeddings (`rel_pos`), which are off by default.
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
    """The model of mblm of a shape.

    Args:
        rotary: rotary position embeddings, which are off by default.
        chunks: pieces in which the local stage runs with checkpointing; None for none.
    """
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # about mamba_ssm, which is not installed
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


def compile_peer_layers(model: nn.Module, compiler: str) -> None:
    """Let a peer's layers run as compiled graphs, one that all layers of a decoder share.

    Embeddings and the output stay as they are. A graph of the whole model would take minutes to
    compile for a deep one, and fuses nothing across layers.

    Args:
        compiler: a backend of `torch.compile`.
    """
    from MEGABYTE_pytorch.megabyte import token_shift

    def layer(attention: nn.Module, feed_forward: nn.Module, x: Tensor) -> Tensor:
        x = attention(token_shift(x)) + x
        return feed_forward(token_shift(x)) + x

    compiled = torch.compile(layer, backend=compiler)

    def forward(decoder: Any, x: Tensor) -> Tensor:
        assert decoder.rotary_emb is None
        for attention, feed_forward in decoder.layers:
            x = compiled(attention, feed_forward, x)
        return decoder.norm(x)

    decoders = [m for m in model.modules() if hasattr(m, "rotary_emb") and hasattr(m, "layers")]
    for decoder in decoders:
        decoder.forward = partial(forward, decoder)


def _build_megabyte_pytorch(shape: Shape, checkpointing: bool) -> BenchmarkModel:
    model = megabyte_pytorch(shape)
    return BenchmarkModel(model, lambda ids: model(ids, return_loss=True))


def _build_mblm(shape: Shape, checkpointing: bool) -> BenchmarkModel:
    model = mblm(shape, chunks=max(1, shape.context // CHUNK_BYTES) if checkpointing else None)
    return BenchmarkModel(model, model)


_BUILDERS: dict[str, Callable[[Shape, bool], BenchmarkModel]] = {
    "bytelm": _build_bytelm,
    "megabyte-pytorch": _build_megabyte_pytorch,
    "mblm": _build_mblm,
}
NAMES = tuple(_BUILDERS)
PEERS = NAMES[1:]

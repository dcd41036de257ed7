"""One stage of the hierarchy: input embeddings, the parent's output, and blocks.

Shapes:
    S   positions of the stage laid flat, sequence after sequence
    n   positions of a sequence
    r   positions of the preceding sequence that a position attends to
    D   width of the stage
    H   heads, each of c = D / H channels
    b   bytes in a position of the stage
    d   width of the embedding of one byte
    J   codec features of an id
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.attention_context import AttentionContext, CrossPatchContext
from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.config import ModelConfig
from bytelm.model.embeddings import (
    FEATURE_WIDTH,
    FeatureEmbed,
    NgramEmbed,
    PatchEncoder,
    StartEmbedding,
)
from bytelm.model.layers import Block, checkpointed, compute_dtype, make_norm
from bytelm.model.region import Region
from bytelm.model.rope import RopeTable, rope_cos_sin

Linear = Callable[[Tensor], Tensor]
"""A linear map: the training module, or the decoder's packed copy."""


class Stage(nn.Module):
    """A causal decoder over positions of b bytes.

    The input of a position is the byte embeddings of the preceding position, or a trainable
    start. Stage 0 adds a position table; every other stage adds its slice of the parent's output
    through one shared matrix (w_GL in the paper). The last stage may add embeddings of the n-grams
    before a position and of its codec features.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        shape = config.stages[index]
        self.position_bytes = config.position_bytes(index)  # b
        self.sequence_length = config.sequence_length(index)  # n
        self.cross_patch_keys = config.cross_patch_keys(index)  # r
        self.attention_window = 0 if index else config.attention_window
        self.channels = shape.width // shape.heads
        self.uses_rope = config.rope
        self.dropout = config.dropout
        self.checkpoint_layers = index == 0 and config.checkpoints_global

        self._add_wide_inputs(config, index)
        self._add_inputs_and_output(config, index)
        blocks = [Block(config, shape) for _ in range(shape.layers)]
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.norm = make_norm(config, shape.width)
        self.embed, self.close = Region(Stage._embed), Region(Stage._close)

    def compile_regions(self, backend: str, is_for_decoding: bool = False) -> None:
        """Compile what lies between attentions, for training or for one position of each row."""
        regions: list[Region[..., Any]] = [self.embed, self.close]
        for block in self.blocks:
            regions += [block.before_attention, block.after_attention]
        for region in regions:
            region.compile(backend, is_for_decoding)

    def _add_wide_inputs(self, config: ModelConfig, index: int) -> None:
        """Add convolutions, n-grams and codec features, which read more than one position."""
        width, is_last = config.stages[index].width, index == len(config.stages) - 1
        self.embedded_ids = self.position_bytes  # preceding ids whose byte embeddings are read
        self.patch_encoder = None
        if index == 0 and config.conv_patch_encoder:
            self.embedded_ids += PatchEncoder.REACH
            self.patch_encoder = PatchEncoder(config.byte_width(index))
        self.input_window = self.embedded_ids  # preceding ids that are read at all
        self.ngram_embed, self.ngram_in = None, None
        if is_last and config.ngram_table_size:
            self.input_window = max(NgramEmbed.LENGTHS)
            self.ngram_embed = NgramEmbed(config.ngram_table_size, config.ngram_width)
            joined = self.ngram_embed.embedding_dim * len(NgramEmbed.LENGTHS)
            self.ngram_in = nn.Linear(joined, width, bias=False)
        self.feature_embed, self.feature_in = None, None
        if is_last and config.codec_features:
            self.feature_embed = FeatureEmbed()
            self.feature_in = nn.Linear(FEATURES * FEATURE_WIDTH, width, bias=False)

    def _add_inputs_and_output(self, config: ModelConfig, index: int) -> None:
        """Add the embeddings of a position, the parent's matrix, and projections of the width."""
        width, byte_width = config.stages[index].width, config.byte_width(index)
        joined = self.position_bytes * byte_width  # b * d
        self.byte_embed = nn.Embedding(config.vocab_size, byte_width)
        self.start_embed = StartEmbedding(width)
        self.position_embed = None
        self.parent = None
        if index == 0:
            self.position_embed = nn.Embedding(self.sequence_length, joined)
        else:
            slice_width = self.position_bytes * config.byte_width(index - 1)
            self.parent = nn.Linear(slice_width, width, bias=False)
        self.patch_in: nn.Module = nn.Identity()
        self.patch_out: nn.Module = nn.Identity()
        if config.is_projected(index):
            self.patch_in = nn.Linear(joined, width, bias=False)
            self.patch_out = nn.Linear(width, joined, bias=False)

    def forward(
        self,
        preceding_ids: Tensor,
        position: Tensor,
        codec_features: Tensor | None,
        parent_slices: Tensor | None,
        contexts: Sequence[AttentionContext],
    ) -> Tensor:
        """Output of the stage at each of S positions.

        Args:
            preceding_ids, position, codec_features: see `token_input`.
            parent_slices: [S, slice width], slices of the parent's output; None for stage 0.
            contexts: the attention context of each layer.

        Returns:
            [S, D], or [S, b * d] where the config `is_projected`.
        """
        x, rope = self.embed(self, preceding_ids, position, codec_features, parent_slices)
        for block, context in zip(self.blocks, contexts, strict=True):
            if self.checkpoint_layers and torch.is_grad_enabled():
                x = checkpointed(block, x, rope, context, dropout=self.dropout)
            else:
                x = block(x, rope, context)
        return self.close(self, x)

    def _embed(
        self,
        preceding_ids: Tensor,
        position: Tensor,
        codec_features: Tensor | None,
        parent_slices: Tensor | None,
    ) -> tuple[Tensor, RopeTable | None]:
        """Input of the first block [S, D] and the rotations of all blocks; see `forward`."""
        x = self.token_input(preceding_ids, position, codec_features)
        if self.parent is not None:
            x = x + self.parent(parent_slices)
        return x, self.rope(position)

    def _close(self, x: Tensor) -> Tensor:
        """Output of the stage for that of its last block, [S, D]; see `forward`."""
        return self.patch_out(self.norm(x))

    def token_input(
        self, preceding_ids: Tensor, position: Tensor, codec_features: Tensor | None
    ) -> Tensor:
        """Input of each of S positions, except for the part that comes from the parent.

        Args:
            preceding_ids: [S, input_window] int64, the ids before the position in its document,
                -1 where there are none; the last b of them are the preceding position.
            position: [S] int64, the position in its document.
            codec_features: [S, J], those of the position's id, for a stage that reads them.

        Returns:
            [S, D].
        """
        if self.cross_patch_keys:
            takes_start = preceding_ids[:, -1] < 0
        elif self.parent is None:
            takes_start = position == 0
        else:
            takes_start = position % self.sequence_length == 0
        ids = preceding_ids[:, -self.embedded_ids :]
        x = self.byte_embed(ids.clamp(min=0))  # [S, embedded_ids, d]
        if self.patch_encoder is not None:
            x = self.patch_encoder(x.masked_fill(ids[..., None] < 0, 0.0))
        x = rearrange(x, "S b d -> S (b d)")
        if self.position_embed is not None:
            x = x + self.position_embed((position - 1).clamp(min=0))
        x = self.start_embed(self.patch_in(x), takes_start)
        return self.add_side_inputs(
            x, preceding_ids, codec_features, self.ngram_in, self.feature_in
        )

    def add_side_inputs(
        self,
        x: Tensor,
        preceding_ids: Tensor,
        codec_features: Tensor | None,
        ngram_in: Linear | None,
        feature_in: Linear | None,
    ) -> Tensor:
        """x [S, D] with n-grams and codec features added, where the stage has them.

        Args:
            preceding_ids, codec_features: see `token_input`.
            ngram_in, feature_in: this stage's projections, or packed copies of them.
        """
        if self.ngram_embed is not None and ngram_in is not None:
            features = codec_features if self.feature_embed is not None else None
            x = x + ngram_in(self.ngram_embed(preceding_ids, features))
        if self.feature_embed is not None and feature_in is not None:
            assert codec_features is not None
            x = x + feature_in(self.feature_embed(codec_features))
        return x

    def rope(self, position: Tensor) -> RopeTable | None:
        """Rotations of queries and keys at `position` [S]; None for a model without RoPE."""
        if not self.uses_rope:
            return None
        return rope_cos_sin(position, self.channels, compute_dtype(self.byte_embed.weight))

    def cross_patch_contexts(
        self, opens_document: Tensor, carried: Iterator[Tensor]
    ) -> list[CrossPatchContext]:
        """The context of each layer, with a buffer for what it carries to the next chunk.

        Args:
            opens_document: [M] bool, the sequences that open a document.
            carried: keys and values of the preceding chunk, a tensor for each layer; none in the
                first chunk.
        """
        weight = self.byte_embed.weight
        heads, dtype = self.blocks[0].attention.heads, compute_dtype(weight)
        shape = (2, heads, self.cross_patch_keys, self.channels)
        buffers = [weight.new_empty(shape, dtype=dtype) for _ in self.blocks]
        return [
            CrossPatchContext(opens_document, next(carried, None), buffer) for buffer in buffers
        ]

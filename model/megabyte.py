"""MEGABYTE: a hierarchy of causal decoders over bytes (arXiv 2305.07185), in N stages.

Shapes:
    B   rows                     T   ids in a row
    P   ids in a patch           K   patches in a row, T / P
    N   blocks of a row for which its document is given
    S   patches of all rows laid flat, document after document
    C   patches of a chunk       V   vocabulary
    D   width of a stage         p   positions of a stage in one position of its parent
    J   hints of an id

Stage i has positions of b_i bytes (b_0 = P, 1 for the last stage) and its own byte embedding
E_i of width d_i = D_i / b_i; the embeddings of a position's bytes are concatenated. With two
stages this is the paper's model:

    stage 0   input of patch k: E_0[x] + E_pos of the bytes of patch k - 1, or a trainable start
              at k = 0
    stage i   input at place j of a parent's position: w_i . (slice j of the parent's output)
              + (E_i of the bytes at place j - 1, or a trainable start at j = 0)
    output    softmax over E_local . h, or over a matrix of its own

What the paper leaves open is decided so:
    - no position embedding below stage 0: the slices of the parent's output tell the place;
    - the start takes no position (so in the paper's equation): E_pos belongs to the shifted bytes;
    - a LayerNorm closes every stage, before its output is sliced or turned into logits;
    - linear layers have no bias, layer norms do;
    - convolutions act on E_0[x], before E_pos, so that they do not depend on the place;
    - n-grams are those of all bytes before a place, over the patch boundary too, and so are hints;
    - with cross-patch attention the first place of a sequence takes the bytes before it as its
      input, and the start only where the document starts: no local place would see them otherwise;
    - dropout acts on the outputs of attention and feed-forward layers, not on attention weights;
    - the truncated normal ends at three standard deviations;
    - a width that is not a multiple of its bytes (2560 with P = 12) rounds d up, and one linear
      projection joins the embeddings to the width, another the output to the slices.

Documents: a row holds several; each is run as if alone. Its first patch takes the start, its
positions count from 0, and stage 0 attends only within it. Below stage 0 only cross-patch
attention crosses a patch, so that the patches are laid flat by document once, and chunks of them
run one after another with at most r keys and values of each layer carried from one to the next.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.codec_features.vectorized import compute_codec_features
from bytelm.model.config import ModelConfig
from bytelm.model.embeddings import FeatureEmbed, StartEmbedding, mix_waves
from bytelm.model.layers import ModalityHead, Stage, checkpointed
from bytelm.model.layout import Layout
from bytelm.model.sequence_parallel import SequenceParallel, SequenceParallelContext
from bytelm.model.stored_names import parameter_from_stored


class Megabyte(nn.Module):
    """The model; see the module's docstring for its equations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        stages = [Stage(config, index) for index in range(len(config.stages))]
        self.stages = cast(Sequence[Stage], nn.ModuleList(stages))
        self.back = max(stage.window for stage in stages)
        width, ids = config.stages[-1].width, config.vocab_size
        self.lm_head: nn.Linear | ModalityHead = nn.Linear(width, ids, bias=False)
        if config.modality_heads:
            self.lm_head = ModalityHead(width, ids, config.modality_heads)
        self.apply(self._initialise)
        self.tie_output()
        self.register_load_state_dict_pre_hook(_from_stored_names)

    def tie_output(self) -> None:
        """Makes the output and the local byte embedding one parameter where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.stages[-1].byte_embed.weight

    def _initialise(self, module: nn.Module) -> None:
        if not isinstance(
            module, nn.Linear | nn.Conv1d | nn.Embedding | StartEmbedding | ModalityHead
        ):
            return
        std = self.config.init_std
        if isinstance(module, nn.Embedding) and all(
            module is not stage.position_embed for stage in self.stages
        ):
            std = self.config.embedding_std
        nn.init.trunc_normal_(module.weight, std=std, a=-3.0 * std, b=3.0 * std)
        of_bytes = [self.lm_head, *(stage.byte_embed for stage in self.stages)]
        of_bytes += [stage.feature_embed for stage in self.stages if stage.feature_embed]
        if self.config.smooth_bytes and any(module is each for each in of_bytes):
            rows = 256 if isinstance(module, FeatureEmbed) else self.config.vocab_size
            mix_waves(module.weight.view(-1, rows, module.weight.shape[-1]), std)

    def forward(
        self,
        ids: Tensor,
        document: Tensor,
        modality: Tensor,
        sequence_parallel: SequenceParallel | None = None,
        codec_features: Tensor | None = None,
    ) -> Tensor:
        """Nats of every id given the ids before it in its document.

        ids [B, T] int64, T a multiple of P and at most the context.
        document [B, N] int32, the document of each block of T / N ids, a multiple of P; documents
            are runs of equal numbers, -1 is filler (run like a document; do not score it).
        modality [B, T] uint8, the code of each id's modality; only `modality_heads` reads it.
        sharing: ranks that have the same rows and share the work; each gets nats of its own
            patches, and 0 for those of others. Its part of a row has at least the config's `reach`
            patches.
        hints [B, T, J] int16: those of `hints.py` for these ids and P, which a data worker can
            make beforehand; without them they are made here, if the model reads any.

        Returns -log p(ids[b, t] | ids[b, < t] of its document), [B, T] float32 (float64 for a
        model of float64). The logits of more than `local_chunk` patches never exist at once.
        Raises ValueError where the shapes do not fit.
        """
        layout = self._layout(ids, document)
        patches = layout.gather(ids, self.config.patch, self.back)
        place, heads = layout.place, self._heads(modality, ids, layout)
        codec_features = self._codec_features(ids, document, layout, codec_features)
        whole = self._context(layout)
        context: AttentionContext = whole
        own, reach = None, 0
        if sequence_parallel is not None:
            reach = self.config.reach
            own = sequence_parallel.own(len(patches), reach).to(ids.device)
            patches, place, heads, codec_features = (
                patches[own],
                place[own],
                heads[own],
                codec_features[own],
            )
            context = SequenceParallelContext(whole, sequence_parallel)
        above = self._stage_0(patches[reach:], place[reach:], codec_features[reach:], context)
        if sequence_parallel is not None and reach:
            above = torch.cat([sequence_parallel.from_before(above[-reach:]), above])
        chunk = self.config.local_chunk or len(patches)
        # Made first, and filled in place: results of chunks left lying between what the chunks
        # free would keep the allocator from using that again.
        exact = torch.promote_types(above.dtype, torch.float32)
        nats = above.new_empty(len(patches), self.config.patch, dtype=exact)
        carry: list[Tensor] = []
        laid = (above, patches, place, heads, codec_features)
        parts = zip(*(each.split(chunk) for each in laid), strict=True)
        for start, part in zip(range(0, len(patches), chunk), parts, strict=True):
            inputs = *part, carry
            if self.config.activation_checkpointing and torch.is_grad_enabled():
                dropout = self.config.dropout
                part_nats, carry = checkpointed(self._chunk_nats, *inputs, dropout=dropout)
            else:
                part_nats, carry = self._chunk_nats(*inputs)
            nats[start : start + chunk] = part_nats
        if own is not None:
            of_others = nats.new_zeros(len(layout.order), self.config.patch)
            nats = of_others.index_copy(0, own[reach:], nats[reach:])
        return layout.scatter(nats, len(ids))

    def logits(
        self, ids: Tensor, document: Tensor | None = None, modality: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] float32 of every id given those before it; for small inputs.

        As in `forward`; without `document` each row is one document.
        """
        if document is None:
            document = torch.zeros(len(ids), 1, dtype=torch.int32, device=ids.device)
        layout = self._layout(ids, document)
        patches = layout.gather(ids, self.config.patch, self.back)
        heads, codec_features = (
            self._heads(modality, ids, layout),
            self._codec_features(ids, document, layout),
        )
        above = self._stage_0(patches, layout.place, codec_features, self._context(layout))
        logits, _ = self._chunk_logits(above, patches, layout.place, heads, codec_features, [])
        return layout.scatter(logits, len(ids))

    def output(self, hidden: Tensor, heads: Tensor) -> Tensor:
        """Logits [S, V], at least in float32, of the last stage's output [S, D].

        heads [S] int64: the modality of the id before each place in its document, 0 at its start:
        the modality of the id itself would tell the id that opens a segment. Not read without
        `modality_heads`.
        """
        logits = self.lm_head(hidden, heads) if self.config.modality_heads else self.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def check_modality(self, modality: Tensor | None, shape: torch.Size) -> Tensor:
        """The modality as int64; ValueError where the model's heads need it and it is wrong."""
        if not self.config.modality_heads:
            return torch.zeros(shape, dtype=torch.int64)
        if modality is None:
            raise ValueError("the model has heads by modality: give the modality of the ids")
        if modality.shape != shape:
            raise ValueError(
                f"modality of shape {list(modality.shape)} for ids of {list(shape)}: give the same"
            )
        if modality.numel() and modality.max() >= self.config.modality_heads:
            raise ValueError(
                f"modality {int(modality.max())} is beyond the model's "
                f"{self.config.modality_heads} heads: give codes below that"
            )
        return modality.long()

    def _heads(self, modality: Tensor | None, ids: Tensor, layout: Layout) -> Tensor:
        """The head of each place, [S, P]: the modality of the id before, see `output`."""
        if not self.config.modality_heads:
            return ids.new_zeros(len(layout.order), 0)
        modality = self.check_modality(modality, ids.shape)
        before = layout.gather(modality, self.config.patch, 1)[:, :-1]
        return before.clamp(min=0)

    def _codec_features(
        self, ids: Tensor, document: Tensor, layout: Layout, made: Tensor | None = None
    ) -> Tensor:
        """The hints of each place, [S, P, J]; [S, 0, 0] where no stage reads them."""
        if not self.config.codec_features:
            return ids.new_zeros(len(layout.order), 0, 0)
        if made is None:
            made = compute_codec_features(ids, document, self.config.patch)
        return rearrange(made, "B (K P) J -> (B K) P J", P=self.config.patch)[layout.order]

    def _layout(self, ids: Tensor, document: Tensor) -> Layout:
        (rows, length), patch = ids.shape, self.config.patch
        if length % patch or not 0 < length <= self.config.context:
            raise ValueError(
                f"a row of {length} ids does not fit the model: pad or cut it to a multiple of "
                f"{patch}, at most {self.config.context}"
            )
        blocks = document.shape[1]
        if len(document) != rows or blocks == 0 or length % (blocks * patch):
            raise ValueError(
                f"document of shape {list(document.shape)} does not divide {rows} rows of {length} "
                f"ids into blocks of whole patches: give one number for each {patch} ids"
            )
        return Layout.of(document, length // patch)

    def _context(self, layout: Layout) -> PackedContext:
        """What a patch of stage 0 sees."""
        return PackedContext(layout.groups, self.stages[0].attention_window)

    def _stage_0(
        self, patches: Tensor, place: Tensor, codec_features: Tensor, context: AttentionContext
    ) -> Tensor:
        """Patches [S, back + P] at `place` [S] of their documents, with hints [S, P, J], to the
        output of stage 0 for each of them, [S, D]."""
        stage = self.stages[0]
        of_patches = self.before(0, patches), place, codec_features.flatten(1)
        return stage(*of_patches, None, [context] * len(stage.blocks))

    def before(self, index: int, patches: Tensor) -> Tensor:
        """The ids that a stage reads at each of its positions in patches [C, back + P].

        Returns [C * P / b, window].
        """
        stage, end = self.stages[index], patches.shape[1] - self.stages[index].bytes
        windows = patches[:, self.back - stage.window : end].unfold(1, stage.window, stage.bytes)
        return rearrange(windows, "C s w -> (C s) w")

    def _chunk_logits(
        self,
        above: Tensor,
        patches: Tensor,
        place: Tensor,
        heads: Tensor,
        codec_features: Tensor,
        carry: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """The stages below stage 0: its output [C, D] and the patches [C, back + P] to [C, P, V].

        place [C]: of the patches in their documents.
        heads [C, P]: see `output`.
        hints [C, P, J]: of each place, for the last stage.
        carry: keys and values of the chunk before, see `CrossPatchContext`; those of this chunk are
            returned too. Empty for the first chunk, which opens a document.
        """
        hidden, carried, left = above, iter(carry), []
        codec_features = codec_features.flatten(0, 1)
        for index, stage in enumerate(self.stages[1:], 1):
            slices = rearrange(hidden, "s (p d) -> (s p) d", p=stage.places)
            before = self.before(index, patches)
            inner = torch.arange(stage.places, device=place.device)
            place = rearrange(place[:, None] * stage.places + inner, "s p -> (s p)")
            if stage.back:
                opens = before[:: stage.places, -1] < 0
                crossing = stage.cross_patch_contexts(opens, carried)
                hidden = stage(before, place, codec_features, slices, crossing)
                left += [context.carry for context in crossing if context.carry is not None]
            else:
                context = PackedContext([(len(hidden), stage.places)])
                hidden = stage(before, place, codec_features, slices, [context] * len(stage.blocks))
        logits = self.output(hidden, heads.flatten())
        return rearrange(logits, "(C P) V -> C P V", P=self.config.patch), left

    def _chunk_nats(
        self,
        above: Tensor,
        patches: Tensor,
        place: Tensor,
        heads: Tensor,
        codec_features: Tensor,
        carry: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """As `_chunk_logits`, but nats [C, P] of the patches' ids."""
        logits, carry = self._chunk_logits(above, patches, place, heads, codec_features, carry)
        ids = rearrange(patches[:, self.back :], "C P -> (C P)")
        nats = F.cross_entropy(rearrange(logits, "C P V -> (C P) V"), ids, reduction="none")
        return rearrange(nats, "(C P) -> C P", P=self.config.patch), carry


def _from_stored_names(module: nn.Module, state_dict: dict[str, Tensor], *_: object) -> None:
    """Before a state is loaded: parameters get their names of now, whatever they had on disk."""
    for name in list(state_dict):
        state_dict[parameter_from_stored(name)] = state_dict.pop(name)

"""MEGABYTE: a hierarchy of causal decoders over bytes (arXiv 2305.07185), in N stages.

Shapes:
    B   rows                     T   ids in a row
    P   ids in a patch           K   patches in a row, T / P
    N   blocks of a row for which its document is given
    S   patches of all rows laid flat, document after document
    R   ids before a patch that its stages read (`lookback_bytes`)
    C   patches of a chunk       V   vocabulary
    D   width of a stage         n   positions of a stage in one position of its parent
    J   codec features of an id

Stage i has positions of b_i bytes (b_0 = P, 1 for the last stage) and its own byte embedding
E_i of width d_i = D_i / b_i; the embeddings of a position's bytes are concatenated. With two
stages this is the paper's model:

    stage 0   input of patch k: E_0[x] + E_pos of the bytes of patch k - 1, or a trainable start
              at k = 0
    stage i   input at position j of a parent's position: w_i . (slice j of the parent's output)
              + (E_i of the bytes at position j - 1, or a trainable start at j = 0)
    output    softmax over E_local . h, or over a matrix of its own

The paper leaves some choices open. Here:
    - stages below stage 0 have no position embedding: the slices of the parent's output tell
      positions apart;
    - the start gets no position embedding (as in the paper's equation): E_pos belongs to the
      shifted bytes;
    - a LayerNorm closes every stage, before its output is sliced or turned into logits;
    - linear layers have no bias, layer norms have one;
    - convolutions act on E_0[x], before E_pos, so that they do not depend on the position;
    - n-grams cover all bytes before a position, across patch boundaries, and so do codec features;
    - with cross-patch attention the first position of a sequence reads the bytes before it, and
      takes the start only where the document starts: no position of the stage would have those
      bytes as its input otherwise;
    - dropout acts on the outputs of attention and feed-forward layers, not on attention weights;
    - the truncated normal ends at three standard deviations;
    - where a width is not a multiple of its bytes (2560 with P = 12), d is rounded up; one linear
      projection maps the joined embeddings to the width, another the output to the slices.

Documents: a row holds several, and each gets the nats that it would get alone. Its first patch
takes the start, its positions count from 0, and stage 0 attends only within it. Below stage 0 only
cross-patch attention crosses a patch. The patches are therefore laid flat by document once, and
chunks of them run one after another, with at most r keys and values of each layer carried from one
chunk to the next.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from bytelm.model.attention_context import AttentionContext, PackedContext
from bytelm.model.codec_features.vectorized import compute_codec_features, compute_places
from bytelm.model.config import ModelConfig
from bytelm.model.embeddings import FeatureEmbed, StartEmbedding, mix_waves
from bytelm.model.layers import ModalityHead, checkpointed, cross_entropy
from bytelm.model.layout import Layout, PatchBatch
from bytelm.model.output_mixing.mixer import DocumentMixer
from bytelm.model.region import Region
from bytelm.model.sequence_parallel import SequenceParallel, SequenceParallelContext
from bytelm.model.stage import Stage
from bytelm.model.stored_names import parameter_from_stored


class Megabyte(nn.Module):
    """The model; the module's docstring has its equations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        stages = [Stage(config, index) for index in range(len(config.stages))]
        self.stages = cast(Sequence[Stage], nn.ModuleList(stages))
        self.lookback_bytes = max(stage.input_window for stage in stages)  # R
        width, vocab_size = config.stages[-1].width, config.vocab_size
        self.lm_head: nn.Linear | ModalityHead = nn.Linear(width, vocab_size, bias=False)
        if config.modality_heads:
            self.lm_head = ModalityHead(width, vocab_size, config.modality_heads)
        for module in self.modules():
            self.initialise(module)
        self.tie_output()
        self.cross_entropy = Region(cross_entropy)
        self.register_load_state_dict_pre_hook(_rename_stored_parameters)

    def tie_output(self) -> None:
        """Make the output and the local byte embedding one parameter if the config ties them."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.stages[-1].byte_embed.weight

    def compile_regions(self, backend: str = "inductor") -> None:
        """Compile what the model computes between its attentions, for training (see `Region`).

        Parameters and their names stay as they are. The first steps compile, which takes a minute.

        Args:
            backend: of `torch.compile`.
        """
        for stage in self.stages:
            stage.compile_regions(backend)
        self.cross_entropy.compile(backend)

    def initialise(self, module: nn.Module) -> bool:
        """Draw the weights of one of the model's modules from a truncated normal, from torch's
        generator; returns whether it has any to draw: norms and gains have none."""
        if not isinstance(
            module, nn.Linear | nn.Conv1d | nn.Embedding | StartEmbedding | ModalityHead
        ):
            return False
        if module.weight.is_meta:
            return True  # no numbers; PyTorch would import its compiler, which takes seconds
        std = self.config.init_std
        if isinstance(module, nn.Embedding) and all(
            module is not stage.position_embed for stage in self.stages
        ):
            std = self.config.embedding_std
        nn.init.trunc_normal_(module.weight, std=std, a=-3.0 * std, b=3.0 * std)
        byte_tables = [self.lm_head, *(stage.byte_embed for stage in self.stages)]
        byte_tables += [stage.feature_embed for stage in self.stages if stage.feature_embed]
        if self.config.smooth_bytes and any(module is table for table in byte_tables):
            rows = 256 if isinstance(module, FeatureEmbed) else self.config.vocab_size
            mix_waves(module.weight.view(-1, rows, module.weight.shape[-1]), std)
        return True

    def forward(
        self,
        ids: Tensor,
        document: Tensor,
        modality: Tensor,
        codec_features: Tensor | None = None,
        layout: Layout | None = None,
        sequence_parallel: SequenceParallel | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Nats of every id given the ids before it in its document.

        Args:
            ids: [B, T] int64; T is a multiple of P and at most the context.
            document: [B, N] int32, the document of each block of T / N ids, which is a multiple
                of P. Documents are runs of equal numbers; -1 is filler (it runs like a document,
                and must not be scored).
            modality: [B, T] uint8, the code of each id's modality; only `modality_heads` reads it.
            codec_features: [B, T, J] int16, those of `compute_codec_features` for these ids, if
                a data worker has computed them. Otherwise they are computed here, if the model
                reads any.
            layout: `Layout.of` the document, if a data worker has made it. Otherwise it is made
                here, from values for which a GPU would have to be waited for.
            sequence_parallel: ranks that have the same rows and share the work. Each returns the
                nats of its own patches, and 0 for those of others. Its part of a row has at least
                the config's `reach` patches.
            targets: [B, T], ids whose nats are returned in place of those of `ids`, which are then
                read with noise; see `pipelines/data/noise.py`.

        Returns:
            -log p(ids[b, t] | ids[b, < t] of its document), [B, T] float32 (float64 for a model in
            float64). The logits of more than `local_chunk` patches never exist at once. With
            `output_mixing` p is the mixture where no gradients are computed, and the network's
            alone in training.

        Raises:
            ValueError: the shapes do not fit together.
        """
        layout = self._fit_layout(ids, document, layout)
        patches = self._patches(ids, document, modality, codec_features, layout)
        if targets is not None:
            patches = replace(patches, targets=layout.gather(targets.long(), self.config.patch, 0))
        context = self._stage_0_context(layout)
        if sequence_parallel is None:
            nats = self._lower_nats(self._run_stage_0(patches, context), patches)
            return layout.scatter(nats, len(ids))
        reach = self.config.reach
        local = sequence_parallel.local_indices(len(patches), reach, ids.device)
        patches = patches[local]
        local_context = SequenceParallelContext(context, sequence_parallel)
        output = self._run_stage_0(patches[reach:], local_context)
        if reach:
            preceding = sequence_parallel.receive_from_previous(output[-reach:])
            output = torch.cat([preceding, output])
        nats = self._lower_nats(output, patches)[reach:]
        all_nats = nats.new_zeros(len(layout.order), self.config.patch)
        return layout.scatter(all_nats.index_copy(0, local[reach:], nats), len(ids))

    def logits(
        self, ids: Tensor, document: Tensor | None = None, modality: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] float32 of every id given those before it, for small inputs.

        They are the network's own, also with `output_mixing`.

        Arguments are those of `forward`; without `document` each row is one document.
        """
        if document is None:
            document = torch.zeros(len(ids), 1, dtype=torch.int32, device=ids.device)
        layout = self._fit_layout(ids, document, None)
        patches = self._patches(ids, document, modality, None, layout)
        stage_0_output = self._run_stage_0(patches, self._stage_0_context(layout))
        hidden, _ = self._run_lower_stages(stage_0_output, patches, [])
        logits = self.output(hidden, patches.heads.flatten())
        return layout.scatter(rearrange(logits, "(S P) V -> S P V", P=self.config.patch), len(ids))

    def last_logits(
        self, ids: Tensor, modality: Tensor | None, codec_features: Tensor | None, first: int
    ) -> Tensor:
        """The network's logits [T - first, V] of the last ids of one document.

        The stages below stage 0 run for the patches of these ids alone, and those that they reach.

        Args:
            ids, modality, codec_features: as in `forward`, with B = 1.
            first: index of the first of these ids, a multiple of P.
        """
        assert len(ids) == 1
        assert first % self.config.patch == 0
        document = torch.zeros(1, 1, dtype=torch.int32, device=ids.device)
        layout = self._fit_layout(ids, document, None)
        patches = self._patches(ids, document, modality, codec_features, layout)
        stage_0_output = self._run_stage_0(patches, self._stage_0_context(layout))
        begin = max(first // self.config.patch - self.config.reach, 0)
        last, carried = patches[begin:], list[Tensor]()
        chunk = self.config.local_chunk or len(last)
        logits = []
        for output, part in zip(
            stage_0_output[begin:].split(chunk), last.split(chunk), strict=True
        ):
            hidden, carried = self._run_lower_stages(output, part, carried)
            logits.append(self.output(hidden, part.heads.flatten()))
        return torch.cat(logits)[first - begin * self.config.patch :]

    def output(self, hidden: Tensor, heads: Tensor) -> Tensor:
        """Logits [S, V], at least in float32, of the last stage's output [S, D].

        Args:
            heads: [S] int64, the modality of the id before each position in its document, 0 at
                its start. (The modality of the id itself would reveal the id that opens a
                segment.) Only read with `modality_heads`.
        """
        logits = self._head_logits(hidden, heads)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _head_logits(self, hidden: Tensor, heads: Tensor) -> Tensor:
        """Logits as `output`, in the type of the product."""
        return self.lm_head(hidden, heads) if self.config.modality_heads else self.lm_head(hidden)

    def check_modality(self, modality: Tensor | None, shape: torch.Size) -> Tensor:
        """The modality as int64, or zeros of `shape` for a model with one head.

        Raises:
            ValueError: the model has `modality_heads`, and the modality is missing, has another
                shape than `shape`, or names a head that the model does not have.
        """
        if not self.config.modality_heads:
            return torch.zeros(shape, dtype=torch.int64)
        if modality is None:
            raise ValueError("the model has heads by modality: give the modality of the ids")
        if modality.shape != shape:
            raise ValueError(
                f"modality of shape {list(modality.shape)} for ids of {list(shape)}: give the same"
            )
        heads = self.config.modality_heads
        # A GPU would be waited for; there the head itself fails, where it chooses its matrix.
        if not modality.is_cuda and modality.numel() and modality.max() >= heads:
            raise ValueError(
                f"modality {int(modality.max())} is beyond the model's {heads} heads: give codes "
                f"below that"
            )
        return modality.long()

    def preceding_ids(self, index: int, patch_ids: Tensor) -> Tensor:
        """The ids that stage `index` reads at each of its positions.

        Args:
            patch_ids: [C, R + P], as in `PatchBatch`.

        Returns:
            [C * P / b, input_window].
        """
        stage = self.stages[index]
        first = self.lookback_bytes - stage.input_window
        end = patch_ids.shape[1] - stage.position_bytes
        windows = patch_ids[:, first:end].unfold(1, stage.input_window, stage.position_bytes)
        return rearrange(windows, "C s w -> (C s) w")

    @property
    def _is_mixed(self) -> bool:
        """Whether nats are those of the mixture: gradients would not reach its weights."""
        return self.config.output_mixing and not torch.is_grad_enabled()

    def _fit_layout(self, ids: Tensor, document: Tensor, layout: Layout | None) -> Layout:
        """The layout of the batch's patches, from that of its blocks if there is one.

        Raises:
            ValueError: the shapes do not fit together.
        """
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
        layout = Layout.of(document) if layout is None else layout
        assert len(layout.order) == document.numel()
        return layout.refined(length // patch // blocks)

    def _patches(
        self,
        ids: Tensor,
        document: Tensor,
        modality: Tensor | None,
        codec_features: Tensor | None,
        layout: Layout,
    ) -> PatchBatch:
        """The batch's patches in document order, with the tensors that the config asks for."""
        patch = self.config.patch
        patch_ids = layout.gather(ids, patch, self.lookback_bytes)
        heads = ids.new_zeros(len(layout.order), 0)
        if self.config.modality_heads:
            modality = self.check_modality(modality, ids.shape)
            heads = layout.gather(modality, patch, 1)[:, :-1].clamp(min=0)  # of the id before
        features = ids.new_zeros(len(layout.order), 0, 0)
        places = torch.zeros(len(layout.order), 0, 0, dtype=torch.int32)
        if self.config.codec_features:
            if codec_features is None:
                codec_features = compute_codec_features(ids, document, patch)
            by_row = rearrange(codec_features, "B (K P) J -> (B K) P J", P=patch)
            features = by_row[layout.order]
        if self._is_mixed:
            places = compute_places(ids, document, patch)
            places = rearrange(places, "B (K P) c -> (B K) P c", P=patch)[layout.order.cpu()]
        targets = patch_ids[:, self.lookback_bytes :]
        return PatchBatch(patch_ids, targets, layout.position, heads, features, places)

    def _stage_0_context(self, layout: Layout) -> PackedContext:
        """Attention of stage 0 within each document."""
        window = self.stages[0].attention_window
        return PackedContext(layout.groups, window, layout.cu_seqlens)

    def _run_stage_0(self, patches: PatchBatch, context: AttentionContext) -> Tensor:
        """Output of stage 0 for each of S patches, [S, D]."""
        stage, preceding_ids = self.stages[0], self.preceding_ids(0, patches.ids)
        codec_features = patches.codec_features.flatten(1)
        contexts = [context] * len(stage.blocks)
        return stage(preceding_ids, patches.position, codec_features, None, contexts)

    def _lower_nats(self, stage_0_output: Tensor, patches: PatchBatch) -> Tensor:
        """Nats [S, P] of the patches' ids, from the output of stage 0 [S, D], chunk by chunk."""
        chunk = self.config.local_chunk or len(patches)
        # Allocate the result before the loop. A small tensor that outlives its chunk fragments
        # the heap, and memory grows by one block a chunk.
        accum_dtype = torch.promote_types(stage_0_output.dtype, torch.float32)
        nats = stage_0_output.new_empty(len(patches), self.config.patch, dtype=accum_dtype)
        carried: list[Tensor] = []
        is_checkpointed = self.config.checkpoints_local and torch.is_grad_enabled()
        mixer = DocumentMixer(self.config.context) if self._is_mixed else None
        outputs = stage_0_output.split(chunk)
        for index, (output, part) in enumerate(zip(outputs, patches.split(chunk), strict=True)):
            if is_checkpointed:
                chunk_nats, carried = checkpointed(
                    self._chunk_nats, output, part, carried, dropout=self.config.dropout
                )
            else:
                chunk_nats, carried = self._chunk_nats(output, part, carried, mixer)
            nats[index * chunk : (index + 1) * chunk] = chunk_nats
        return nats

    def _chunk_nats(
        self,
        stage_0_output: Tensor,
        patches: PatchBatch,
        carried: Sequence[Tensor],
        mixer: DocumentMixer | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Nats [C, P] of a chunk's ids, and what it carries; see `_run_lower_stages`.

        Args:
            mixer: it has read the documents' ids before the chunk; None: nats of the network.
        """
        hidden, carried = self._run_lower_stages(stage_0_output, patches, carried)
        logits = self._head_logits(hidden, patches.heads.flatten())
        targets = rearrange(patches.targets, "C P -> (C P)")
        if mixer is None:
            nats = self.cross_entropy(logits, targets)
        else:
            places = patches.places.flatten(0, 1)
            starts = torch.zeros_like(patches.places[:, :, 0], dtype=torch.bool)
            starts[:, 0] = (patches.position == 0).cpu()
            nats = mixer.nats(logits, targets, places, starts.flatten())
        return rearrange(nats, "(C P) -> C P", P=self.config.patch), carried

    def _run_lower_stages(
        self, stage_0_output: Tensor, patches: PatchBatch, carried: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the stages below stage 0 over C patches.

        Args:
            stage_0_output: [C, D].
            carried: keys and values of the preceding chunk, see `CrossPatchContext`; empty for the
                first chunk, which opens a document.

        Returns:
            Output of the last stage, [C * P, D], and the keys and values for the next chunk.
        """
        hidden, position = stage_0_output, patches.position
        previous, following = iter(carried), list[Tensor]()
        codec_features = patches.codec_features.flatten(0, 1)
        for index, stage in enumerate(self.stages[1:], 1):
            n = stage.sequence_length
            slices = rearrange(hidden, "s (n d) -> (s n) d", n=n)
            preceding_ids = self.preceding_ids(index, patches.ids)
            offset = torch.arange(n, device=position.device)
            position = rearrange(position[:, None] * n + offset, "s n -> (s n)")
            contexts: Sequence[AttentionContext]
            if stage.cross_patch_keys:
                opens_document = preceding_ids[::n, -1] < 0
                crossing = stage.cross_patch_contexts(opens_document, previous)
                following += [context.buffer for context in crossing]
                contexts = crossing
            else:
                contexts = [PackedContext([(len(hidden), n)])] * len(stage.blocks)
            hidden = stage(preceding_ids, position, codec_features, slices, contexts)
        return hidden, following


def _rename_stored_parameters(module: nn.Module, state_dict: dict[str, Tensor], *_: object) -> None:
    """Give the parameters of a state that is about to be loaded their names in the code."""
    for name in list(state_dict):
        state_dict[parameter_from_stored(name)] = state_dict.pop(name)

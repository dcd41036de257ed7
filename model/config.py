"""Configuration of a model: frozen dataclasses that check themselves, to and from JSON."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_LEAST = {
    "context": 1,
    "vocab_size": 257,
    "pad_id": 256,
    "local_chunk": 0,
    "ngram_table_size": 0,
    "ngram_width": 1,
    "attention_window": 0,
    "modality_heads": 0,
    "cross_patch_attention": 0,
}
"""Least value of each whole number of a `ModelConfig`."""


@dataclass(frozen=True)
class StageConfig:
    """Shape of one causal decoder of the hierarchy."""

    width: int
    """Model width. For the global model of the paper it is P * D_G."""
    layers: int
    """Decoder blocks."""
    heads: int
    """Attention heads; they divide the width."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            _require_integer(f"stage {name}", getattr(self, name), least=1)
        if self.width % self.heads:
            raise ValueError(
                f"stage width {self.width} is not divisible by its {self.heads} heads: "
                f"use {_nearest_divisor(self.width, self.heads)} heads or another width"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the parameters and the function of a `Megabyte`.

    Options beside those of the paper are off by default. The presets `modern-*` use most of them;
    an option that no preset uses says whose it is.

    Raises:
        ValueError: shapes do not fit together; the message gives the cause and the way out.
    """

    stages: tuple[StageConfig, ...]
    """One to four stages, from global to local."""
    patch_sizes: tuple[int, ...]
    """patch_sizes[i] positions of stage i + 1 make one position of stage i."""
    context: int
    """L, the largest number of ids in a row."""
    vocab_size: int = 264
    """Ids: 256 bytes and the special ids after them."""
    pad_id: int = 256
    """The id that fills rows."""
    dropout: float = 0.0
    """Dropout rate of the output of every attention and feed-forward layer, not of embeddings."""
    tie_embeddings: bool = True
    """Use the byte embeddings of the last stage as the output matrix, as the paper does."""
    embedding_std: float = 0.006
    """Initial standard deviation of the embeddings of bytes and n-grams."""
    init_std: float = 0.006
    """Initial standard deviation of all other parameters: matrices, position table, starts."""
    smooth_bytes: bool = False
    """Start near bytes alike: half of the variance of their rows in the embeddings and the output
    matrix comes from waves over the byte's value (`embeddings.mix_waves`)."""
    rope: bool = False
    """Rotate the queries and keys of every stage by their position in the document (RoPE)."""
    rms_norm: bool = False
    """Use RMSNorm (arXiv 1910.07467) in place of LayerNorm, as MEGABYTE-pytorch does."""
    qk_norm: bool = False
    """Scale each head's queries and keys to a mean square of 1, with a trained gain."""
    swiglu: bool = False
    """Use SwiGLU in place of ReLU in the feed-forward layers (`feed_forward_width`)."""
    cross_patch_attention: int = 0
    """r: below stage 0, a position also attends to the last r positions of the preceding sequence
    (all of them where it has fewer), and the first position to its input too. 0: to its own
    sequence only. The paper's cross-patch attention."""
    attention_window: int = 0
    """Positions that one of stage 0 attends to, itself included; 0: all of its document. The
    sliding window of Longformer (arXiv 2004.05150), for flat decoders to compare with."""
    conv_patch_encoder: bool = False
    """Encode stage 0's byte embeddings by causal convolutions of 3, 5 and 7 bytes before they are
    joined to patches: the paper's convolutional patch encoder."""
    ngram_table_size: int = 0
    """Rows of each of three tables of hashed 2-, 3- and 4-grams, an input of the last stage; 0: no
    tables. With `codec_features`, pixels and samples have no n-grams."""
    ngram_width: int = 32
    """Width of the embedding of an n-gram."""
    codec_features: bool = False
    """Give the last stage the predictions that xz, PNG and FLAC would make of the next byte
    (`model/codec_features`)."""
    output_mixing: bool = False
    """Mix the network's distribution of each byte with those of a context-mixing compressor, by
    weights that are learned anew in each document (`model/output_mixing`). Training does without;
    evaluation, generation and compression mix."""
    modality_heads: int = 0
    """Output matrices, one for each modality by its code; 0: one for all. The output side of the
    modality nets of MultiModel (arXiv 1706.05137)."""
    local_chunk: int = 0
    """Patches whose lower stages and loss are computed at once, which bounds memory; 0: all."""
    activation_checkpointing: Literal[False, True, "global", "local"] = False
    """Recompute activations in the backward pass: stage 0 by layer and the rest by chunk (`true`),
    stage 0 alone (`global`), or the rest alone (`local`)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "patch_sizes", tuple(self.patch_sizes))
        self._check_stages()
        for name, least in _LEAST.items():
            _require_integer(name, getattr(self, name), least)
        self._check_ids()
        self._check_options()
        self._check_rates()

    def _check_stages(self) -> None:
        if not 1 <= len(self.stages) <= 4:
            raise ValueError(f"a model has 1 to 4 stages, not {len(self.stages)}")
        if len(self.patch_sizes) != len(self.stages) - 1:
            raise ValueError(
                f"{len(self.stages)} stages need {len(self.stages) - 1} patch_sizes (one between "
                f"each two stages), got {list(self.patch_sizes)}"
            )
        for size in self.patch_sizes:
            _require_integer("a patch size", size, least=2)

    def _check_ids(self) -> None:
        if self.pad_id >= self.vocab_size:
            raise ValueError(
                f"pad_id {self.pad_id} is outside the vocabulary of {self.vocab_size} ids: "
                f"use an id from 256 to {self.vocab_size - 1}"
            )
        if self.context % self.patch:
            below = self.context // self.patch * self.patch
            near = f"{below} or {below + self.patch}" if below else f"{self.patch}"
            raise ValueError(
                f"context {self.context} is not a multiple of the patch of {self.patch} bytes: "
                f"use {near}"
            )

    def _check_options(self) -> None:
        checkpointing = self.activation_checkpointing
        if not (isinstance(checkpointing, bool) or checkpointing in ("global", "local")):
            raise ValueError(
                "activation_checkpointing must be true, false, global or local, got "
                f"{checkpointing!r}"
            )
        if self.conv_patch_encoder and len(self.stages) == 1:
            raise ValueError(
                "conv_patch_encoder needs patches: give two stages or more, or leave it out"
            )
        if self.output_mixing and not self.codec_features:
            raise ValueError(
                "output_mixing reads the stream as codec_features do: set codec_features to true, "
                "or output_mixing to false"
            )
        if self.output_mixing and self.modality_heads:
            raise ValueError(
                "output_mixing needs the same output for all ids of a prompt: set modality_heads "
                "to 0, or output_mixing to false"
            )
        if self.modality_heads and self.tie_embeddings:
            raise ValueError(
                "modality_heads are output matrices of their own: tie_embeddings must be false "
                "with them"
            )
        longest = max(self.patch_sizes, default=0)
        if self.cross_patch_attention > longest:
            raise ValueError(
                f"cross_patch_attention {self.cross_patch_attention} is more than a sequence below "
                f"stage 0 holds: use 0 to {longest}"
            )
        for stage in self.stages:
            channels = stage.width // stage.heads
            if self.rope and channels % 2:
                raise ValueError(
                    f"rope rotates pairs of channels, and a head of {channels} channels (width "
                    f"{stage.width}, {stage.heads} heads) has an odd number: use other heads"
                )

    def _check_rates(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")
        if not (0.0 < self.embedding_std < math.inf and 0.0 < self.init_std < math.inf):
            raise ValueError("embedding_std and init_std must be above 0 and finite")

    @property
    def checkpoints_global(self) -> bool:
        """Whether the layers of stage 0 are recomputed in the backward pass."""
        return self.activation_checkpointing in (True, "global")

    @property
    def checkpoints_local(self) -> bool:
        """Whether the stages below stage 0, with the logits, are recomputed chunk by chunk."""
        return self.activation_checkpointing in (True, "local")

    @property
    def patch(self) -> int:
        """P, the bytes in one position of stage 0; 1 for a single stage."""
        return self.position_bytes(0)

    def position_bytes(self, stage: int) -> int:
        """Bytes in one position of a stage; 1 for the last stage."""
        return math.prod(self.patch_sizes[stage:])

    def byte_width(self, stage: int) -> int:
        """d, the width of the embedding of one byte in a stage.

        The embeddings of a position's bytes are concatenated to the stage's width. Where the bytes
        do not divide it, d is rounded up and a projection follows.
        """
        return -(-self.stages[stage].width // self.position_bytes(stage))

    def sequence_length(self, stage: int) -> int:
        """Positions of a sequence of a stage: of a row for stage 0, else of a parent position."""
        return self.patch_sizes[stage - 1] if stage else self.context // self.patch

    def cross_patch_keys(self, stage: int) -> int:
        """r, the positions of the preceding sequence that a position of a stage attends to."""
        return min(self.cross_patch_attention, self.patch_sizes[stage - 1]) if stage else 0

    @property
    def reach(self) -> int:
        """Patches before its own that a patch depends on below stage 0, at most: with cross-patch
        attention, one for each layer there."""
        layers = sum(stage.layers for stage in self.stages[1:])
        return layers if self.cross_patch_attention else 0

    def is_projected(self, stage: int) -> bool:
        """Whether the concatenated embeddings of a stage are wider than the stage."""
        return self.byte_width(stage) * self.position_bytes(stage) != self.stages[stage].width

    def to_dict(self) -> dict[str, Any]:
        """The config in lists and numbers, for JSON; the inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        return values | {"stages": list(values["stages"]), "patch_sizes": list(self.patch_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build a config from the form of `to_dict`.

        Raises ValueError for unknown, missing or wrong keys.
        """
        _check_keys(cls, values, "model config")
        stages = []
        for stage in _require_list("stages", values["stages"]):
            if not isinstance(stage, Mapping):
                raise ValueError(f"a stage is given as width, layers and heads, not as {stage!r}")
            _check_keys(StageConfig, stage, "stage")
            stages.append(StageConfig(**stage))
        patch_sizes = _require_list("patch_sizes", values["patch_sizes"])
        rest = {key: value for key, value in values.items() if key not in ("stages", "patch_sizes")}
        for field in dataclasses.fields(cls):
            if field.name in rest:
                _check_scalar(field.name, field.type, rest[field.name])
        return cls(stages=tuple(stages), patch_sizes=tuple(patch_sizes), **rest)


def feed_forward_width(width: int, swiglu: bool) -> int:
    """Hidden width of the feed-forward layers of a stage.

    ReLU: 4 * width. SwiGLU: 8/3 * width, rounded up to a multiple of 8, which gives its three
    matrices as many parameters as the two of ReLU.
    """
    return -(-8 * width // 24) * 8 if swiglu else 4 * width


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of the known names that is spelled most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _nearest_divisor(width: int, heads: int) -> int:
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))


def _require_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _require_list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return list(value)


def _check_keys(cls: type, values: Mapping[str, Any], what: str) -> None:
    fields = dataclasses.fields(cls)
    known = [field.name for field in fields]
    for key in values:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r} in the {what}: did you mean {nearest(key, known)!r}?"
            )
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ValueError(f"the {what} lacks {field.name!r}: add it")


def _check_scalar(name: str, expected: Any, value: Any) -> None:
    if expected is bool and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    if expected is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} must be a number, got {value!r}")

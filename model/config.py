"""Shapes of the model: frozen dataclasses, the presets, and their way to and from JSON."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageConfig:
    """One causal decoder of the hierarchy."""

    width: int
    """Model width of the stage (for the paper's global model this is P * D_G)."""
    layers: int
    heads: int

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
    """Everything that decides the parameters and the function of a `Megabyte`.

    Raises ValueError, with the cause and the way out, for shapes that do not fit together.
    """

    stages: tuple[StageConfig, ...]
    """One to four stages, from global to local."""
    patch_sizes: tuple[int, ...]
    """patch_sizes[i] positions of stage i + 1 lie in one position of stage i."""
    context: int
    """L, the largest number of ids in a row."""
    vocab_size: int = 264
    pad_id: int = 256
    dropout: float = 0.0
    """On the output of every attention and feed-forward layer, none on embeddings."""
    tie_embeddings: bool = True
    """Logits are E_local . h, as in the paper; otherwise the output has its own matrix."""
    embedding_std: float = 0.006
    """Standard deviation of the embeddings of bytes and n-grams at the start."""
    init_std: float = 0.006
    """Standard deviation of everything else: matrices, position table, start vectors."""
    smooth_bytes: bool = False
    """Near bytes start alike: half of the variance of their embeddings and of the output matrix is
    that of waves over the byte's value."""
    rope: bool = False
    """Queries and keys of every stage are rotated by their place in the document."""
    rms_norm: bool = False
    """RMSNorm in place of LayerNorm."""
    qk_norm: bool = False
    """Queries and keys of each head have a mean square of 1, and queries a trained gain."""
    swiglu: bool = False
    """SwiGLU, 8/3 as wide as the stage, in place of ReLU, four times as wide."""
    cross_patch_attention: int = 0
    """r: below stage 0 a position also sees the last r positions (all, where they are fewer) of
    the sequence before its own, and the first position its input too; 0 = its own only."""
    attention_window: int = 0
    """Positions that one of stage 0 sees, its own among them; 0 = all of its document."""
    conv_patch_encoder: bool = False
    """Causal convolutions of 3, 5 and 7 bytes over stage 0's embeddings before they are patches."""
    ngram_table_size: int = 0
    """Rows of each of three tables of hashed 2-, 3- and 4-grams in the last stage's input; with
    `codec_features` not of pixels and samples."""
    ngram_width: int = 32
    codec_features: bool = False
    """The last stage's input has what a codec looks at: an image's line above and guesses of the
    next byte, by the headers in the stream (`hints.py`)."""
    modality_heads: int = 0
    """Output matrices, one for each modality's code from 0; 0 = one for all."""
    local_chunk: int = 0
    """Positions of stage 0 (patches) whose lower stages and loss run at once; 0 = all."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: stage 0 by layer, the rest by chunk."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "patch_sizes", tuple(self.patch_sizes))
        if not 1 <= len(self.stages) <= 4:
            raise ValueError(f"a model has 1 to 4 stages, not {len(self.stages)}")
        if len(self.patch_sizes) != len(self.stages) - 1:
            raise ValueError(
                f"{len(self.stages)} stages need {len(self.stages) - 1} patch_sizes (one between "
                f"each two stages), got {list(self.patch_sizes)}"
            )
        for size in self.patch_sizes:
            _require_integer("a patch size", size, least=2)
        _require_integer("context", self.context, least=1)
        _require_integer("vocab_size", self.vocab_size, least=257)
        _require_integer("pad_id", self.pad_id, least=256)
        _require_integer("local_chunk", self.local_chunk, least=0)
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
        _require_integer("ngram_table_size", self.ngram_table_size, least=0)
        _require_integer("ngram_width", self.ngram_width, least=1)
        if self.conv_patch_encoder and len(self.stages) == 1:
            raise ValueError(
                "conv_patch_encoder needs patches: give two stages or more, or leave it out"
            )
        _require_integer("attention_window", self.attention_window, least=0)
        _require_integer("modality_heads", self.modality_heads, least=0)
        if self.modality_heads and self.tie_embeddings:
            raise ValueError(
                "modality_heads are matrices of their own: tie_embeddings must be false with them"
            )
        _require_integer("cross_patch_attention", self.cross_patch_attention, least=0)
        if self.cross_patch_attention > max(self.patch_sizes, default=0):
            raise ValueError(
                f"cross_patch_attention {self.cross_patch_attention} is more than a sequence below "
                f"stage 0 holds: use 0 to {max(self.patch_sizes, default=0)}"
            )
        for stage in self.stages:
            channels = stage.width // stage.heads
            if self.rope and channels % 2:
                raise ValueError(
                    f"rope turns pairs of channels, and a head of {channels} channels (width "
                    f"{stage.width}, {stage.heads} heads) has an odd number: use other heads"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is not in [0, 1)")
        if not (self.embedding_std > 0.0 and self.init_std > 0.0):
            raise ValueError("embedding_std and init_std must be above 0")

    @property
    def patch(self) -> int:
        """P, the bytes in one position of stage 0 (1 for a single stage)."""
        return self.position_bytes(0)

    def position_bytes(self, stage: int) -> int:
        """The bytes in one position of `stage`; 1 for the last stage."""
        return math.prod(self.patch_sizes[stage:])

    def byte_width(self, stage: int) -> int:
        """d, the width of the embedding of one byte in `stage`.

        Rounded up where the stage's width is not divisible by its bytes for each position; the
        concatenated embeddings then go through a linear projection.
        """
        return -(-self.stages[stage].width // self.position_bytes(stage))

    @property
    def reach(self) -> int:
        """How many patches before its own a patch's stages below stage 0 depend on, at most: with
        cross-patch attention, one for each of their layers."""
        layers = sum(stage.layers for stage in self.stages[1:])
        return layers if self.cross_patch_attention else 0

    def is_projected(self, stage: int) -> bool:
        """Whether the stage's concatenated embeddings are wider than the stage."""
        return self.byte_width(stage) * self.position_bytes(stage) != self.stages[stage].width

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; the inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        return values | {"stages": list(values["stages"]), "patch_sizes": list(self.patch_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Builds a config from `to_dict`'s form; unknown, missing or wrong keys are ValueErrors."""
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

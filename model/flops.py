"""Cost of a model by formulas over its config: parameters, FLOPs per byte, memory of a step.

Shapes:
    b   bytes in a position of a stage       n   positions of a stage's sequence
    d   width of the embedding of one byte   r   positions of the preceding sequence attended to
    D   width of a stage                     h   hidden width of its feed-forward layers
    V   vocabulary

FLOPs are those of matrix products, 2 for each multiply-add. Look-ups, norms, softmax and what the
backward pass recomputes do not count. `attention` counts all pairs of a sequence (or of a window),
as PyTorch's counter and the usual model FLOPs utilisation do; `causal_attention` counts the pairs
that are not masked. All assume rows of `context` bytes of one document, which cost the most:
attention inside shorter documents costs less.
"""

from dataclasses import dataclass

from bytelm.model.attention import MAX_DENSE_QUERIES
from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.config import ModelConfig, feed_forward_width
from bytelm.model.embeddings import FEATURE_WIDTH, NgramEmbed, PatchEncoder


@dataclass(frozen=True)
class Cost:
    """Cost of a stage or of the output; FLOPs are those of the forward pass per byte of a row."""

    parameters: int
    products: float
    """FLOPs of activations times parameters."""
    attention: float = 0.0
    """FLOPs of queries times keys and weights times values, for all pairs of positions."""
    causal_attention: float = 0.0
    """`attention` of the pairs that are not masked, about half."""


def costs(config: ModelConfig) -> list[Cost]:
    """Costs of the stages, from global to local, and of the output."""
    return [*(_stage(config, index) for index in range(len(config.stages))), _output(config)]


def training_flops_per_byte(config: ModelConfig) -> float:
    """FLOPs per byte of the forward and the backward pass (twice the forward), all pairs."""
    return 3 * sum(cost.products + cost.attention for cost in costs(config))


def causal_training_flops_per_byte(config: ModelConfig) -> float:
    """`training_flops_per_byte` without the masked pairs."""
    return 3 * sum(cost.products + cost.causal_attention for cost in costs(config))


def generation_flops_per_byte(config: ModelConfig) -> float:
    """FLOPs per byte of decoding a row with caches, on average: no pair is masked."""
    return sum(cost.products + cost.causal_attention for cost in costs(config))


@dataclass(frozen=True)
class Activations:
    """Bytes that a rank holds for the backward pass where it begins, and what it recomputes."""

    stages: tuple[int, ...]
    logits: int
    """Logits, their gradients, and their copies in the type of the matrix products."""
    autocast_copies: int
    """Weights of the layers in bf16."""

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self.stages) + self.logits + self.autocast_copies


def activations(config: ModelConfig, rows: int = 1, number: int = 2, ranks: int = 1) -> Activations:
    """Memory of the activations of a training step.

    Where stage 0 is checkpointed it holds the input of every layer, its output and the output's
    gradient. Where the rest is, it holds one chunk. What one layer of stage 0 recomputes counts as
    far as it is more than the rest, which is gone by then.

    Args:
        config: the model.
        rows: rows of a micro batch on the ranks that share them.
        number: bytes of a number in matrix products: 2 under autocast to bf16, 4 in fp32.
        ranks: ranks that share the rows (sequence parallelism); the result is that of one rank.
    """
    copies = 0
    if number < 4:
        copies = number * sum(
            stage.layers * _layer_matrices(config, index)
            for index, stage in enumerate(config.stages)
        )
    patches = rows * config.context // config.patch // ranks
    chunk = min(config.local_chunk or patches, patches)
    held_patches = chunk if config.checkpoints_local else patches
    lower = [
        held_patches
        * (config.patch // config.position_bytes(index))
        * (stage.layers * _layer_bytes(config, index, number) + stage.width * (4 + number))
        for index, stage in enumerate(config.stages)
        if index > 0
    ]
    logits = config.patch * config.vocab_size * (4 * held_patches + (4 + number) * chunk)
    width, layers = config.stages[0].width, config.stages[0].layers
    layer = patches * _layer_bytes(config, 0, number)
    stage_0 = patches * width * (4 + number)  # last norm and output
    if config.checkpoints_global:
        stage_0 += patches * 4 * width * (layers + 2) + max(0, layer - sum(lower) - logits)
    else:
        stage_0 += layers * layer
    return Activations((stage_0, *lower), logits, copies)


def step_bytes(config: ModelConfig, rows: int = 1, number: int = 2, ranks: int = 1) -> int:
    """Memory of a training step beside the parameters and the optimizer, in bytes.

    It is largest either where the backward pass begins, which needs `activations`, or where it
    ends, which has all gradients. Arguments are those of `activations`.
    """
    parameters = sum(cost.parameters for cost in costs(config))
    held = activations(config, rows, number, ranks)
    gradients = 4 * parameters + held.autocast_copies
    return max(held.total, gradients)


def _layer_matrices(config: ModelConfig, index: int) -> int:
    """Parameters in the matrices of one layer of a stage."""
    width, inputs = config.stages[index].width, 2 if config.swiglu else 1
    return (4 * width + (inputs + 1) * feed_forward_width(width, config.swiglu)) * width


def _layer_bytes(config: ModelConfig, index: int, number: int) -> int:
    """Memory that the backward pass of one layer needs for each position of a stage, in bytes."""
    stage = config.stages[index]
    hidden = feed_forward_width(stage.width, config.swiglu)
    positions, back = config.sequence_length(index), config.cross_patch_keys(index)
    # Inputs of both norms in fp32; their outputs, queries, keys, values and attention's output.
    wide = 2 * 4 + number * (6 + 2 * config.qk_norm * (1 + config.rope))
    wide += 2 * 4 * config.rms_norm + 2 * number * (config.dropout > 0)
    inner = number * hidden * (4 if config.swiglu else 1)
    dense = 0
    if positions <= MAX_DENSE_QUERIES:  # keys and values of the preceding sequence, and weights
        dense = number * (2 * stage.width * back // positions + stage.heads * (positions + back))
    return stage.width * wide + inner + dense


def _stage(config: ModelConfig, index: int) -> Cost:
    """Cost of a stage with its embeddings."""
    shape, bytes_ = config.stages[index], config.position_bytes(index)
    positions, back = config.sequence_length(index), config.cross_patch_keys(index)
    parameters, multiplied = _inputs(config, index)
    norm = shape.width if config.rms_norm else 2 * shape.width
    matrices = _layer_matrices(config, index)
    block = matrices + 2 * norm + shape.heads * config.qk_norm
    parameters += shape.layers * block + norm
    multiplied += shape.layers * matrices
    pair = 4 * shape.width * shape.layers / bytes_  # FLOPs for each key of a position, per byte
    keys = min(positions, config.attention_window or positions) if index == 0 else positions
    return Cost(
        parameters,
        products=2 * multiplied / bytes_,
        attention=pair * (keys + back),
        causal_attention=pair * (keys - keys * (keys - 1) / (2 * positions) + back),
    )


def _inputs(config: ModelConfig, index: int) -> tuple[int, int]:
    """Parameters before the blocks of a stage, and their multiply-adds for each position."""
    width, byte_width = config.stages[index].width, config.byte_width(index)
    bytes_ = config.position_bytes(index)
    parameters, multiplied = config.vocab_size * byte_width + width, 0  # bytes and starts
    if index == 0:
        parameters += config.sequence_length(0) * bytes_ * byte_width  # position table
    matrices = 0
    if index > 0:  # the parent's output
        matrices += bytes_ * config.byte_width(index - 1) * width
    if config.is_projected(index):
        matrices += 2 * bytes_ * byte_width * width
    if index == 0 and config.conv_patch_encoder:
        length = bytes_ + PatchEncoder.REACH
        for size in PatchEncoder.FILTERS:
            length -= size - 1
            parameters += size * byte_width**2
            multiplied += length * size * byte_width**2
    if index == len(config.stages) - 1 and config.ngram_table_size:
        joined_ngrams = len(NgramEmbed.LENGTHS) * config.ngram_width
        parameters += joined_ngrams * config.ngram_table_size
        matrices += joined_ngrams * width
    if index == len(config.stages) - 1 and config.codec_features:
        joined_features = FEATURES * FEATURE_WIDTH
        parameters += 256 * FEATURE_WIDTH
        matrices += joined_features * width
    return parameters + matrices, multiplied + matrices


def _output(config: ModelConfig) -> Cost:
    """Cost of the output matrices."""
    matrix = config.stages[-1].width * config.vocab_size
    parameters = 0 if config.tie_embeddings else max(1, config.modality_heads) * matrix
    return Cost(parameters, products=2 * matrix)

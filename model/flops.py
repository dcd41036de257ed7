"""What a model costs, by formula from its config: parameters, FLOPs per byte, and memory.

Shapes:
    b   bytes in a position of a stage       n   positions of a stage's sequence
    d   width of the embedding of one byte   r   positions seen of the sequence before
    D   width of a stage                     h   hidden width of its feed-forward layers
    V   vocabulary

FLOPs are those of matrix products, 2 for each multiply-add: look-ups, norms, softmax and what is
computed again in the backward pass do not count. Attention counts all pairs of a sequence, as
PyTorch's counter and the usual model FLOPs utilisation do, all of a window where there is one, and
beside it those that are not masked.
Rows are `context` bytes of one document each, which is the most that a row costs: attention inside
shorter documents costs less.
"""

from dataclasses import dataclass

from bytelm.model.attention import MAX_DENSE_QUERIES
from bytelm.model.codec_features.layout import FEATURES
from bytelm.model.config import ModelConfig, feed_forward_width
from bytelm.model.embeddings import FEATURE_WIDTH, NgramEmbed, PatchEncoder


@dataclass(frozen=True)
class Cost:
    """Of a stage, or of the output; FLOPs are of a forward pass for each byte of the row."""

    parameters: int
    products: float
    """FLOPs of activations with weights."""
    attention: float = 0.0
    """FLOPs of queries with keys and of shares with values, for all pairs of places."""
    causal_attention: float = 0.0
    """`attention` of the pairs that are not masked, about half."""


def costs(config: ModelConfig) -> list[Cost]:
    """Of each stage, from global to local, and of the output."""
    return [*(_stage(config, index) for index in range(len(config.stages))), _output(config)]


def training_flops_per_byte(config: ModelConfig) -> float:
    """Of forward and backward, which is twice the forward; attention counts all pairs."""
    return 3 * sum(cost.products + cost.attention for cost in costs(config))


def causal_training_flops_per_byte(config: ModelConfig) -> float:
    """`training_flops_per_byte` without the pairs that attention masks."""
    return 3 * sum(cost.products + cost.causal_attention for cost in costs(config))


def generation_flops_per_byte(config: ModelConfig) -> float:
    """Of decoding with caches, on average over a row: each byte sees only what is before it."""
    return sum(cost.products + cost.causal_attention for cost in costs(config))


def step_bytes(config: ModelConfig, rows: int = 1, number: int = 2, ranks: int = 1) -> int:
    """The memory of a training step of `rows` above that of parameters and optimizer, on one of the
    `ranks` that share them.

    number: bytes of a number in matrix products: 2 under autocast to bf16, 4 for fp32.

    What the backward pass needs of the forward pass is largest where it begins, gradients where
    it ends. With checkpointing the first of these is the input of every layer of stage 0, its
    output and that output's gradient, and what one chunk or one layer of stage 0 computes again.
    """
    parameters = sum(cost.parameters for cost in costs(config))
    copies = 0  # of matrices in autocast's type
    if number < 4:
        stages = enumerate(config.stages)
        copies = number * sum(stage.layers * _layer_matrices(config, i) for i, stage in stages)
    patches = rows * config.context // config.patch // ranks
    chunk = min(config.local_chunk or patches, patches)
    layers, layer = config.stages[0].layers, patches * _layer_bytes(config, 0, number)
    stage_0 = patches * config.stages[0].width * (4 + number)  # of its last norm and its output
    logits = config.patch * config.vocab_size  # of a patch
    lower = sum(
        config.patch
        // config.position_bytes(index)
        * (stage.layers * _layer_bytes(config, index, number) + stage.width * (4 + number))
        for index, stage in enumerate(config.stages[1:], 1)
    )  # of a patch
    in_turn = chunk * logits * (4 + number)  # gradients of the logits
    if config.activation_checkpointing:
        stage_0 += patches * 4 * config.stages[0].width * (layers + 2)
        held = stage_0 + max(layer, chunk * (lower + 4 * logits) + in_turn)
    else:
        held = stage_0 + layers * layer + patches * (lower + 4 * logits) + in_turn
    return copies + max(held, 4 * parameters)


def _layer_matrices(config: ModelConfig, index: int) -> int:
    """Numbers in the matrices of a layer of a stage."""
    width, inputs = config.stages[index].width, 2 if config.swiglu else 1
    return (4 * width + (inputs + 1) * feed_forward_width(width, config.swiglu)) * width


def _layer_bytes(config: ModelConfig, index: int, number: int) -> int:
    """What the backward pass of a layer needs, for each position of a stage."""
    stage = config.stages[index]
    hidden = feed_forward_width(stage.width, config.swiglu)
    places, back = sequence(config, index)
    # Both norms' inputs; their outputs, queries, keys, values, attention's output; their norms.
    wide = 2 * 4 + number * (6 + 2 * config.qk_norm * (1 + config.rope))
    wide += 2 * 4 * config.rms_norm + 2 * number * (config.dropout > 0)
    inner = number * hidden * (4 if config.swiglu else 1)
    seen = 0
    if places <= MAX_DENSE_QUERIES:  # keys and values of the sequence before, and shares
        seen = number * (2 * stage.width * back // places + stage.heads * (places + back))
    return stage.width * wide + inner + seen


def sequence(config: ModelConfig, index: int) -> tuple[int, int]:
    """n and r of a stage."""
    if index == 0:
        return config.context // config.patch, 0
    places = config.patch_sizes[index - 1]
    return places, min(config.cross_patch_attention, places)


def _stage(config: ModelConfig, index: int) -> Cost:
    shape, bytes_ = config.stages[index], config.position_bytes(index)
    width, byte_width = shape.width, config.byte_width(index)
    joined = bytes_ * byte_width  # b d
    places, back = sequence(config, index)
    norm = width if config.rms_norm else 2 * width

    matrices = _layer_matrices(config, index)
    block = matrices + 2 * norm + shape.heads * config.qk_norm
    parameters = shape.layers * block + norm + config.vocab_size * byte_width + width
    multiplied = shape.layers * matrices  # multiply-adds of a position
    if index == 0:
        parameters += places * joined
    else:
        parent = bytes_ * config.byte_width(index - 1) * width
        parameters, multiplied = parameters + parent, multiplied + parent
    if config.is_projected(index):
        projections = 2 * joined * width
        parameters, multiplied = parameters + projections, multiplied + projections
    if index == 0 and config.conv_patch_encoder:
        length = bytes_ + PatchEncoder.REACH
        for size in PatchEncoder.FILTERS:
            length -= size - 1
            parameters += size * byte_width**2
            multiplied += length * size * byte_width**2
    if index == len(config.stages) - 1 and config.ngram_table_size:
        grams = len(NgramEmbed.LENGTHS) * config.ngram_width
        parameters += grams * config.ngram_table_size + grams * width
        multiplied += grams * width
    if index == len(config.stages) - 1 and config.codec_features:
        joined_hints = FEATURES * FEATURE_WIDTH
        parameters += 256 * FEATURE_WIDTH + joined_hints * width
        multiplied += joined_hints * width
    pair = 4 * width * shape.layers / bytes_  # FLOPs for each key of a position, per byte
    seen = min(places, config.attention_window or places) if index == 0 else places
    return Cost(
        parameters,
        products=2 * multiplied / bytes_,
        attention=pair * (seen + back),
        causal_attention=pair * (seen - seen * (seen - 1) / (2 * places) + back),
    )


def _output(config: ModelConfig) -> Cost:
    matrix = config.stages[-1].width * config.vocab_size
    parameters = 0 if config.tie_embeddings else max(1, config.modality_heads) * matrix
    return Cost(parameters, products=2 * matrix)

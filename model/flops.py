"""What a model costs, by formula from its config: parameters and FLOPs per byte.

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

from bytelm.model.config import ModelConfig
from bytelm.model.layers import NgramEmbed, PatchEncoder


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


def generation_flops_per_byte(config: ModelConfig) -> float:
    """Of decoding with caches, on average over a row: each byte sees only what is before it."""
    return sum(cost.products + cost.causal_attention for cost in costs(config))


def hidden_width(config: ModelConfig, index: int) -> int:
    """h of a stage: the width between its feed-forward layer's two matrices."""
    width = config.stages[index].width
    return -(-8 * width // 24) * 8 if config.gated_feed_forward else 4 * width


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
    hidden = hidden_width(config, index)
    inputs = 2 if config.gated_feed_forward else 1
    norm = width if config.rms_norm else 2 * width

    matrices = (4 * width + (inputs + 1) * hidden) * width  # of a layer
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
    if index == len(config.stages) - 1 and config.ngram_rows:
        grams = len(NgramEmbed.LENGTHS) * config.ngram_width
        parameters += grams * config.ngram_rows + grams * width
        multiplied += grams * width
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
    parameters = 0 if config.tied_output else max(1, config.modality_heads) * matrix
    return Cost(parameters, products=2 * matrix)

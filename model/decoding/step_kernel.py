"""A step of the decoder in one compiled call: from the ids of rows to the logits of the next one.

Shapes:
    B   rows of the decoder      R   rows that a call advances
    b   bytes in a position of a stage
    m   positions in a sequence of a stage: a row for stage 0, else a position of its parent
    r   positions of the preceding sequence that a position attends to
    D   width of a stage         H   heads of c channels
    V   vocabulary               J   codec features of an id

The equations are those of `layers.py`, `stage.py` and `embeddings.py`; `step_layout.py` lays the
model out in the arrays and records of `step_records.py`, so that one compilation serves all models.

Every number that a row computes is added up in an order that depends on no other row: logits are
bit-identical alone and in any batch. All kernels but products and exponentials stand in this file
because Numba's cache on disk looks at the file of the outermost one, and at what it is told.
"""

from functools import partial

import numpy as np

from bytelm.model import float_kernel
from bytelm.model.codec_features.layout import PHASE
from bytelm.model.decoding import step_products
from bytelm.model.decoding.step_products import clear, copy, linear_product
from bytelm.model.decoding.step_records import Floats, Ints, Record, Step
from bytelm.model.embeddings import NgramEmbed
from bytelm.model.float_kernel import exp
from bytelm.model.numba_kernels import kernel, kernel_part

FINE_POSITIONS = 64
"""Positions whose rotations a table lists; a second one lists every FINE_POSITIONS-th."""
X, INPUT, WIDE, HIDDEN, OUTPUT = range(5)
"""Buffers of a call: the residual stream, inputs of products, and their outputs."""
BUFFERS = 5
NGRAM_FACTOR, NGRAM_PRIME = NgramEmbed._FACTOR, NgramEmbed._PRIME

_kernel = partial(kernel_part, fastmath={"contract"})
_sum_kernel = partial(kernel_part, fastmath={"contract", "reassoc", "nsz"})
"""For sums over one row, which the compiler may add up in lanes."""


@partial(kernel, parts=[float_kernel, step_products])
def advance_rows(step: Step, rows: Ints, new_ids: Ints, active: Ints, logits: Floats) -> None:
    """Append an id to each of `rows` [R], and compute the logits of the ids after them.

    Args:
        new_ids: [B].
        active: [R], whatever it holds.
        logits: [B, V]; only those of `rows` change.
    """
    for row in rows:
        step.ids[row, step.lookback + step.held[row]] = new_ids[row]
        step.held[row] += 1
    stages, blocks, buffers = step.stages, step.blocks, step.buffers
    for index in range(len(stages)):
        stage = stages[index]
        count = 0
        for row in rows:
            if step.held[row] % stage.position_bytes == 0:
                active[count] = row
                count += 1
        if count:
            _token_inputs(step, stage, active[:count])
            for number in range(stage.first_block, stage.last_block):
                _attention(step, stage, blocks[number], active[:count])
                _feed_forward(step, stage, blocks[number], count)
            _norm(step.weights, stage.norm, stage.width, count, buffers[X], buffers[INPUT])
            if index + 1 < len(stages):
                _hand_down(step, stage, stages[index + 1], active[:count])
    _logits(step, rows, logits)


@_kernel
def _look_up(weights: Floats, table: int, line: int, target: Floats) -> None:
    """Fill the target with a line of a table, or with zeros for line -1."""
    if line < 0:
        clear(target)
    else:
        copy(weights[table + line * len(target) :], target)


@_kernel
def _add_product(step: Step, linear: Record, x: Floats, x_stride: int, rows: int) -> None:
    """Add W x to each row of the residual stream."""
    buffers = step.buffers
    width = linear.outputs
    linear_product(step, linear, x, x_stride, buffers[OUTPUT], width, rows)
    stream, product = buffers[X], buffers[OUTPUT]
    for k in range(rows * width):
        stream[k] += product[k]


# --- blocks ---


@_kernel
def _attention(step: Step, stage: Record, block: Record, rows: Ints) -> None:
    """Add the attention layer's output to the residual stream of `rows`."""
    weights, cache, buffers = step.weights, step.cache, step.buffers
    width, heads = stage.width, stage.heads
    channels = width // heads
    m, r = stage.sequence_length, stage.previous
    of_head = (r + m) * channels
    _norm(weights, block.attention_norm, width, len(rows), buffers[X], buffers[INPUT])
    linear_product(step, block.qkv, buffers[INPUT], width, buffers[WIDE], 3 * width, len(rows))
    cos_sin, scores = buffers[OUTPUT, :channels], buffers[OUTPUT, channels:]
    for number, row in enumerate(rows):
        position = step.held[row] // stage.position_bytes
        slot = r + position % m
        first = max(r if position < m else 0, slot + 1 - stage.window)
        qkv = buffers[WIDE, number * 3 * width : (number + 1) * 3 * width]
        _turn(step, stage, block, position, cos_sin, qkv)
        for head in range(heads):
            at, low = (row * heads + head) * of_head, head * channels
            keys = cache[block.keys + at : block.keys + at + of_head]
            values = cache[block.values + at : block.values + at + of_head]
            if slot == r:  # a new sequence: the last r slots become those of the preceding one
                copy(keys[m * channels :], keys[: r * channels])
                copy(values[m * channels :], values[: r * channels])
            end = (slot + 1) * channels
            newest = slice(end - channels, end)
            copy(qkv[width + low : width + low + channels], keys[newest])
            copy(qkv[2 * width + low : 2 * width + low + channels], values[newest])
            seen = slice(first * channels, end)
            output = buffers[HIDDEN, number * width + low : number * width + low + channels]
            _attend(qkv[low : low + channels], keys[seen], values[seen], scores, output)
    _add_product(step, block.output, buffers[HIDDEN], width, len(rows))


@_kernel
def _turn(
    step: Step, stage: Record, block: Record, position: int, cos_sin: Floats, qkv: Floats
) -> None:
    """Norm and rotate the queries and keys in qkv [3 D] of one row, as the model asks for."""
    weights, rotations = step.weights, step.rotations
    channels = stage.width // stage.heads
    pairs = channels // 2
    cos, sin = cos_sin[:pairs], cos_sin[pairs:]
    if stage.rotations >= 0:  # by the sum of the angles that the two tables list
        coarse = stage.rotations + position // FINE_POSITIONS * 2 * pairs
        fine = stage.rotations + (stage.coarse_positions + position % FINE_POSITIONS) * 2 * pairs
        for k in range(pairs):
            cos_a, sin_a = rotations[coarse + k], rotations[coarse + pairs + k]
            cos_b, sin_b = rotations[fine + k], rotations[fine + pairs + k]
            cos[k] = cos_a * cos_b - sin_a * sin_b
            sin[k] = sin_a * cos_b + cos_a * sin_b
    for head in range(2 * stage.heads):
        x = qkv[head * channels : (head + 1) * channels]
        if block.qk_gain >= 0:
            scale = weights[block.qk_gain + head] / np.sqrt(
                _dot(x, x) / np.float32(channels) + np.float32(1e-5)
            )
            for k in range(channels):
                x[k] *= scale
        if stage.rotations >= 0:
            for k in range(pairs):
                low, high = x[k], x[pairs + k]
                x[k] = low * cos[k] - high * sin[k]
                x[pairs + k] = high * cos[k] + low * sin[k]


@_kernel
def _attend(q: Floats, keys: Floats, values: Floats, scores: Floats, output: Floats) -> None:
    """Softmax attention of one query [c] to keys and values [n, c]; fills output [c]."""
    channels = len(q)
    n = len(keys) // channels
    highest = np.float32(-np.inf)
    for j in range(n):
        scores[j] = _dot(q, keys[j * channels : (j + 1) * channels])
        highest = max(highest, scores[j])
    for j in range(n):
        scores[j] = exp(scores[j] - highest)
    clear(output)
    for j in range(n):
        value, weight = values[j * channels : (j + 1) * channels], scores[j]
        for k in range(channels):
            output[k] += weight * value[k]
    factor = np.float32(1.0) / _sum(scores[:n])
    for k in range(channels):
        output[k] *= factor


@_kernel
def _feed_forward(step: Step, stage: Record, block: Record, rows: int) -> None:
    """Add the feed-forward layer's output to the residual stream of the first `rows` rows."""
    weights, buffers = step.weights, step.buffers
    width, up, hidden = stage.width, block.up.outputs, block.down.inputs
    _norm(weights, block.feed_forward_norm, width, rows, buffers[X], buffers[INPUT])
    linear_product(step, block.up, buffers[INPUT], width, buffers[WIDE], up, rows)
    for row in range(rows):
        x = buffers[WIDE, row * up : (row + 1) * up]
        y = buffers[HIDDEN, row * hidden : (row + 1) * hidden]
        if stage.swiglu:
            gate, value = x[:hidden], x[hidden:]
            for k in range(hidden):
                y[k] = gate[k] / (np.float32(1.0) + exp(-gate[k])) * value[k]
        else:
            for k in range(hidden):
                y[k] = max(x[k], np.float32(0.0))
    _add_product(step, block.down, buffers[HIDDEN], hidden, rows)


@_kernel
def _norm(weights: Floats, norm: Record, width: int, rows: int, x: Floats, y: Floats) -> None:
    """LayerNorm or RMSNorm of each row of x [R, width], into y."""
    gain = weights[norm.gain : norm.gain + width]
    for row in range(rows):
        of_x, of_y = x[row * width : (row + 1) * width], y[row * width : (row + 1) * width]
        mean = np.float32(0.0)
        if norm.bias >= 0:
            mean = _sum(of_x) / np.float32(width)
        for k in range(width):
            of_y[k] = of_x[k] - mean
        scale = np.float32(1.0) / np.sqrt(_dot(of_y, of_y) / np.float32(width) + norm.eps)
        for k in range(width):
            of_y[k] = of_y[k] * scale * gain[k]
        if norm.bias >= 0:
            bias = weights[norm.bias : norm.bias + width]
            for k in range(width):
                of_y[k] += bias[k]


@_sum_kernel
def _sum(x: Floats) -> np.float32:
    total = np.float32(0.0)
    for k in range(len(x)):
        total += x[k]
    return total


@_sum_kernel
def _dot(x: Floats, y: Floats) -> np.float32:
    total = np.float32(0.0)
    for k in range(len(x)):
        total += x[k] * y[k]
    return total


# --- inputs and outputs of a stage ---


@_kernel
def _token_inputs(step: Step, stage: Record, rows: Ints) -> None:
    """Fill the residual stream with the input of the stage's new position in `rows`."""
    weights, buffers, held = step.weights, step.buffers, step.held
    width, joined = stage.width, stage.position_bytes * stage.byte_width
    embedded = buffers[X]
    if stage.patch_in.outputs:
        embedded = buffers[INPUT]
    for number, row in enumerate(rows):
        preceding = step.ids[row, : step.lookback + step.held[row]]
        output = embedded[number * joined : (number + 1) * joined]
        _embed_bytes(step, stage, preceding[-stage.embedded_ids :], output)
        position = held[row] // stage.position_bytes
        if stage.position_embed >= 0 and position:
            table = weights[stage.position_embed + (position - 1) * joined :]
            for k in range(joined):
                output[k] += table[k]
    if stage.patch_in.outputs:
        linear_product(step, stage.patch_in, embedded, joined, buffers[X], width, len(rows))
    for number, row in enumerate(rows):
        position = held[row] // stage.position_bytes
        is_start = position == 0
        if not stage.previous and position % stage.sequence_length == 0:
            is_start = True
        if is_start:
            start = weights[stage.start : stage.start + width]
            copy(start, buffers[X, number * width : (number + 1) * width])
    if stage.parent.outputs:
        _add_parent(step, stage, rows)
    if stage.ngram_in.outputs:
        _add_ngrams(step, stage, rows)
    if stage.feature_in.outputs:
        _add_features(step, stage, rows)


@_kernel
def _embed_bytes(step: Step, stage: Record, ids: Ints, output: Floats) -> None:
    """Embeddings [b, d] of the ids of one position, by way of the patch encoder if there is one.

    Args:
        ids: [embedded_ids], -1 before the start of the document.
    """
    weights, buffers = step.weights, step.buffers
    width = stage.byte_width
    if not stage.filter_3.outputs:
        for number, id_ in enumerate(ids):
            embedding = output[number * width : (number + 1) * width]
            _look_up(weights, stage.byte_embed, max(id_, 0), embedding)
        return
    x, y = buffers[WIDE], buffers[HIDDEN]
    for number, id_ in enumerate(ids):
        _look_up(weights, stage.byte_embed, id_, x[number * width : (number + 1) * width])
    length = len(ids)
    for convolution in (stage.filter_3, stage.filter_5, stage.filter_7):
        reach = (convolution.inputs // width - 1) * width
        length -= reach // width
        linear_product(step, convolution, x, width, y, width, length)
        for k in range(length * width):
            y[k] = x[reach + k] + max(y[k], np.float32(0.0))
        x, y = y, x
    copy(x, output)


@_kernel
def _add_parent(step: Step, stage: Record, rows: Ints) -> None:
    """Add each row's slice of its parent's output, through the stage's matrix."""
    cache, buffers, held = step.cache, step.buffers, step.held
    size = stage.parent.inputs
    for number, row in enumerate(rows):
        offset = held[row] // stage.position_bytes % stage.sequence_length
        start = stage.parent_output + (row * stage.sequence_length + offset) * size
        slice_ = buffers[INPUT, number * size : (number + 1) * size]
        copy(cache[start : start + size], slice_)
    _add_product(step, stage.parent, buffers[INPUT], size, len(rows))


@_kernel
def _add_ngrams(step: Step, stage: Record, rows: Ints) -> None:
    """Add the embeddings of the 2-, 3- and 4-grams before each row's position (`NgramEmbed`)."""
    weights, buffers, features = step.weights, step.buffers, step.features
    width, joined = stage.ngram_width, stage.ngram_in.inputs
    for number, row in enumerate(rows):
        preceding = step.ids[row, : step.lookback + step.held[row]]
        is_sample = stage.feature_in.outputs > 0 and features[row, PHASE] >= 0
        for table, n in enumerate((2, 3, 4)):
            at = number * joined + table * width
            embedding = buffers[INPUT, at : at + width]
            if is_sample or preceding[-n] < 0:
                clear(embedding)
                continue
            hashed = np.int64(0)
            for id_ in preceding[-n:]:
                hashed = (hashed * NGRAM_FACTOR + id_ + 1) % NGRAM_PRIME
            line = hashed % stage.ngram_table_size + table * stage.ngram_table_size
            _look_up(weights, stage.ngram_embed, line, embedding)
    _add_product(step, stage.ngram_in, buffers[INPUT], joined, len(rows))


@_kernel
def _add_features(step: Step, stage: Record, rows: Ints) -> None:
    """Add the embeddings of each row's codec features."""
    weights, buffers, features = step.weights, step.buffers, step.features
    joined = stage.feature_in.inputs
    width = joined // features.shape[1]
    for number, row in enumerate(rows):
        for column in range(features.shape[1]):
            feature, at = features[row, column], number * joined + column * width
            embedding = buffers[INPUT, at : at + width]
            _look_up(weights, stage.feature_embed, feature, embedding)
    _add_product(step, stage.feature_in, buffers[INPUT], joined, len(rows))


@_kernel
def _hand_down(step: Step, stage: Record, below: Record, rows: Ints) -> None:
    """Store the stage's output of `rows`, from which the stage below begins new sequences."""
    cache, buffers = step.cache, step.buffers
    size = below.sequence_length * below.parent.inputs
    output = buffers[INPUT]
    if stage.patch_out.outputs:
        output = buffers[WIDE]
        linear_product(step, stage.patch_out, buffers[INPUT], stage.width, output, size, len(rows))
    for number, row in enumerate(rows):
        start = below.parent_output + row * size
        copy(output[number * size : (number + 1) * size], cache[start : start + size])


@_kernel
def _logits(step: Step, rows: Ints, logits: Floats) -> None:
    """Fill the logits of `rows`. Neighbours of the same modality share a product."""
    buffers, modality = step.buffers, step.modality
    first = 0
    while first < len(rows):
        head = step.heads[modality[rows[first]]]
        last = first + 1
        while last < len(rows) and modality[rows[last]] == modality[rows[first]]:
            last += 1
        x = buffers[INPUT, first * head.inputs :]
        linear_product(step, head, x, head.inputs, buffers[OUTPUT], head.outputs, last - first)
        for number in range(first, last):
            start = (number - first) * head.outputs
            copy(buffers[OUTPUT, start : start + head.outputs], logits[rows[number]])
        first = last

"""State of output mixing in rows: what `predictors` and `kernels` read and write.

Shapes:
    B rows of up to T ids    C contexts    I inputs of a mixer    F factors of a regression
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CONTEXTS = 18
"""C, contexts with counts of the bits that followed them."""
REGRESSIONS = 5
"""The most predictions of a pixel's byte or of a sample, each with a logistic distribution around
it."""
MATCH_LEVELS = 32
"""Lengths of matches that are told apart; level 0 stands for no match."""

PREDICTION = np.dtype(
    [
        ("kind", np.int64),  # of the id's payload, as in `codec_features.state`
        ("size", np.int64),  # bytes of the payload before it
        ("is_low", np.int64),  # 1 in the low byte of a sample
        ("high", np.int64),  # there, the signed high byte
        ("hashes", np.uint64, (CONTEXTS,)),
        ("contexts", np.int64),  # how many of them the kind has
        ("expected", np.int64),  # the byte that the match predicts; -1 for none
        ("level", np.int64),  # of the match's length
        ("regressions", np.int64),  # how many of these predictions the kind has
        ("letters", np.int64),  # of a text's word so far
        ("means", np.float64, (REGRESSIONS,)),
        ("widths", np.float64, (REGRESSIONS,)),  # of the distributions around the means
    ],
    align=True,
)
"""Predictions of an id, made from those before it alone."""

# --- predictors ---

CHANNELS = 6
"""Channels (bytes of a pixel) with a regression of their own; further ones share the last."""
FACTORS = 32
"""F, of samples; pixels have PIXEL_FACTORS."""
PIXEL_FACTORS = 26
BLOCKS = 64
"""Blocks of columns of an image, each with sums of its own for the regression of pixels."""
FITS = 2
"""Regressions of a channel, with memories of their own; pixels have one."""
TAPS = 256
"""The most values before that a filter of samples reads."""
STAGES = 3
"""Filters behind a regression of samples."""
ACTIVITIES = 32
"""Levels of how wrong the predictions of a pixel's neighbours were."""
LEAST_MATCH_SLOTS, MOST_MATCH_SLOTS = 1 << 16, 1 << 22

ROW = np.dtype(
    [
        ("place", np.int64, (6,)),  # of the latest id, by columns of `codec_features.layout`
        ("id", np.int64),  # the latest, which is learned before the next one is predicted
        ("match", np.int64),  # index in the payload of the byte that the match predicts; -1: none
        ("match_length", np.int64),
        ("samples", np.int64),  # of all channels
        ("activity", np.int64),  # of the next pixel's byte
        ("spread", np.float64),  # mean error of the predictions of its neighbours
        ("line", np.int64),  # index in the payload where the line of text begins
        ("line_before", np.int64),  # and the one before it
        ("marks", np.int64),  # the last three bytes that belong to no word
        ("letters", np.int64),  # of the word so far
        ("word", np.uint64),  # a hash of them
        ("word_before", np.uint64),
        ("word_second", np.uint64),  # the one before that
        ("sums", np.float64, (1 + STAGES,)),  # of a sample: the regression, and with each filter
    ],
    align=True,
)
"""State of a row's predictors beside its arrays."""


class PredictorState(NamedTuple):
    """State of the predictors of B rows. Threads may work on different rows at a time."""

    rows: npt.NDArray[np.void]
    """[B] of ROW."""
    predictions: npt.NDArray[np.void]
    """[B] of PREDICTION, of each row's latest id."""
    bytes: npt.NDArray[np.uint8]
    """[B, T] of the payload."""
    positions: npt.NDArray[np.int32]
    """[B, slots] for hashes of the last bytes, the index in the payload of the byte after
    them, plus 1; 0 where there is none."""
    samples: npt.NDArray[np.float64]
    """[B, TAPS + T / 2 + 1] samples of the payload, channels interleaved, behind zeros."""
    rests: npt.NDArray[np.float64]
    """[B, STAGES, TAPS + T / 2 + 1] what the stages before each filter left of them."""
    neighbours: npt.NDArray[np.float64]
    """[B, F] what the regression reads at the next byte or sample."""
    moments: npt.NDArray[np.float64]
    """[B, FITS, CHANNELS, F, F + 1] sums of products of neighbours; in the last column, of those
    with what they predict."""
    blocks: npt.NDArray[np.float64]
    """[B, CHANNELS, BLOCKS, PIXEL_FACTORS, PIXEL_FACTORS + 1] the same of pixels, by blocks of
    columns."""
    pixel_errors: npt.NDArray[np.float32]
    """[B, T] how far the regression was from each byte of a pixel."""
    factors: npt.NDArray[np.float64]
    """[B, FITS, CHANNELS, F] of the regressions."""
    solver: npt.NDArray[np.float64]
    """[B, F, F + 1] scratch of the normal equations."""
    filters: npt.NDArray[np.float64]
    """[B, CHANNELS, STAGES, TAPS] factors of the filters of samples, the newest value's last."""
    errors: npt.NDArray[np.float64]
    """[B, REGRESSIONS, CHANNELS, ACTIVITIES] mean absolute errors: of pixels by activity, of
    samples a fast mean and a slow one, of the last prediction a very fast one."""


def new_predictors(batch: int, length: int) -> PredictorState:
    """State of the predictors of `batch` rows of up to `length` ids of a payload."""
    slots = min(max(LEAST_MATCH_SLOTS, 1 << length.bit_length()), MOST_MATCH_SLOTS)
    return PredictorState(
        rows=np.zeros(batch, ROW),
        predictions=np.zeros(batch, PREDICTION),
        bytes=np.zeros((batch, length), np.uint8),
        positions=np.zeros((batch, slots), np.int32),
        samples=np.zeros((batch, TAPS + length // 2 + 1)),
        rests=np.zeros((batch, STAGES, TAPS + length // 2 + 1)),
        neighbours=np.zeros((batch, FACTORS)),
        moments=np.zeros((batch, FITS, CHANNELS, FACTORS, FACTORS + 1)),
        blocks=np.zeros((batch, CHANNELS, BLOCKS, PIXEL_FACTORS, PIXEL_FACTORS + 1)),
        pixel_errors=np.zeros((batch, length), np.float32),
        factors=np.zeros((batch, FITS, CHANNELS, FACTORS)),
        solver=np.zeros((batch, FACTORS, FACTORS + 1)),
        filters=np.zeros((batch, CHANNELS, STAGES, TAPS)),
        errors=np.zeros((batch, REGRESSIONS, CHANNELS, ACTIVITIES)),
    )


# --- mixers ---

NETWORK, MATCH, REGRESSION, BIAS = 0, 1 + CONTEXTS, 2 + CONTEXTS, 2 + CONTEXTS + REGRESSIONS
"""Inputs of a mixer: the network, from 1 on the contexts, a match, the regressions, a constant."""
INPUTS = BIAS + 1
"""Inputs in use."""
WIDTH = -(-INPUTS // 16) * 16
"""I, inputs with zeros behind them: sums over so many run in lanes."""
MOST_COUNT = 30
"""Counts of a bit go no further."""
CONFIDENCE_LEVELS = 6
BIT_SETS = 16
"""Weights by the bit's position in its byte, and in a sample by the byte."""
BYTE_SETS, WORD_SETS, LONGEST_WORD = 8 * 256, 8 * 20, 19
"""Weights by the byte before, and by the letters of a word so far, both with the bit's position."""
NODES = 256
"""The bits of a byte so far are one of the nodes of a tree, from 1 on."""
MATCH_SET = BIT_SETS
CONFIDENCE_SET = MATCH_SET + MATCH_LEVELS
NODE_SET = CONFIDENCE_SET + CONFIDENCE_LEVELS * (CONTEXTS + 1)
BYTE_SET = NODE_SET + NODES
WORD_SET = BYTE_SET + BYTE_SETS
SETS = WORD_SET + WORD_SETS
"""Sets of weights. CHOSEN_SETS of them mix each bit: by match, by how sure the network is and how
many contexts were seen before; of pixels and samples by the bit's position; of texts by the bits so
far, by the byte before and by the word."""
CHOSEN, CHOSEN_SETS = 5, np.array([3, 5, 3, 3])
FINAL_SETS = NODES + BYTE_SETS
"""Sets of weights of the final mixer, which adds up the logits of those sets and, behind them, the
network's own: a good network needs no learned weights to be heard. The sum of two sets does so for
each bit: of one of the first NODES, by the bits of the byte so far (of samples by the bit's
position), and of one of the others, by the byte before and the bit's position."""
FINAL_CHOSEN = 2
MIXTURE = CHOSEN + 1
"""Inputs of the final mixer, and the index of its own logit behind them."""
NETWORK_SHARES = np.array([0.0, 0.2, 0.0, 0.0])
"""[KINDS] first weights of the network in the final mixer; those of the sets are equal, and all
together are 1."""
KINDS = 4
"""As `codec_features.state` counts kinds of payloads; each has weights of its own."""

FIRST_WEIGHTS = np.array(
    [  # by kind: the network, CONTEXTS, the match, REGRESSIONS, the constant
        [1.0, *[0.0] * 18, 0.0, *[0.0] * 5, 0.0],
        [0.8, *[0.06] * 18, 0.05, *[0.0] * 5, 0.0],
        [0.55, 0.1, 0.1, 0.3, 0.15, 0.1, 0.1, *[0.0] * 12, 0.0, 0.3, 0.08, 0.1, 0.0, 0.0, 0.0],
        [0.5, 0.03, 0.03, *[0.0] * 16, 0.0, 0.12, 0.1, 0.1, 0.13, 0.13, 0.0],
    ]
)
"""[KINDS, I] weights before anything was learned: of pixels and samples means of those after some
documents, rounded."""

SLOT_BYTES = 32
"""Bytes of a slot: a check of the hash, and two counts for each of 15 nodes of half a byte."""
EDGES = -(-2 * REGRESSIONS // 8) * 8
"""Two for each regression, and more that fill the lanes."""
REFINED_LEVELS, MOST_REFINED = 33, 8.0
"""Levels of a logit in [-MOST_REFINED, MOST_REFINED] at which it is refined."""
FRESH, ENDED, OPEN = range(3)
"""Rows that no document has used, whose document has ended, and in a document."""

MIXER_ROW = np.dtype(
    [
        ("phase", np.int64),
        ("byte", np.int64),  # the document's last one; 0 before its first
        ("byte_before", np.int64),  # that one
        ("zeros", np.float32, (WIDTH,)),  # of the next bit by each predictor, the odds against
        ("ones", np.float32, (WIDTH,)),  # and for a one, in any unit,
        ("tails", np.float32, (WIDTH,)),  # and what their logit lacks
        ("edges", np.float32, (EDGES,)),  # of the next bit's halves, under the regressions
        ("slots", np.int64, (CONTEXTS,)),  # of each context's counts, in this half of a byte
        ("inputs", np.float32, (WIDTH,)),
        ("sets", np.int64, (CHOSEN,)),
        ("final_sets", np.int64, (FINAL_CHOSEN,)),
        ("logits", np.float32, (MIXTURE + 1,)),  # by each set, by the network, by all of these
        ("mixed", np.float32, (MIXTURE + 1,)),  # probabilities of these logits
        ("refinement", np.int64),  # the context of the next bit's, and the level below its logit
        ("level", np.int64),
        ("above", np.float32),  # how far the logit lies above that level, 0 to 1
    ],
    align=True,
)
"""State of a row's mixer beside its arrays."""


class MixerState(NamedTuple):
    """State of the mixers of B rows. Threads may work on different rows at a time."""

    rows: npt.NDArray[np.void]
    """[B] of MIXER_ROW."""
    network: npt.NDArray[np.float32]
    """[B, 512] the network's next byte as a binary tree: node 1 is any byte, 2 n + bit the half of
    node n, 256 + x the byte x. In units of the likeliest id's probability."""
    counts: npt.NDArray[np.uint8]
    """[B, C, slots, SLOT_BYTES]: at 0 and 1 a check of the hash of a context and of the byte's
    first four bits if there are any, at 2 n the zeros and ones after the bits of node n."""
    likelihoods: npt.NDArray[np.float32]
    """[B, KINDS, C, MOST_COUNT + 1, MOST_COUNT + 1, 2] for each pair of counts the probability of
    a one, and how often it was seen."""
    hits: npt.NDArray[np.float64]
    """[B, MATCH_LEVELS, 2] how often matches of a length predicted a bit, and out of how many."""
    weights: npt.NDArray[np.float32]
    """[B, KINDS, SETS, I]."""
    final_weights: npt.NDArray[np.float32]
    """[B, KINDS, FINAL_SETS, MIXTURE] of the sets' logits and the network's."""
    refinements: npt.NDArray[np.float32]
    """[B, contexts, REFINED_LEVELS] what is added to a probability at a level of its logit, by the
    last two bytes and the bits so far."""


def new_mixers(batch: int, length: int) -> MixerState:
    """State of the mixers of `batch` rows.

    Args:
        length: the most ids of a document; the tables of counts grow with it, and what they hold
            depends on their size.

    Memory: 25 MB a row of 12,544 ids, 615 MB one of 500,000 and more; the kernel gives only pages
    that are used.
    """
    slots = 1 << min(max(10, (2 * length).bit_length()), 20)
    pairs = MOST_COUNT + 1
    return MixerState(
        rows=np.zeros(batch, MIXER_ROW),
        network=np.zeros((batch, 512), np.float32),
        counts=_aligned_zeros(batch, CONTEXTS, slots, SLOT_BYTES),
        likelihoods=np.zeros((batch, KINDS, CONTEXTS, pairs, pairs, 2), np.float32),
        hits=np.zeros((batch, MATCH_LEVELS, 2)),
        weights=np.zeros((batch, KINDS, SETS, WIDTH), np.float32),
        final_weights=np.zeros((batch, KINDS, FINAL_SETS, MIXTURE), np.float32),
        refinements=np.zeros((batch, min(slots, 1 << 16), REFINED_LEVELS), np.float32),
    )


def _aligned_zeros(*shape: int) -> npt.NDArray[np.uint8]:
    """Zeros that begin with a line of the processor's caches, so that no slot lies in two."""
    size = math.prod(shape)
    room = np.zeros(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].reshape(shape)


# --- coders ---

IDLE, ENCODE, DECODE = range(3)
"""Jobs of a coder of decisions; an idle one lets every decision pass."""

CODER = np.dtype(
    [
        ("job", np.int64),
        ("low", np.uint64),  # of an encoder: the lower end of the interval, beyond its words
        ("range", np.uint64),  # the interval's size
        ("ahead", np.uint64),  # of a decoder: how far above the lower end its words lie
        ("count", np.int64),  # words that were written or read
    ],
    align=True,
)
"""State of a range coder of binary decisions."""


class CoderState(NamedTuple):
    """A range coder of binary decisions."""

    coder: npt.NDArray[np.void]
    """[1] of CODER."""
    words: npt.NDArray[np.uint32]
    """Words from the start of the stream; an encoder's has room behind them."""


def new_coder(job: int, words: npt.NDArray[np.uint32]) -> CoderState:
    """A coder before the first decision, of words to read, or of room for words to write."""
    coder = np.zeros(1, CODER)
    coder["job"], coder["range"] = job, np.uint64(2**64 - 1)
    if job == DECODE:
        first, second = (int(w) for w in np.concatenate([words[:2], np.zeros(2, np.uint32)])[:2])
        coder["ahead"], coder["count"] = np.uint64(first << 32 | second), 2
    return CoderState(coder, words)

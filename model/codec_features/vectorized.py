"""Hints: what a codec looks at before it codes a byte, as ids beside the bytes before it.

xz copies what followed the same bytes before, PNG's filters guess a byte from the pixel to its left
and from the line above, FLAC's predictors a sample from the last ones. For a model of patches what
it would copy lies at another place of its patch, the line above is far away, and a weighted sum of
samples is sixteen bits of arithmetic: a short training finds none of them. Where they lie is in
the stream, since a segment opens with its header. So an id gets J more, which are functions of the
ids before it:

    of images   the bytes in its place of the pixels to the left, above, and beside that one; their
                plane (left + above - corner) and its median with left and above (JPEG-LS); and the
                byte before, with the step from there to here that the pixel above or to the left
                had; and which byte of a pixel it is
    of sounds   three guesses of the sample: by linear prediction, on a line with the last two, and
                like the last one (for its high byte, the two bytes of each; for its low byte,
                what is left of each above 256 times the high one, and by how much its high byte
                is more, plus 128); how far predictions were off lately, and which byte of a
                frame it is
    of all but  the bytes that followed the last occurrences of the last four, six and eight bytes
    sounds      in this payload, and how often in a row those were right (`matching.py`)

Views with other bytes than pixels and big-endian samples are no images and no sounds here.
`cursor.py` has the same for a row that is read id by id.

Shapes:
    B rows of T ids    K patches of P ids    m payload bytes    C channels    J = HINTS
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bytelm.model.codec_features.layout import FEATURES, HEADS, PAD, PayloadLayout, preamble
from bytelm.model.codec_features.match import NONE


def compute_codec_features(ids: Tensor, document: Tensor, patch: int) -> Tensor:
    """Of all ids of rows, [B, T, J] int16, NONE but in the payloads that `_payloads` finds.

    ids [B, T], document [B, N]: as in `Megabyte.forward`.
    """
    made = ids.new_full((*ids.shape, FEATURES), NONE, dtype=torch.int16)
    host, runs = ids.cpu(), document.cpu()
    runs = runs.repeat_interleave(ids.shape[1] // patch // runs.shape[1], dim=1)
    for row, (of_row, run) in enumerate(zip(host, runs, strict=True)):
        for strides, padding, begin, end in _payloads(of_row, run, patch):
            made[row, padding:begin] = strides.codec_features(ids[row, :0])
            made[row, begin:end] = strides.codec_features(ids[row, begin : end - 1])
    return made


def _payloads(
    ids: Tensor, run: Tensor, patch: int
) -> Iterator[tuple[PayloadLayout, int, int, int]]:
    """Of all payloads with hints in a row of ids [T], whose patches are of the documents `run` [K].

    Yields the strides, and the places where padding begins (for a larger patch than this model's),
    where the payload does, and where what has its hints ends: with the document, or with a patch
    that opens with an id that is no byte. That patch belongs to it, since its first id is not known
    before it.
    """
    starts = ids[::patch]
    last = torch.ones_like(run, dtype=torch.bool)
    last[:-1] = run[1:] != run[:-1]
    marked = last | (starts > 255)
    marks = marked.nonzero().squeeze(1).tolist()
    first, is_last = starts[marked].tolist(), last[marked].tolist()
    for i, opened in enumerate(marks):
        if first[i] not in HEADS or is_last[i]:
            continue
        head = ids[opened * patch :][: HEADS[first[i]]].tolist()
        padding = begin = opened + preamble(first[i], patch)
        i += 1
        while marks[i] == begin and first[i] == PAD and not is_last[i]:
            begin, i = begin + 1, i + 1
        if marks[i] >= begin:
            yield PayloadLayout.of(head), padding * patch, begin * patch, (marks[i] + 1) * patch

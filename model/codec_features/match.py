"""Match candidates, as codecs of the Lempel-Ziv family find them.

The candidate is the byte that followed the latest earlier occurrence of the last k bytes; its run
is how many bytes in a row such candidates have just predicted. A model of patches hardly learns to
copy, since the earlier bytes lie at other positions of their patches.

The two implementations share no step: a sort finds all candidates of a payload at once, a table
those of the next byte.

Shapes:
    m   bytes of a payload    k   a length of MATCH_LENGTHS
"""

import torch
from torch import Tensor

from bytelm.model.codec_features.layout import MATCH_LENGTHS, NONE

_KEY_MASKS = tuple((1 << 8 * k) - 1 for k in MATCH_LENGTHS)


def match_candidates(payload: Tensor) -> tuple[Tensor, Tensor]:
    """Match candidates for every byte of a payload and for the one after it.

    Args:
        payload: [m] int64.
    Returns:
        candidates: [m + 1, 3] bytes, NONE where the last k bytes did not occur before.
        runs: [m + 1, 3] bytes that were predicted in a row, up to the position.
    """
    positions = len(payload) + 1
    candidates = payload.new_full((positions, len(MATCH_LENGTHS)), NONE)
    for column, k in enumerate(MATCH_LENGTHS):
        if positions <= k + 1:
            continue
        keys = torch.zeros_like(payload[: positions - k])  # the k bytes from each on
        for i in range(k):
            keys = keys << 8 | payload[i : i + len(keys)]
        order = keys.argsort(stable=True)
        is_again = keys[order[1:]] == keys[order[:-1]]
        later, earlier = order[1:][is_again], order[:-1][is_again]
        candidates[later + k, column] = payload[earlier + k]
    position = torch.arange(positions, device=payload.device)[:, None]
    run_start = torch.zeros_like(candidates)  # the position after the last miss
    is_hit = candidates[:-1] == payload[:, None]
    run_start[1:] = torch.where(is_hit, 0, position[1:])
    return candidates, position - run_start.cummax(dim=0).values


class Matcher:
    """Match candidates of a payload that is read byte by byte."""

    def __init__(self) -> None:
        self.candidates = [NONE] * len(MATCH_LENGTHS)
        """Candidates for the next byte."""
        self.runs = [0] * len(MATCH_LENGTHS)
        """Bytes that were predicted in a row."""
        self._bytes: list[int] = []
        self._key = 0
        """The last bytes, as many as the longest match has, in one number."""
        self._followers: list[dict[int, int]] = [{} for _ in MATCH_LENGTHS]
        """For each length, the index of the byte that followed a key last."""

    def push(self, byte: int) -> None:
        """Take the next byte of the payload."""
        self._bytes.append(byte)
        self._key = (self._key << 8 | byte) & _KEY_MASKS[-1]
        count = len(self._bytes)
        for column, k in enumerate(MATCH_LENGTHS):
            self.runs[column] = self.runs[column] + 1 if self.candidates[column] == byte else 0
            if count >= k:
                key = self._key & _KEY_MASKS[column]
                follower = self._followers[column].get(key)
                self.candidates[column] = NONE if follower is None else self._bytes[follower]
                self._followers[column][key] = count

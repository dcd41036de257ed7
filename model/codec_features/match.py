"""What followed the last time: for each place of a payload, the byte after the latest earlier
occurrence of the last k bytes, as a codec of the Lempel-Ziv family would copy it, and how often in
a row that has just been right.

Patches hinder a model from copying: what it copies lies at another place of its patch.

Shapes:
    m   bytes of a payload
"""

import torch
from torch import Tensor

ORDERS = (4, 6, 8)
"""k of each match; the bytes of the longest fill a number of 64 bits."""
NONE = -1


def matches(payload: Tensor) -> tuple[Tensor, Tensor]:
    """Of every place of a payload [m] int64, and of the one behind it.

    Returns the bytes [m + 1, 3], NONE where there is none, and how many of the bytes before the
    place were such a byte without a break, [m + 1, 3].
    """
    places = len(payload) + 1
    found = payload.new_full((places, len(ORDERS)), NONE)
    for column, k in enumerate(ORDERS):
        if places <= k + 1:
            continue
        keys = torch.zeros_like(payload[: places - k])
        for i in range(k):
            keys = keys << 8 | payload[i : i + len(keys)]
        order = keys.argsort(stable=True)
        is_again = keys[order[1:]] == keys[order[:-1]]
        now, before = order[1:][is_again], order[:-1][is_again]
        found[now + k, column] = payload[before + k]
    place = torch.arange(places, device=payload.device)[:, None]
    missed = torch.zeros_like(found)  # the place behind the last miss
    missed[1:] = torch.where(found[:-1] == payload[:, None], 0, place[1:])
    return found, place - missed.cummax(dim=0).values


class Matcher:
    """The same for a payload that is read byte by byte."""

    def __init__(self) -> None:
        self._bytes: list[int] = []
        self._key = 0
        self._places: list[dict[int, int]] = [{} for _ in ORDERS]
        self.found = [NONE] * len(ORDERS)
        """What may come next."""
        self.right = [0] * len(ORDERS)
        """How often in a row it did."""

    def push(self, byte: int) -> None:
        """Takes up the next byte."""
        self._bytes.append(byte)
        self._key = (self._key << 8 | byte) & (1 << 8 * max(ORDERS)) - 1
        here = len(self._bytes)
        for column, k in enumerate(ORDERS):
            self.right[column] = self.right[column] + 1 if self.found[column] == byte else 0
            if here >= k:
                key = self._key & (1 << 8 * k) - 1
                place = self._places[column].get(key)
                self.found[column] = NONE if place is None else self._bytes[place]
                self._places[column][key] = here

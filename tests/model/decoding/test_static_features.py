"""Codec features by tensors of fixed shapes are those of the kernels, for any payload."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bytelm.model.codec_features.incremental import BatchFeatures
from bytelm.model.decoding.static_features import StaticFeatures

CPU = torch.device("cpu")
PATCH = 4


def opening(opener: int, *fields: int, offset: int = 0) -> list[int]:
    """The first ids of a segment, up to its payload."""
    ids = [opener, *fields, *offset.to_bytes(4, "big")]
    return ids + [256] * (-len(ids) % PATCH)


def image(width: int, channels: int, view: int = 0, offset: int = 0) -> list[int]:
    return opening(260, 0, width, 0, 9, channels, view, offset=offset)


def sound(channels: int, view: int = 1, offset: int = 0) -> list[int]:
    return opening(261, 0, 0, 62, 128, channels, view, offset=offset)


OPENINGS = {
    "images": [image(9, 3), image(20, 1), image(1, 1), image(7, 3, 1, 5), image(5, 3, 3, 7)],
    "sounds": [sound(1), sound(2), sound(3), sound(1, 0), sound(2)],
    "sounds from the middle of a sample": [sound(2, offset=3), sound(1, offset=1), sound(3)],
    "texts": [opening(259, 0)] * 2,
}


def payloads(name: str, rows: int, length: int) -> npt.NDArray[np.int64]:
    """Bytes with steps, repetitions, and in sounds tones that linear prediction follows."""
    rng = np.random.default_rng(len(name))
    if not name.startswith("sounds"):
        return rng.integers(0, 3, (rows, length)) * 80
    time = np.arange(length)
    samples = 9000 * np.sin(time / rng.uniform(3, 9, (rows, 1))) + rng.normal(size=(rows, length))
    return samples.astype(">i2").view(np.uint8)[:, :length].astype(np.int64)


@pytest.mark.parametrize("prompt", [0, 1, 90])
@pytest.mark.parametrize("name", OPENINGS)
def test_features_are_those_of_the_kernels(name: str, prompt: int) -> None:
    openings = OPENINGS[name]
    rows, length = len(openings), 400 if name == "sounds" else 140
    ids = payloads(name, rows, length)
    held = len(openings[0]) + length
    kernels = BatchFeatures(rows, PATCH, held)
    for row, ids_before in enumerate(openings):
        row_ids = torch.tensor([*ids_before, *ids[row, :prompt].tolist()])
        kernels.push_row(row, row_ids)
    static = StaticFeatures(rows, held, CPU)
    static.begin(kernels.state)
    for column in torch.from_numpy(ids)[:, prompt:].unbind(1):
        assert torch.equal(static.next_features(), kernels.features().long())
        kernels.push(column)
        static.push(column, static.is_block_due())
        static.count_on_host()


def test_a_new_payload_forgets_the_old_one() -> None:
    """Bytes, samples and keys behind the end of a prompt are those of an earlier row."""
    used = StaticFeatures(1, 200, CPU)
    for length, seed in ((150, 0), (40, 1)):
        kernels = BatchFeatures(1, PATCH, 200)
        ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, length))
        kernels.push_row(0, torch.cat([torch.tensor(opening(259, 0)), ids]))
        used.begin(kernels.state)
    for byte in torch.tensor([0, 1, 1, 0, 1] * 9):
        assert torch.equal(used.next_features(), kernels.features().long())
        kernels.push(byte[None])
        used.push(byte[None], used.is_block_due())
        used.count_on_host()

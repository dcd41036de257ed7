"""Documents of one text each are laid out together as they are one by one."""

from __future__ import annotations

import numpy as np
import pytest

from bytelm.modalities.base import Header, Sample
from bytelm.pipelines.shards.format import CRC_CHUNK
from bytelm.pipelines.shards.pieces import PieceBuilder
from bytelm.pipelines.shards.text_pieces import text_piece

KEYS = ["a-b7", "a-b0", "a-b10", "b" * 90 + "12", "a-b9", "a-b123"]
SIZES = [1, 511, 512, 513, 3 * CRC_CHUNK + 5, CRC_CHUNK]


@pytest.mark.parametrize("source", ["table.jsonl", "ä/" * 300 + 'a "quoted" name.parquet'])
def test_texts_together_have_the_bytes_and_rows_of_one_after_the_other(source: str) -> None:
    texts = [bytes([65 + i]) * size for i, size in enumerate(SIZES)]
    builder = PieceBuilder()
    for key, text in zip(KEYS, texts, strict=True):
        builder.add(key, [source], [Sample("text", Header(), text)])
    expected_parts, expected = builder.finish()
    memory = bytearray()

    def reserve(size: int) -> memoryview:
        memory[:] = b"?" * size  # what an earlier piece has left
        return memoryview(memory)

    piece = text_piece(KEYS, source, [memoryview(text) for text in texts], reserve)
    assert memory == b"".join(expected_parts)
    assert piece.ends[-1] == len(memory)
    np.testing.assert_array_equal(piece.ends, expected.ends)
    np.testing.assert_array_equal(piece.index, expected.index)
    np.testing.assert_array_equal(piece.checksums, expected.checksums)
    assert piece.index.dtype == expected.index.dtype

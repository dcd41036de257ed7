"""Runs of pieces that are coded one after another, by a model that mixes its outputs."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from helpers.commands import TINY_MODEL

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Header
from bytelm.modalities.framing import Segment
from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.compression import document_coder
from bytelm.pipelines.compression.compress import compress_documents, decompress_documents
from bytelm.pipelines.compression.container import ContainerEntry, unpack
from bytelm.pipelines.compression.document_coder import DocumentCoder
from bytelm.pipelines.compression.documents import Document

VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}
MIXING = {"codec_features": True, "output_mixing": True}
CONTEXT = 256


def tiny(**options: object) -> Megabyte:
    torch.manual_seed(4)
    shape = {**TINY_MODEL, "embedding_std": 0.3, "init_std": 0.2, **options}
    return Megabyte(ModelConfig.from_dict(shape)).eval()


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(32, 127, size, np.uint8).tobytes()


def words(files: list[bytes], **options: object) -> int:
    documents = [(f"{number}.txt", data) for number, data in enumerate(files)]
    return unpack(compress_documents(tiny(**options), VIEWS, documents), "it").words.size


def documents(sizes: list[int]) -> list[Document]:
    kind = MODALITIES["text"]
    return [
        Document(
            ContainerEntry(str(number), size, 0),
            Segment(kind, Header(), "utf8", size),
            np.zeros(size, np.uint8),
        )
        for number, size in enumerate(sizes)
    ]


def test_a_repeat_over_the_border_of_pieces_is_found() -> None:
    """The second and third piece repeat the first, which they do not see alone."""
    room = CONTEXT - 8  # an opening takes a patch
    block = noise(room)
    assert words([3 * block], **MIXING) < 0.6 * words([block] * 3, **MIXING)


def test_without_mixing_each_piece_is_a_run() -> None:
    """In batches of about the same length, as containers of formats 1 to 3 have them."""
    coder = DocumentCoder(tiny(), 2, 1, lambda coded: None)
    (batches,) = coder.streams(documents([600, 40, 300]))
    assert all(len(run.pieces) == 1 for runs in batches for run in runs)
    sizes = [run.whole.size for runs in batches for run in runs]
    assert sizes == sorted(sizes, reverse=True)
    assert [len(runs) for runs in batches] == [2, 2, 2]


def test_with_mixing_a_document_is_a_run_and_the_longest_come_first() -> None:
    coder = DocumentCoder(tiny(**MIXING), 2, 1, lambda coded: None)
    (batches,) = coder.streams(documents([40, 600, 300]))
    assert [[len(run.pieces) for run in runs] for runs in batches] == [[3, 2], [1]]
    assert [run.whole.size for runs in batches for run in runs] == [602, 302, 42]


def test_few_long_documents_step_together_where_their_mixing_takes_much_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny(**MIXING)
    one = document_coder.mixing_bytes(CONTEXT)
    monkeypatch.setattr(document_coder, "MOST_MIXING_BYTES", 2 * one)
    coder = DocumentCoder(model, 64, 1, lambda coded: None)
    (batches,) = coder.streams(documents([4000, 40, 50, 60]))
    assert [len(runs) for runs in batches] == [1, 2, 1]
    files = [(f"{size}.txt", noise(size)) for size in (1200, 40, 50, 60)]
    assert decompress_documents(model, compress_documents(model, VIEWS, files)) == files


@pytest.mark.parametrize("sizes", [[1500], [900, 400, 30], [60] * 9])
def test_logits_of_several_turns_at_once_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    """An encoder steps the pieces of a document side by side, a decoder one after another."""
    model = tiny(**MIXING)
    files = [(f"{number}.txt", noise(size + number)) for number, size in enumerate(sizes)]
    packed = compress_documents(model, VIEWS, files)
    monkeypatch.setattr(document_coder, "MOST_LOGIT_BYTES", 0)
    monkeypatch.setattr(document_coder, "ENCODED_POSITIONS", 7)
    assert compress_documents(model, VIEWS, files) == packed
    assert decompress_documents(model, packed) == files


def test_mixing_that_began_anew_in_each_piece_is_refused() -> None:
    packed = compress_documents(tiny(**MIXING), VIEWS, [("a.txt", b"whale")])
    assert packed[3] == 6
    forged = packed[:3] + b"\4" + packed[4:-4]
    with pytest.raises(ValueError, match="an earlier way of mixing: use the bytelm"):
        decompress_documents(tiny(**MIXING), forged + zlib.crc32(forged).to_bytes(4))

"""WAV, RF64, RIFX, W64, AIFF, CAF and AU: sizes that are wrong, unknown or more than is there."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from helpers.sound_files import chunk, decode, encoded, pcm, refusal, riff, tone, wave_format

from bytelm.modalities.spliced_file import SplicedFile

PCM = (tone(16_000, 1) * 9000).astype("<i2")
STREAMED = "streamed: no length in the header"
UNFINISHED = "header was never completed"
TRAILING = "bytes after the end left out"
CONTAINERS = ["WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU"]


def wav(stated: int, present: bytes = PCM.tobytes(), after: bytes = b"") -> bytes:
    """A WAV of 16 bits whose header states a number of sample bytes."""
    return riff(wave_format() + chunk(b"data", present, stated) + after)


def overwrite(data: bytes, name: bytes, distance: int, field: bytes) -> bytes:
    """Data with a field replaced, at a distance from a chunk's name."""
    position = data.index(name) + distance
    return data[:position] + field + data[position + len(field) :]


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_every_container_is_read(kind: str, subtype: str) -> None:
    samples = tone()
    sample = decode(encoded(samples, kind, subtype))
    largest = 0.03 if subtype == "ULAW" else 1e-4
    assert np.abs(pcm(sample) / 32768 - samples).max() < largest
    assert sample.header.rate == 16_000


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("missing", [1, 2, 3, 5000])
def test_a_sound_that_is_a_few_bytes_short_is_refused_as_truncated(kind: str, missing: int) -> None:
    assert refusal(encoded(tone(), kind)[:-missing]).reason == "truncated"


@pytest.mark.parametrize("kind", CONTAINERS)
def test_bytes_after_the_samples_are_no_samples(kind: str) -> None:
    data = encoded(tone(), kind)
    assert np.array_equal(pcm(decode(data + bytes(300))), pcm(decode(data)))


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x7FFFFFFF, 0x80000000])
def test_a_wav_from_a_pipe_is_read_to_its_end(size: int) -> None:
    sample = decode(wav(size))
    assert np.array_equal(pcm(sample), PCM)
    assert sample.notes == (STREAMED,)


def test_a_wav_whose_header_was_never_completed_is_read_to_its_end() -> None:
    sample = decode(riff(wave_format() + chunk(b"data", PCM.tobytes(), 0), 4088))
    assert np.array_equal(pcm(sample), PCM)
    assert sample.notes == (UNFINISHED,)


@pytest.mark.parametrize("after", [b"", chunk(b"LIST", b"INFOISFT\x02\0\0\0x\0")])
def test_a_wav_without_samples_is_empty(after: bytes) -> None:
    assert refusal(wav(0, b"", after)).reason == "empty"


def test_chunks_before_and_after_the_samples_are_passed_over() -> None:
    extras = chunk(b"bext", bytes(602)) + chunk(b"JUNK", bytes(27))
    tags = chunk(b"LIST", b"INFO") + chunk(b"id3 ", bytes(301))
    data = riff(extras + wave_format() + tags + chunk(b"data", PCM.tobytes()) + tags)
    assert np.array_equal(pcm(decode(data)), PCM)
    assert decode(data).notes == ()


def test_an_odd_number_of_bytes_needs_no_padding() -> None:
    data = riff(wave_format(bits=8) + chunk(b"data", bytes(range(101))))
    assert len(pcm(decode(data))) == len(pcm(decode(data[:-1]))) == 101


def test_junk_after_the_end_is_noted_and_much_of_it_refused() -> None:
    whole = wav(PCM.nbytes)
    sample = decode(whole + b"\xff\xfe\xfd" * 50)
    assert np.array_equal(pcm(sample), PCM)
    assert sample.notes == (TRAILING,)
    assert refusal(whole + b"\xff\xfe\xfd" * 50_000).reason == "damaged"


def test_a_second_chunk_of_samples_is_refused_and_not_lost() -> None:
    data = wav(PCM.nbytes, after=chunk(b"data", PCM.tobytes()))
    assert "a second chunk of samples at byte 32044" in refusal(data).detail


def test_rifx_is_read_big_endian() -> None:
    form = wave_format(order=">")
    data = riff(form + chunk(b"data", PCM.astype(">i2").tobytes(), order=">"), kind=b"RIFX")
    assert np.array_equal(pcm(decode(data)), PCM)


@pytest.mark.parametrize(("size", "notes"), [(PCM.nbytes, ()), (0, (UNFINISHED,))])
def test_rf64_has_its_size_in_a_chunk_of_its_own(size: int, notes: tuple[str, ...]) -> None:
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, size, 0, 0))
    samples = chunk(b"data", PCM.tobytes(), 0xFFFFFFFF)
    sample = decode(riff(sizes + wave_format() + samples, 0xFFFFFFFF, b"RF64"))
    assert np.array_equal(pcm(sample), PCM)
    assert sample.notes == notes


@pytest.mark.parametrize(
    ("kind", "name", "distance", "field", "note"),
    [
        ("AIFF", b"SSND", 4, bytes(4), UNFINISHED),
        ("AIFF", b"SSND", 4, b"\xff" * 4, STREAMED),
        ("AU", b".snd", 8, b"\xff" * 4, STREAMED),
        ("AU", b".snd", 8, bytes(4), UNFINISHED),
        ("CAF", b"data", 4, b"\xff" * 8, STREAMED),
        ("W64", b"data\xf3", 16, bytes(8), UNFINISHED),
        ("W64", b"data\xf3", 16, b"\xff" * 7 + b"\x7f", STREAMED),
    ],
)
def test_other_containers_from_a_pipe_are_read_to_their_end(
    kind: str, name: bytes, distance: int, field: bytes, note: str
) -> None:
    data = encoded(tone(), kind)
    sample = decode(overwrite(data, name, distance, field))
    assert np.array_equal(pcm(sample), pcm(decode(data)))
    assert sample.notes == (note,)


def test_a_spliced_file_reads_as_its_pieces() -> None:
    file = SplicedFile(io.BytesIO(b"0123456789"), [b"ab", range(3, 7), b"", range(9, 10), b"z"])
    whole = b"ab34569z"
    assert file.read() == whole
    for start in range(len(whole)):
        for size in (1, 3, 20):
            file.seek(start)
            assert file.read(size) == whole[start : start + size]
    assert file.seek(-2, io.SEEK_END) == 6
    assert file.read() == b"9z"

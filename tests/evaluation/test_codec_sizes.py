"""Sizes of codecs against their own command-line tools, and what is said where one cannot run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.sets import text

from bytelm.modalities import MODALITIES
from bytelm.modalities.base import Bytes, Header, Sample
from bytelm.pipelines.evaluation import codec_settings, codec_sizes, codec_tools
from bytelm.pipelines.evaluation.codec_settings import (
    BYTE_CODECS,
    CODECS,
    PPMD_HEADER_BYTES,
)
from bytelm.pipelines.evaluation.codec_sizes import (
    CHUNK,
    CodecSizes,
    codec_file_sizes,
    codec_versions,
    measure_codecs,
    missing_codecs,
    with_weights,
)
from bytelm.pipelines.evaluation.codec_tools import Tool, ToolError, ToolProcesses

BYTE_COMMANDS = {
    "gzip": "gzip -9nc FILE",
    "xz": "xz -9ec -T1 FILE",
    "zstd": "zstd -q --ultra -22 --no-check -c FILE",
    "brotli": "brotli -q 11 -w 24 -c FILE",
    "bzip2": "bzip2 -9c FILE",
}
IMAGE_COMMANDS = {
    "WebP": "cwebp -quiet -lossless -m 6 -q 100 FILE -o OUT.webp",
    "JPEG XL e7": "cjxl -d 0 -e 7 FILE OUT.jxl",
    "JPEG XL e9": "cjxl -d 0 -e 9 FILE OUT.jxl",
}
SOUND_COMMANDS = {
    "FLAC": "flac -s -8 --no-padding --no-seektable FILE -o OUT.flac",
    "WavPack": "wavpack -q -hhx6 FILE -o OUT.wv",
}


def size_by_command(command: str, file: Path) -> int:
    """Size of the file that a command makes of one, or of what it prints."""
    program = command.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"the tool {program} is not installed")
    out = file.with_name("coded")
    words = [w.replace("FILE", str(file)).replace("OUT", str(out)) for w in shlex.split(command)]
    printed = subprocess.run(words, capture_output=True, check=True).stdout
    if not printed:
        [written] = file.parent.glob("coded.*")
        printed = written.read_bytes()
        written.unlink()
    return len(printed)


def payload_of(sample: Sample) -> Bytes:
    return np.frombuffer(sample.data, np.uint8)


def measured(*samples: Sample) -> dict[str, CodecSizes]:
    return measured_documents([[(sample, payload_of(sample))] for sample in samples])


def measured_documents(
    documents: Sequence[Sequence[tuple[Sample, Bytes]]],
) -> dict[str, CodecSizes]:
    sizes = {name: CodecSizes(name) for name in MODALITIES}
    done = list(measure_codecs(documents, sizes, 2))
    assert done == [sum(payload.size for _, payload in samples) for samples in documents]
    return sizes


def words(size: int) -> bytes:
    """A text that compresses as language does, of `size` bytes."""
    rng = np.random.default_rng(size)
    vocabulary = [rng.integers(97, 123, n).astype(np.uint8).tobytes() for n in range(2, 9)] * 9
    return b" ".join(vocabulary[int(i)] for i in rng.zipf(1.3, size) % 63)[:size]


def picture(channels: int, is_deep: bool = False) -> Sample:
    """A smooth image with noise in its lowest bits."""
    width, height = 45, 33
    y, x, c = np.mgrid[:height, :width, :channels]
    values = 100 + 60 * np.sin(x / 9 + c) + y + np.random.default_rng(0).integers(0, 4, x.shape)
    data = (values * 257).astype(">u2") if is_deep else values.astype(np.uint8)
    return Sample("image", Header(width, height, channels), data.tobytes(), is_deep=is_deep)


def tone(channels: int, is_deep: bool = False, frames: int = 3000) -> Sample:
    """A sine with noise."""
    n, c = np.mgrid[:frames, :channels]
    noise = np.random.default_rng(0).integers(-50, 50, n.shape)
    values = (9000 * np.sin(n / (20 + c)) + noise).astype(np.int32)
    header = Header(channels=channels, rate=16000)
    if not is_deep:
        return Sample("audio", header, values.astype("<i2").tobytes())
    wide = (values * 255).astype(">i4").view(np.uint8).reshape(-1, 4)[:, 1:]
    return Sample("audio", header, wide.tobytes(), is_deep=True)


@pytest.mark.parametrize("name", BYTE_COMMANDS)
@pytest.mark.parametrize("raw", [b"a", words(CHUNK), words(70_000), bytes(3000)])
def test_a_codec_of_bytes_agrees_with_its_tool(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(raw)
    expected = size_by_command(BYTE_COMMANDS[name], tmp_path / "file")
    assert codec_file_sizes(text(raw), np.frombuffer(raw, np.uint8))[name] == expected


def test_ppmd_has_the_packed_size_of_7z(tmp_path: Path) -> None:
    [ppmd] = [codec for codec in BYTE_CODECS if codec.name == "PPMd"]
    if shutil.which("7z") is None:
        pytest.skip("the tool 7z is not installed")
    large = np.random.default_rng(5).integers(0, 200, 300_000).astype(np.uint8).tobytes()
    for number, raw in enumerate((b"a", words(CHUNK), words(70_000), large)):
        file, archive = tmp_path / "file", tmp_path / f"{number}.7z"
        file.write_bytes(raw)
        command = ["7z", "a", "-m0=PPMd:o=6:mem=28", archive, file]
        subprocess.run(command, capture_output=True, check=True)
        listing = subprocess.run(["7z", "l", "-slt", archive], capture_output=True, check=True)
        packed = [s for s in listing.stdout.decode().splitlines() if s.startswith("Packed Size")]
        size = ppmd.library(raw) - PPMD_HEADER_BYTES
        assert size == int(packed[0].partition("=")[2])


@pytest.mark.parametrize("name", IMAGE_COMMANDS)
@pytest.mark.parametrize("kind", ["grey", "colour", "deep", "deep grey"])
def test_a_codec_of_images_agrees_with_its_tool(name: str, kind: str, tmp_path: Path) -> None:
    """On the PNG file that `inspect --extract` writes."""
    sample = picture(1 if "grey" in kind else 3, is_deep="deep" in kind)
    sizes = codec_file_sizes(sample, payload_of(sample))
    if name == "WebP" and sample.is_deep:
        assert name not in sizes, "WebP has 8 bits"
        return
    file = MODALITIES["image"].write_file(sample, tmp_path / "file")
    assert sizes[name] == size_by_command(IMAGE_COMMANDS[name], file)


@pytest.mark.parametrize("name", SOUND_COMMANDS)
@pytest.mark.parametrize(("channels", "is_deep"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_codec_of_sounds_agrees_with_its_tool(
    name: str, channels: int, is_deep: bool, tmp_path: Path
) -> None:
    """On the WAV file that `inspect --extract` writes."""
    sample = tone(channels, is_deep)
    file = MODALITIES["audio"].write_file(sample, tmp_path / "file")
    expected = size_by_command(SOUND_COMMANDS[name], file)
    assert codec_file_sizes(sample, payload_of(sample))[name] == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_the_file_for_tools_of_images_holds_the_pixels(channels: int, tmp_path: Path) -> None:
    sample = picture(channels)
    (tmp_path / "in.ppm").write_bytes(codec_settings.netpbm(sample))
    with PIL.Image.open(tmp_path / "in.ppm") as opened:
        assert np.asarray(opened).tobytes() == sample.data


@pytest.mark.parametrize("is_deep", [False, True])
def test_the_file_for_tools_of_sounds_holds_the_samples(is_deep: bool, tmp_path: Path) -> None:
    sample = tone(2, is_deep)
    (tmp_path / "in.wav").write_bytes(codec_settings.wav(sample))
    read = MODALITIES["audio"].options_for("s24be" if is_deep else "s16le")
    with (tmp_path / "in.wav").open("rb") as file:
        assert MODALITIES["audio"].decode_file(file, read) == sample


def test_each_chunk_is_a_file_of_its_own() -> None:
    raw = words(2 * CHUNK + 100)
    parts = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)]
    alone = [codec_file_sizes(text(part), np.frombuffer(part, np.uint8)) for part in parts]
    sizes = measured(text(raw))["text"]
    assert len(sizes.bits_per_byte("chunks")) >= 3
    for name, bits in sizes.bits_per_byte("chunks").items():
        assert bits == 8 * sum(part[name] for part in alone) / len(raw), name
        assert bits > sizes.bits_per_byte()[name], "a whole file has more to learn from"


def test_sums_of_samples_and_ranks_are_those_of_all_samples() -> None:
    samples = [text(words(500)), text(words(3000)), picture(3), tone(1)]
    together = measured(*samples)
    for name, sizes in together.items():
        parts = [measured(sample)[name].counts for sample in samples]
        assert sizes.counts == {key: sum(part[key] for part in parts) for key in sizes.counts}
        counts = {key: 2 * count for key, count in sizes.counts.items()}
        sizes.reduce(lambda values, dtype: [2 * value for value in values])
        assert sizes.counts == counts


def test_codecs_of_images_and_sounds_are_left_out_of_lossy_views() -> None:
    for sample in (picture(3), tone(1)):
        sizes = measured_documents([[(sample, payload_of(sample)[::2])]])
        assert set(sizes[sample.modality].bits_per_byte()) <= {*BYTE_COMMANDS, "PPMd"}


def test_a_sample_without_bytes_counts_nothing() -> None:
    sizes = measured(text(b""), tone(1, frames=0))
    assert not any(count for part in sizes.values() for count in part.counts.values())


def test_libraries_run_where_tools_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [text(words(9000)), picture(3), picture(1, is_deep=True), tone(2)]
    with_tools = [codec_file_sizes(s, payload_of(s)) for s in samples]
    monkeypatch.setattr(Tool, "path", None)
    for sample, expected in zip(samples, with_tools, strict=True):
        sizes = codec_file_sizes(sample, payload_of(sample))
        assert sizes.keys() == expected.keys() - {"WavPack"}
        for name, size in sizes.items():
            assert size == pytest.approx(expected[name], rel=0.5), name
    assert missing_codecs(["audio"])["WavPack"] == "apt install wavpack"
    assert "WavPack" not in missing_codecs(["text", "image"])


def test_a_codec_without_tool_and_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tool, "path", None)
    monkeypatch.setattr(codec_settings, "can_import", lambda name: False)
    missing = missing_codecs(MODALITIES)
    assert missing.keys() == {"zstd", "brotli", "PPMd", "JPEG XL e7", "JPEG XL e9", "WavPack"}
    assert all("bytelm[codecs]" in way for name, way in missing.items() if name != "WavPack")
    assert measured(text(words(99)))["text"].bits_per_byte().keys() == {"gzip", "xz", "bzip2"}
    assert "FLAC" in measured(tone(1))["audio"].bits_per_byte()


def test_the_version_of_a_codec_is_that_of_what_computes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {codec.name for codec in CODECS}
    if shutil.which("gzip"):
        shown = subprocess.run(["gzip", "--version"], capture_output=True, text=True, check=True)
        assert codec_versions(names)["gzip"] == shown.stdout.splitlines()[0]
    monkeypatch.setattr(Tool, "path", None)
    versions = codec_versions(names - {"WavPack"})
    assert all(re.fullmatch(r"[A-Za-z]+ \d[\w.]*", version) for version in versions.values())
    assert versions["JPEG XL e9"].startswith("imagecodecs ")
    assert codec_versions({"PNG"}) == {"PNG": f"pillow {PIL.__version__}"}


def test_a_tool_that_tells_no_version_is_named_alone(
    fake_wavpack: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wavpack("exec sleep 600")
    monkeypatch.setattr(codec_tools, "VERSION_SECONDS", 0.2)
    assert codec_versions({"WavPack"}) == {"WavPack": "wavpack"}


def test_the_extra_brings_every_library() -> None:
    modules = {codec.module for codec in CODECS} - {""}
    metadata = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = metadata["project"]["optional-dependencies"]["codecs"]
    assert modules == {requirement.partition(">")[0] for requirement in extra}


@pytest.fixture
def fake_wavpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(script: str) -> None:
        (tmp_path / "wavpack").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "wavpack").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


@pytest.mark.parametrize("script", ["exit 3", "true", "exec sleep 600"])
def test_a_codec_whose_tool_fails_has_no_figure_and_is_named(
    script: str, fake_wavpack: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one hangs."""
    fake_wavpack(script)
    monkeypatch.setattr(codec_tools, "TOOL_SECONDS", 0.2)
    monkeypatch.setattr(codec_sizes, "BYTE_CODECS", ())
    sizes = measured(tone(1), tone(2))["audio"]
    assert sizes.failures() == {"WavPack": "its tool failed on 2 of 2 files"}
    assert sizes.bits_per_byte().keys() == {"FLAC"}


def test_a_stop_ends_running_tools(
    tmp_path: Path, fake_wavpack: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wavpack(
        f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600"
    )
    monkeypatch.setattr(codec_sizes, "BYTE_CODECS", ())

    def stop_when_running() -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec_file_sizes(tone(1), payload_of(tone(1)), stop_when_running)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_no_tool_starts_after_a_stop() -> None:
    processes = ToolProcesses()
    processes.kill()
    with pytest.raises(ToolError, match="stopped"):
        processes.run(["true"], "/")


def test_weights_count_two_bytes_for_each_parameter() -> None:
    assert with_weights(8_000, 1_000, 250) == {"bits_per_byte": 12.0, "weight_bytes": 500}

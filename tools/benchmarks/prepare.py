"""Decoded bytes per second of `bytelm prepare` beside a bare loop.

    python -m bytelm.tools.benchmarks.prepare [--text DIR] [--image DIR] [--audio DIR] [--seconds S]

Prints a JSON line for each modality and number of workers: `name` (`prepare/MODALITY/WORKERS`),
`value` in MB/s, `reference` (the bare loop's figure) and `ratio` (value / reference). The folders
are the demo's by default. Needs `pip install 'bytelm[bench]'`; takes about three minutes.

The bare loop is what one writes by hand in one process. For images and sounds it decodes with
Pillow or soundfile to the same bytes and drops them. A text has nothing to decode, so for texts the
loop appends the files to a tar with webdataset's writer. `prepare` finds the files, decodes them in
1 or 2 workers, and writes, hashes and fsyncs the set. Both read the same files in a warm cache: the
files of the folder, copied to so many names that the bare loop has about S seconds of work, and
the start of a process does not count. Medians of three rounds, in turn.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import PIL.Image
import soundfile
import webdataset

from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.tools.benchmarks.measure import Figure, print_figures, seconds_of
from bytelm.tools.repository import DEMO_FILES

ROUNDS = 3
WORKERS = (1, 2)
SUFFIXES = {
    "text": (".txt",),
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "audio": (".flac", ".wav", ".ogg", ".mp3"),
}


def prepare_figures(modality: str, folder: Path, seconds: float) -> Iterator[Figure]:
    """A figure for each number of workers.

    Args:
        seconds: about the time of one round of the bare loop.

    Raises:
        ValueError: the folder holds no file of its modality.
    """
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES[modality]]
    if not found:
        raise ValueError(f"no {modality} files below {folder}: give a folder that holds some")
    bare_loop = _BARE_LOOPS[modality]
    bare_loop(found)  # warms the cache
    copies = max(1, round(seconds / seconds_of(lambda: bare_loop(found))))
    with tempfile.TemporaryDirectory() as temporary:
        files = _copy(found, Path(temporary) / "source", copies)
        yield from _compare(modality, files, Path(temporary))


def _compare(modality: str, files: Sequence[Path], folder: Path) -> Iterator[Figure]:
    """Figures of `prepare` on `folder / "source"`, which holds the files."""
    total = _BARE_LOOPS[modality](files)
    bare_seconds = []
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for round_ in range(ROUNDS):
        bare_seconds.append(seconds_of(lambda: _BARE_LOOPS[modality](files)))
        for workers in WORKERS:
            out = folder / f"{workers}-{round_}"
            run = partial(prepare, [folder / "source"], out, PrepareOptions(workers=workers))
            seconds[workers].append(seconds_of(run))
            shards = ShardSet(out).shards
            assert sum(shard.bytes[modality] for shard in shards) == total, "other bytes"
    bare_speed = total / 1e6 / median(bare_seconds)
    for workers in WORKERS:
        speed = total / 1e6 / median(seconds[workers])
        yield Figure(f"prepare/{modality}/{workers}", speed, "MB/s", bare_speed)


def _copy(found: Sequence[Path], folder: Path, copies: int) -> list[Path]:
    """Copy each file to `copies` names below the folder; returns the names. `prepare` takes a file
    with several links once."""
    files = []
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        for i, path in enumerate(found):
            files.append(folder / str(copy) / f"{i}{path.suffix}")
            shutil.copyfile(path, files[-1])
    return files


def _bare_text(files: Sequence[Path]) -> int:
    """Append the texts to a tar; returns their bytes."""
    size = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        webdataset.TarWriter(str(Path(folder) / "bare.tar")) as writer,
    ):
        for i, path in enumerate(files):
            text = path.read_bytes()
            writer.write({"__key__": str(i), "txt": text})
            size += len(text)
    return size


def _bare_image(files: Sequence[Path]) -> int:
    """Decode images to bytes of grey or RGB on white; returns their number."""
    size = 0
    for path in files:
        with PIL.Image.open(path) as image:
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
                opaque = PIL.Image.alpha_composite(white, image.convert("RGBA"))
                size += len(opaque.convert(mode).tobytes())
            else:
                size += len(image.convert(mode).tobytes())
    return size


def _bare_audio(files: Sequence[Path]) -> int:
    """Decode sounds to 16-bit samples; returns their bytes."""
    return sum(len(soundfile.read(path, dtype="int16")[0].tobytes()) for path in files)


_BARE_LOOPS: dict[str, Callable[[Sequence[Path]], int]] = {
    "text": _bare_text,
    "image": _bare_image,
    "audio": _bare_audio,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of prepare beside a bare loop.")
    for modality in SUFFIXES:
        parser.add_argument(
            f"--{modality}", type=Path, default=DEMO_FILES / modality, metavar="DIR"
        )
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round of the bare loop")
    options = parser.parse_args()
    for modality in SUFFIXES:
        folder = getattr(options, modality)
        try:
            print_figures(prepare_figures(modality, folder, options.seconds))
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()

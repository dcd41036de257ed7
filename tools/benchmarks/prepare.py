"""The prepare half of `bench_data`: decoded bytes per second against a bare loop.

The bare loop is what one writes by hand in one process. For images and sounds it decodes with
Pillow or soundfile to the same bytes, and throws them away. A text has nothing to decode, so for
texts it reads them and appends them to a tar with webdataset's writer. `prepare` finds the files,
decodes them in 1 or 2 workers and writes, hashes and fsyncs the set. Both see the same files in a
warm cache: those given, under as many names as give the bare loop about SECONDS of work, so that
what is measured is the speed and not the start. In turn, the medians of ROUNDS.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import PIL.Image
import soundfile
import webdataset

from bytelm.pipelines.prepare.prepare import PrepareOptions, prepare

SECONDS = 4.0
ROUNDS = 3
WORKERS = (1, 2)
SUFFIXES = {
    "text": (".txt",),
    "image": (".png", ".jpg", ".jpeg", ".webp"),
    "audio": (".flac", ".wav", ".ogg", ".mp3"),
}


def figures(folders: dict[str, Path]) -> Iterator[tuple[str, float, str, float]]:
    """(name, value, unit, reference) for each modality's folder and each number of workers.

    Raises ValueError where a folder holds no file of its modality.
    """
    for modality, folder in folders.items():
        found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES[modality]]
        if not found:
            raise ValueError(f"no {modality} files below {folder}: give a folder that holds some")
        bare = _BARE[modality]
        bare(found)  # warms the cache
        begun = time.perf_counter()
        bare(found)
        copies = max(1, round(SECONDS / (time.perf_counter() - begun)))
        with tempfile.TemporaryDirectory() as temporary:
            files = _link(found, Path(temporary) / "source", copies)
            yield from _compare(modality, bare, files, Path(temporary))


def _compare(
    modality: str, bare: Callable[[Sequence[Path]], int], files: Sequence[Path], folder: Path
) -> Iterator[tuple[str, float, str, float]]:
    size = 0
    speeds: dict[int, list[float]] = {n: [] for n in (0, *WORKERS)}  # 0: the bare loop
    for round_ in range(ROUNDS):
        begun = time.perf_counter()
        size = bare(files)
        speeds[0].append(size / 1e6 / (time.perf_counter() - begun))
        for workers in WORKERS:
            out = folder / f"{workers}-{round_}"
            begun = time.perf_counter()
            prepared = prepare([folder / "source"], out, PrepareOptions(workers=workers))
            speeds[workers].append(size / 1e6 / (time.perf_counter() - begun))
            splits = prepared.report["splits"].values()
            assert sum(c["bytes"][modality] for c in splits) == size, "not the same bytes"
    for workers in WORKERS:
        reference = statistics.median(speeds[0])
        yield f"prepare/{modality}/{workers}", statistics.median(speeds[workers]), "MB/s", reference


def _link(found: Sequence[Path], folder: Path, copies: int) -> list[Path]:
    """The files under further names."""
    files = []
    for copy in range(copies):
        (folder / str(copy)).mkdir(parents=True)
        for i, path in enumerate(found):
            files.append(folder / str(copy) / f"{i}{path.suffix}")
            try:
                os.link(path.absolute(), files[-1])
            except OSError:  # another file system
                shutil.copyfile(path, files[-1])
    return files


def _bare_text(files: Sequence[Path]) -> int:
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
    return sum(len(soundfile.read(path, dtype="int16")[0].tobytes()) for path in files)


_BARE = {"text": _bare_text, "image": _bare_image, "audio": _bare_audio}

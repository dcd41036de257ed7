"""The command `bytelm generate`: its options, and how they become requests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytelm.modalities.base import Header
    from bytelm.model.decoding.sampling import Sampling
    from bytelm.model.megabyte import Megabyte
    from bytelm.pipelines.data.dataset_info import DatasetInfo
    from bytelm.pipelines.generation.request import Given, Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--modality", required=True, choices=["text", "image", "audio"])
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--prompt", help="a text; or an image or sound file to begin with")
    parser.add_argument(
        "--condition-on", help="a caption or transcript to follow; of a text, the file to describe"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first file, then one more")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest")
    parser.add_argument("--top-k", type=int, default=0, help="the likeliest ids; 0 for all")
    parser.add_argument("--top-p", type=float, default=1.0, help="the likeliest ids of this mass")
    parser.add_argument("--min-p", type=float, default=0.0, help="least share of the likeliest")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--max-bytes", type=int, default=512, help="text: at most so many")
    parser.add_argument(
        "--allow-invalid-utf8", action="store_true", help="text: not only valid UTF-8"
    )
    parser.add_argument("--stream", action="store_true", help="text: show it as it comes")
    parser.add_argument("--size", help="image: WIDTHxHEIGHT; else the prompt's, or drawn")
    parser.add_argument("--grey", action="store_true", help="image: one channel")
    parser.add_argument("--prompt-rows", type=int, default=16, help="image: rows given")
    parser.add_argument("--sheet", action="store_true", help="image: all in sheet.png too")
    parser.add_argument("--seconds", type=float, default=1.0, help="audio: length")
    parser.add_argument("--rate", type=int, help="audio: samples a second; else drawn")
    parser.add_argument("--channels", type=int, help="audio: channels; else drawn")
    parser.add_argument("--prompt-seconds", type=float, default=0.25, help="audio: given")
    parser.add_argument("--flac", action="store_true", help="audio: FLAC in place of WAV")


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Generate the files and print their paths; returns the exit status."""
    from bytelm.model.decoding.sampling import Sampling
    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.generation.contact_sheet import write_sheet
    from bytelm.pipelines.generation.generate import generate_files

    if options.count < 1:
        raise ValueError(f"--count is {options.count}, and must be at least 1")
    if options.stream and (options.modality != "text" or options.count > 1):
        raise ValueError("--stream shows one text: leave it out, or make one text")
    if options.sheet and options.modality != "image":
        raise ValueError("--sheet is a sheet of images: leave it out, or make images")
    model, seen = load_model(options.model)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p)
    seeds = [options.seed + number for number in range(options.count)]
    before = _given(options, seen, model.config.patch)
    if options.modality == "text":
        requests = [_text(options, seen.views["text"], before)] * options.count
    else:
        make = _image if options.modality == "image" else _audio
        requests = make(options, model, before, seen, seeds, sampling)
    suffix = "flac" if options.flac and options.modality == "audio" else None
    paths = generate_files(
        model,
        requests,
        seeds,
        sampling,
        options.precision,
        options.out,
        suffix=suffix,
        show=_show if options.stream else None,
    )
    if options.stream:
        print()
    if options.sheet:
        paths.append(write_sheet(paths, options.out / "sheet.png"))
    for path in paths:
        print(path)
    return 0


def _show(raw: bytes) -> None:
    """Write bytes to the terminal at once; the terminal joins those of one character."""
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def _given(options: argparse.Namespace, seen: DatasetInfo, patch: int) -> Given | None:
    """The segment that the files follow."""
    from bytelm.pipelines.generation.request import given_file, given_text, require_pair

    if options.condition_on is None:
        return None
    if options.modality == "text":
        before = given_file(Path(options.condition_on), seen.views, patch)
    else:
        before = given_text(options.condition_on, seen.views["text"])
    require_pair(before.segment.modality.name, options.modality, seen)
    return before


def _text(options: argparse.Namespace, view: str, before: Given | None) -> Request:
    from bytelm.pipelines.generation.request import text_request

    return text_request(
        options.prompt or "", options.max_bytes, view, options.allow_invalid_utf8, before
    )


def _image(
    options: argparse.Namespace,
    model: Megabyte,
    before: Given | None,
    seen: DatasetInfo,
    seeds: list[int],
    sampling: Sampling,
) -> list[Request]:
    from bytelm.modalities.base import DecodeOptions, Header
    from bytelm.pipelines.generation.request import image_request, read_sample

    top = read_sample("image", Path(options.prompt), DecodeOptions()) if options.prompt else None
    if options.size:
        width, height = _size(options.size)
        headers = [Header(width, height, 1 if options.grey else 3)] * len(seeds)
    elif top:
        headers = [top.header] * len(seeds)
    else:
        channels = 1 if options.grey else None
        headers = _drawn(model, "image", seen, channels, "--size", seeds, sampling)
    view = seen.views["image"]
    return [image_request(header, view, top, options.prompt_rows, before) for header in headers]


def _audio(
    options: argparse.Namespace,
    model: Megabyte,
    before: Given | None,
    seen: DatasetInfo,
    seeds: list[int],
    sampling: Sampling,
) -> list[Request]:
    from bytelm.modalities.base import DecodeOptions, Header
    from bytelm.pipelines.generation.request import audio_request, read_sample

    start = None
    if options.prompt:
        decode = DecodeOptions(audio_rate=options.rate, audio_channels=options.channels)
        start = read_sample("audio", Path(options.prompt), decode)
        headers = [start.header] * len(seeds)
    elif options.rate:
        headers = [Header(rate=options.rate, channels=options.channels or 1)] * len(seeds)
    else:
        channels = options.channels
        headers = _drawn(model, "audio", seen, channels, "--rate", seeds, sampling)
    view = seen.views["audio"]
    return [
        audio_request(header, view, options.seconds, start, options.prompt_seconds, before)
        for header in headers
    ]


def _drawn(
    model: Megabyte,
    modality: str,
    seen: DatasetInfo,
    channels: int | None,
    option: str,
    seeds: list[int],
    sampling: Sampling,
) -> list[Header]:
    """A header for each seed, of those that the training set had."""
    from bytelm.pipelines.generation.generate import draw_headers
    from bytelm.pipelines.generation.request import header_choices

    choices = header_choices(modality, seen, channels, option)
    return draw_headers(model, modality, seen.views[modality], choices, seeds, sampling)


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not (separator and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--size is WIDTHxHEIGHT in pixels, as 64x64, not {text!r}")
    return int(width), int(height)

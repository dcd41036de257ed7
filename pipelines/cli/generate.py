"""`bytelm generate`: generate texts, images and sounds."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.cli.arguments import (
    MAX_RATE,
    Number,
    WholeNumber,
    add_model,
    add_precision,
    output_folder,
)
from bytelm.pipelines.cli.processes import add_processes, launch_processes

if TYPE_CHECKING:
    from bytelm.model.decoding.sampling import Sampling
    from bytelm.model.megabyte import Megabyte
    from bytelm.pipelines.generation.options import GenerateOptions
    from bytelm.pipelines.generation.request import Request
    from bytelm.pipelines.runtime.ranks import Ranks

MAX_PAYLOAD_BYTES = (1 << 32) - 1
MAX_SEED = 1 << 62
MAX_SIDE = 65535
HELP = "Generate texts, images or sounds. Every file is valid."
SAMPLING_HELP = (
    "Each option replaces one value of the model's own settings, if `bytelm calibrate` measured "
    "some, or of the modality's defaults: text temperature 1, min-p 0.05; image temperature 0.9; "
    "audio temperature 0.9. An image that the mixture of outputs finishes has temperature 1.08. "
    "The model's own distribution is --temperature 1 --top-k 0 --top-p 1 --min-p 0."
)
"""A text, since the defaults themselves are beside torch, which takes a second to import."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser)
    parser.add_argument(
        "--modality", required=True, choices=["text", "image", "audio"], help="what to generate"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="folder of files, numbered from 0; those of an earlier call are replaced",
    )
    parser.add_argument(
        "--count", type=WholeNumber(1, 1_000_000), default=1, help="number of files"
    )
    parser.add_argument(
        "--batch",
        type=WholeNumber(1, 1_000_000),
        help="files drawn at once; without it as many as half of the free memory holds, at most 64 "
        "on a CPU and 512 on a GPU",
    )
    parser.add_argument("--prompt", help="text, or path of an image or sound, to begin with")
    parser.add_argument(
        "--condition-on",
        metavar="TEXT|FILE",
        help="caption or transcript of the image or sound; for a text, the file that it describes",
    )
    parser.add_argument(
        "--seed",
        type=WholeNumber(-MAX_SEED, MAX_SEED),
        default=0,
        help="seed of the first file; each further one adds 1",
    )
    add_processes(parser, "files")
    _add_sampling_arguments(parser)
    add_precision(parser)
    for add in _MODALITY_ARGUMENTS.values():
        add(parser)


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", SAMPLING_HELP)
    group.add_argument(
        "--temperature", type=Number(0, 1e9), help="divides the logits; 0 takes the likeliest"
    )
    group.add_argument(
        "--top-k",
        type=WholeNumber(0, 1 << 32),
        help="draw from the k likeliest bytes only; 0 for all",
    )
    group.add_argument(
        "--top-p",
        type=Number(0, 1, is_least_allowed=False),
        help="draw from the likeliest bytes whose probabilities add up to this",
    )
    group.add_argument(
        "--min-p",
        type=Number(0, 1),
        help="draw from bytes with at least this share of the likeliest byte's probability",
    )


def _add_text_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group("text")
    return [
        group.add_argument(
            "--max-bytes",
            type=WholeNumber(1, MAX_PAYLOAD_BYTES),
            default=512,
            help="longest text in bytes, of which the prompt's count too",
        ),
        group.add_argument(
            "--allow-invalid-utf8", action="store_true", help="allow texts that are not valid UTF-8"
        ),
        group.add_argument(
            "--stream", action="store_true", help="print the text while it is drawn"
        ),
    ]


def _add_image_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group("image")
    return [
        group.add_argument(
            "--size",
            type=_size,
            metavar="WIDTHxHEIGHT",
            help="size of an image in pixels; without it the prompt's, or one that the model draws",
        ),
        group.add_argument(
            "--grey",
            action="store_true",
            help="one channel instead of three",
        ),
        group.add_argument(
            "--prompt-rows",
            type=WholeNumber(0, MAX_SIDE),
            default=16,
            help="rows of pixels to keep of an image prompt",
        ),
        group.add_argument(
            "--sheet", action="store_true", help="also write all images into one, sheet.png"
        ),
    ]


def _add_audio_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group("audio")
    return [
        group.add_argument(
            "--seconds",
            type=Number(0, 1e9, is_least_allowed=False),
            default=1.0,
            help="length of a sound in seconds, prompt included",
        ),
        group.add_argument(
            "--rate",
            type=WholeNumber(1, MAX_RATE),
            help="samples per second of a sound; without it the prompt's, or one that the model "
            "draws",
        ),
        group.add_argument(
            "--channels",
            type=WholeNumber(1, 255),
            help="channels of a sound; without it the prompt's, 1 with --rate, or drawn with the "
            "rate",
        ),
        group.add_argument(
            "--prompt-seconds",
            type=Number(0, 1e9),
            default=0.25,
            help="seconds to keep of a sound prompt",
        ),
        group.add_argument(
            "--flac", action="store_true", help="write sounds as FLAC instead of WAV"
        ),
    ]


_MODALITY_ARGUMENTS = {
    "text": _add_text_arguments,
    "image": _add_image_arguments,
    "audio": _add_audio_arguments,
}
"""Each adds the options of one modality and returns them."""


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Generate the files and print their paths."""
    _check_modality(options)
    if options.stream and options.count > 1:
        raise ValueError("--stream shows one text: leave it out, or generate one text")
    if (status := launch_processes(options, argv)) is not None:
        return status

    from bytelm.pipelines.runtime.ranks import joined_ranks

    with joined_ranks() as ranks:
        paths = _generate(options, ranks)
    if ranks.rank:
        return 0
    if options.stream:
        print()
    for path in paths:
        print(path)
    return 0


def _generate(options: argparse.Namespace, ranks: Ranks) -> list[Path]:
    """Generate the files with other ranks, and return the paths of all of them on each rank."""
    from bytelm.pipelines.checkpoints.load import load_model, settled_location
    from bytelm.pipelines.compression.fingerprint import model_hash
    from bytelm.pipelines.generation.contact_sheet import write_sheet
    from bytelm.pipelines.generation.generate import generate_files
    from bytelm.pipelines.generation.options import build_requests, sampling_of

    chosen = _generate_options(options)

    def prepare() -> tuple[Megabyte, list[Request], Sampling]:
        model, dataset_info = load_model(location)
        requests = build_requests(model, dataset_info, chosen)
        return model, requests, sampling_of(model, dataset_info, chosen, requests[0])

    location = settled_location(options.model, ranks)
    model, requests, sampling = ranks.together(prepare)
    suffix = "flac" if options.flac else None
    paths = generate_files(
        model,
        requests,
        chosen.seeds,
        sampling,
        chosen.precision,
        options.out,
        suffix=suffix,
        show=_show if options.stream else None,
        batch=chosen.batch,
        ranks=ranks,
        identity=_identity(model_hash(model), requests, chosen, sampling, suffix),
    )
    if options.sheet and ranks.rank == 0:
        paths.append(write_sheet(paths, options.out / "sheet.png"))
    return paths


def _identity(
    model: bytes,
    requests: Sequence[Request],
    chosen: GenerateOptions,
    sampling: Sampling,
    suffix: str | None,
) -> str:
    """A hash of all that decides the bytes of the files."""
    settings = (chosen.seed, sampling, chosen.precision, chosen.allow_invalid_utf8, suffix)
    digest = hashlib.sha256(model + repr(settings).encode())
    for request in requests:
        facts = (request.modality, request.header, request.view, request.size, request.prompt)
        digest.update(repr(facts).encode())
        if condition := request.condition:
            kind = condition.segment.modality.name, condition.segment.header, condition.segment.view
            digest.update(repr((kind, condition.payload)).encode())
    return digest.hexdigest()[:16]


def _check_modality(options: argparse.Namespace) -> None:
    """Raise ValueError for an option of another modality, which would have no effect."""
    for modality, add in _MODALITY_ARGUMENTS.items():
        for action in add(argparse.ArgumentParser()):
            is_given = getattr(options, action.dest) != action.default
            if is_given and modality != options.modality:
                raise ValueError(
                    f"{action.option_strings[0]} is an option of {modality}: leave it out with "
                    f"--modality {options.modality}"
                )


def _generate_options(options: argparse.Namespace) -> GenerateOptions:
    from bytelm.pipelines.generation.options import GenerateOptions
    from bytelm.pipelines.generation.sampling_defaults import SamplingChoices

    channels = {"image": 1 if options.grey else None, "audio": options.channels}
    return GenerateOptions(
        modality=options.modality,
        prompt=options.prompt,
        condition_on=options.condition_on,
        count=options.count,
        batch=options.batch,
        seed=options.seed,
        choices=SamplingChoices(options.temperature, options.top_k, options.top_p, options.min_p),
        precision=options.precision,
        max_bytes=options.max_bytes,
        allow_invalid_utf8=options.allow_invalid_utf8,
        size=options.size,
        prompt_rows=options.prompt_rows,
        seconds=options.seconds,
        rate=options.rate,
        channels=channels.get(options.modality),
        prompt_seconds=options.prompt_seconds,
    )


def _size(text: str) -> tuple[int, int]:
    """The `type` of `--size`."""
    width, _, height = text.partition("x")
    try:
        side = WholeNumber(1, MAX_SIDE)
        return side(width), side(height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"is {text[:40]!r}, and must be WIDTHxHEIGHT in pixels of 1 to {MAX_SIDE:,}, as 64x64"
        ) from None


def _show(raw: bytes) -> None:
    """Write bytes to the terminal at once; the terminal joins those of one character."""
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()

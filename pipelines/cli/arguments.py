"""Arguments that several commands share, the types of numbers, and the parser of a command."""

from __future__ import annotations

import argparse
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

MAX_BATCH = 1 << 16
MAX_PROCESSES = 1 << 16
MAX_RATE = 100_000_000
"""Samples per second; beyond those of any device."""


@dataclass(frozen=True)
class WholeNumber:
    """The `type` of an option that takes a whole number from `least` to `most`."""

    least: int
    most: int

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _refusal(repr(text), "a whole number") from None
        if not self.least <= value <= self.most:
            raise _refusal(text, f"{self.least:,} to {self.most:,}")
        return value


@dataclass(frozen=True)
class Number:
    """The `type` of an option that takes a number from `least` to `most`.

    An infinite `most` lets infinity pass.
    """

    least: float
    most: float
    is_least_allowed: bool = True

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _refusal(repr(text), "a number") from None
        is_above = value >= self.least if self.is_least_allowed else value > self.least
        bounds = f"at least {self.least:g}" if self.is_least_allowed else f"above {self.least:g}"
        if math.isfinite(self.most):
            bounds += f" and at most {self.most:g}"
        if not (is_above and value <= self.most):
            raise _refusal(text, bounds)
        return value


def _refusal(value: str, wanted: str) -> argparse.ArgumentTypeError:
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    return argparse.ArgumentTypeError(f"is {shown}, and must be {wanted}")


def output_folder(text: str) -> Path:
    """The `type` of an option that takes a folder, which is made where it is missing."""
    path = Path(text)
    try:
        is_other = path.exists() and not path.is_dir()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise _refusal(text, f"the path of a folder: {error}".partition(": '")[0]) from error
    if is_other:
        raise _refusal(text, "a folder: it is a file")
    return path


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses a mistake in one line with a way out, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake in one line on stderr, and exit with status 2."""
        line = message.removeprefix("argument ").replace(": is ", " is ", 1)
        self.exit(2, f"{self.prog}: {' '.join(line.split())} (see {self.prog} --help)\n")

    def refuse_left_over(self, argument: str) -> NoReturn:
        """Refuse an argument that no option and no positional argument took."""
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            self.error(f"{argument!r} is one too many, or stands apart from those of its kind")
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        self.error(f"unknown option {name}" + (f": did you mean {near[0]}?" if near else ""))


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument MODEL."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, an exported model's folder, the name of a bundled model (small), the "
        "URL of a run or a checkpoint (s3, gs, az, hf), a Hugging Face repository, or preset:NAME "
        "for random weights that learn from what they code",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision` of a model that is not trained."""
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="arithmetic of the model"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG, `--set` and `--processes`."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the run")
    add_config_options(parser)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add `--set` and `--processes`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the config, as train.steps=500; may be repeated",
    )
    parser.add_argument(
        "--processes",
        type=WholeNumber(1, MAX_PROCESSES),
        default=1,
        help="training processes (ranks) on this machine",
    )

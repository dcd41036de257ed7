"""The command `bytelm`. A command imports torch and other heavy packages only when it runs.

Exit status: 0, 2 for a user's mistake (one line on stderr), 1 for a failure, 130 after Ctrl-C, and
3 for a training run whose loss or gradient stayed not finite.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import bytelm
from bytelm.pipelines.cli import (
    compress,
    decompress,
    demo,
    evaluate,
    export,
    generate,
    index,
    inspection,
    plan,
    prepare,
    train,
)
from bytelm.pipelines.errors import DamageError, DivergedError, OnAllRanksError

COMMANDS: dict[str, ModuleType] = {
    "prepare": prepare,
    "inspect": inspection,
    "index": index,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "compress": compress,
    "decompress": decompress,
    "export": export,
    "demo": demo,
}
"""Each module has HELP, `add_arguments(parser)` and `run(options, argv)`, the exit status."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, with a subparser for each command."""
    parser = argparse.ArgumentParser(
        prog="bytelm", description="One MEGABYTE model on the raw bytes of images, audio and text."
    )
    parser.add_argument("--version", action="version", version=f"bytelm {bytelm.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(
                name, help=command.HELP, description=command.HELP, formatter_class=_HelpFormatter
            )
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    Returns:
        the exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options, arguments)
    except ValueError as error:
        _print_error(options.command, error)
        return 1 if isinstance(error, DamageError) else 2
    except (RuntimeError, OSError) as error:
        if os.environ.get("BYTELM_TRACEBACK"):
            raise
        is_repeated = isinstance(error, OnAllRanksError) and os.environ.get("RANK", "0") != "0"
        if not is_repeated:
            _print_error(options.command, error)
        return 3 if isinstance(error, DivergedError) else 1
    except KeyboardInterrupt:
        print(f"bytelm {options.command}: interrupted", file=sys.stderr)
        return 130


def _print_error(command: str, error: BaseException) -> None:
    """Print an error in one line, without the traceback that a data worker's error contains."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
    print(f"bytelm {command}: {' '.join(text.split())}", file=sys.stderr)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where the option has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool | list):
            return action.help
        return super()._get_help_string(action)


if __name__ == "__main__":
    sys.exit(main())

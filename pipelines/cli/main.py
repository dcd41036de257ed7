# PYTHON_ARGCOMPLETE_OK: global completion of argcomplete looks for these words.
"""The command `bytelm`. A command imports torch and other heavy packages only when it runs.

Exit status:

    0    done; also a training that was asked to stop and has saved
    1    a failure, in one line on stderr; damaged data
    2    a user's mistake, in one line on stderr
    3    a training whose loss or gradient stayed not finite
    130  ended by Ctrl-C
    141  the reader of stdout, such as `head`, has ended
    143  ended by SIGTERM

An error that nobody foresaw is status 1 too. Its traceback goes to a file, which the line names;
with `BYTELM_TRACEBACK=1` in the environment it is raised instead.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import bytelm
from bytelm.pipelines.cli import (
    calibrate,
    completion,
    compress,
    config,
    decompress,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    index,
    init,
    inspection,
    merge,
    plan,
    prepare,
    push,
    report,
    serve,
    train,
)
from bytelm.pipelines.cli.arguments import CommandParser
from bytelm.pipelines.errors import DamageError, DivergedError, OnAllRanksError, one_line
from bytelm.pipelines.runtime import platforms, signals
from bytelm.pipelines.runtime.threads import share_cores

COMMANDS: dict[str, ModuleType] = {
    "prepare": prepare,
    "merge": merge,
    "inspect": inspection,
    "index": index,
    "init": init,
    "config": config,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "generate": generate,
    "compress": compress,
    "decompress": decompress,
    "serve": serve,
    "export": export,
    "calibrate": calibrate,
    "push": push,
    "demo": demo,
    "doctor": doctor,
    "completion": completion,
}
"""Each module has HELP, `add_arguments(parser)` and `run(options, argv)`, the exit status."""
SHARED_BY_RANKS = ("evaluate", "generate", "compress", "decompress")
"""Commands whose ranks meet over gloo (`runtime/ranks.py`); they leave nothing to clean up."""
UNFORESEEN = (UnicodeEncodeError, RecursionError, NotImplementedError)
"""ValueErrors and RuntimeErrors of Python itself, whose text tells a user nothing."""


def build_parser() -> CommandParser:
    """The parser of the whole command line, with a subparser for each command.

    Its options name the command (`command`) and the command's own parser (`parser`).
    """
    parser = CommandParser(
        prog="bytelm", description="One MEGABYTE model on the raw bytes of images, audio and text."
    )
    parser.add_argument("--version", action="version", version=f"bytelm {bytelm.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.HELP, description=command.HELP, formatter_class=_HelpFormatter
        )
        command.add_arguments(subparser)
        subparser.set_defaults(parser=subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.
    Returns:
        the exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own
        if sys.platform != "win32":
            signals.end_at_sigterm()
        share_cores()
        _print_any_name()
    options = _parse(arguments)
    if refusal := platforms.refusal(options.command, sys.platform):
        print(f"bytelm {options.command}: {refusal}", file=sys.stderr)
        return 1
    if argv is None and options.command in SHARED_BY_RANKS:
        _run_to_end(options, arguments)
    return _run(options, arguments)


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Run a command whose options are known; returns the exit status of whatever ends it."""
    try:
        status = COMMANDS[options.command].run(options, arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError as error:
        if not _output_is_cut():
            return _report(options.command, error)
        return 141
    except signals.Terminated:
        return _print_terminated(options.command)
    except KeyboardInterrupt:
        print(f"bytelm {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if signals.Terminated.was_raised:
            # An import dropped the signal, left a package half imported, and led to this error.
            return _print_terminated(options.command)
        return _report(options.command, error)


def _run_to_end(options: argparse.Namespace, arguments: list[str]) -> NoReturn:
    """Run a command that leaves nothing to clean up, and end the process at once.

    Letting go of all objects of PyTorch and numba would take a third of a second. A thread of gloo
    may hold an object of Python to the end, where letting go of it would abort the process and
    hide its status.
    """
    try:
        status = _run(options, arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # `_run` has told of it
            stream.flush()
    os._exit(status)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line. A mistake ends the process with status 2 and one line."""
    parser = build_parser()
    if completion.VARIABLE in os.environ:
        completion.complete(parser)
    name = arguments[0] if arguments else ""
    if not name:
        parser.error(f"a command is missing: one of {', '.join(COMMANDS)}")
    if not name.startswith("-") and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        parser.error(f"unknown command {name!r}: {hint}")
    options, left_over = parser.parse_known_args(arguments)
    if left_over:
        options.parser.refuse_left_over(left_over[0])
    return options


def _output_is_cut() -> bool:
    """Whether the reader of stdout, such as `head`, has ended; what is left of it is dropped."""
    descriptor = sys.stdout.fileno()
    watch = select.poll()
    watch.register(descriptor, 0)  # errors are always told
    if not watch.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _print_any_name() -> None:
    """Let stdout print names of files that are no UTF-8 or not in the terminal's encoding, as
    stderr does: with escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _report(command: str, error: Exception) -> int:
    """Print the line of an error, and return the exit status of its kind."""
    if isinstance(error, DamageError):
        return _print_error(command, error, 1)
    if isinstance(error, ValueError) and type(error) not in UNFORESEEN:
        return _print_error(command, error, 2)
    if os.environ.get("BYTELM_TRACEBACK"):
        raise error
    if isinstance(error, OnAllRanksError) and os.environ.get("RANK", "0") != "0":
        return 3 if isinstance(error, DivergedError) else 1  # rank 0 prints it
    if isinstance(error, DivergedError):
        return _print_error(command, error, 3)
    if isinstance(error, RuntimeError | OSError) and type(error) not in UNFORESEEN:
        return _print_error(command, error, 1)
    summary = one_line(error)
    print(
        f"bytelm {command}: unexpected {summary} (traceback: {_keep_traceback(error)}; please "
        "report it)",
        file=sys.stderr,
    )
    return 1


def _print_terminated(command: str) -> int:
    """Print the line of a command that SIGTERM ended; returns the exit status."""
    print(f"bytelm {command}: ended by SIGTERM", file=sys.stderr)
    return 143


def _print_error(command: str, error: Exception, status: int) -> int:
    """Print an error in one line; returns the exit status."""
    print(f"bytelm {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _keep_traceback(error: Exception) -> str:
    """Write the traceback of an error to a file of the temporary folder; returns its path."""
    lines = [f"bytelm {bytelm.__version__}: {' '.join(sys.argv)}\n"]
    lines += traceback.format_exception(error)
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            encoding="utf-8",
            errors="backslashreplace",
            prefix="bytelm-traceback-",
            suffix=".txt",
            delete=False,
        ) as file:
            file.writelines(lines)
    except OSError as cause:
        return f"could not be written: {cause.strerror}"
    return file.name


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where the option has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool | list):
            return action.help
        return super()._get_help_string(action)


if __name__ == "__main__":
    sys.exit(main())

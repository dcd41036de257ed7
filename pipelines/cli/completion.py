"""`bytelm completion`: the lines with which a shell completes bytelm's commands and options."""

from __future__ import annotations

import argparse

HELP = "Print what a shell sources to complete bytelm's commands and options."
SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARGCOMPLETE"
"""Is in the environment where a shell asks for completions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help='bash and zsh: eval "$(bytelm completion bash)" in ~/.bashrc or ~/.zshrc; '
        "fish: bytelm completion fish > ~/.config/fish/completions/bytelm.fish",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Print the lines."""
    import argcomplete

    print(argcomplete.shellcode(["bytelm"], shell=options.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser)

"""MkDocs hooks: the pages that are generated from README.md and from the code at build time.

index.md                 README.md, with its links turned to those of the site
reference/commands.md    the options of every command, from its argument parser
reference/config.md      the keys of a config, from its dataclasses and their docstrings
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bytelm.model.config import ModelConfig, StageConfig
from bytelm.pipelines.cli.main import build_parser
from bytelm.pipelines.config import (
    DataConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    SetConfig,
    TrainConfig,
    ViewsConfig,
)

SECTIONS: dict[str, type] = {
    "The top level": RunConfig,
    "model": ModelConfig,
    "model.stages[...]": StageConfig,
    "data": DataConfig,
    "data.sets[...]": SetConfig,
    "data.views": ViewsConfig,
    "train": TrainConfig,
    "train.noise": NoiseConfig,
    "optimizer": OptimizerConfig,
}
"""The sections of a config, in the order of the page."""

COMMANDS_INTRO = """# Commands

`bytelm COMMAND --help` prints the same. SET is the folder or URL of a shard set; MODEL is a run's
folder, an exported model, or the name of a Hugging Face repository.

The exit status is 0, or 2 for a mistake in the arguments, the config or the files (one line on
stderr says the cause and the way out), 1 for a failure, 3 for a training run whose loss or
gradient was not finite three updates in a row, 130 if Ctrl-C ended the command, and 143 if SIGTERM
did. A second Ctrl-C ends a training at once, without a checkpoint. The traceback of an error that
nobody foresaw is kept in a file, which the line names; `BYTELM_TRACEBACK=1` prints it instead.
"""

CONFIG_INTRO = """# Config

The keys of the YAML file that `bytelm plan` and `bytelm train` read. `--set section.key=value`
replaces a value. An unknown key is an error that names the nearest known one, and so is a key that
stands twice. Values are those of YAML 1.2: `1e-4` is a number, `1:30` and `2026-01-01` are texts; a
number with a leading zero is refused. Relative paths begin at the working directory.

`model` is the name of a preset, or a preset with what differs from it
(`{preset: modern-demo, context: 8192}`), or all keys of a model.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    root = Path(config.config_file_path).parent
    pages = {
        "index.md": home_page((root / "README.md").read_text("utf-8")),
        "reference/commands.md": commands_page(build_parser()),
        "reference/config.md": config_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def home_page(readme: str) -> str:
    """README.md as the site's first page.

    Links into `docs/` become links of the site. Links to other files of the repository, which the
    site does not hold, become their paths.
    """

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')})"
        return match[0] if ":" in target else f"`{target}`"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, readme)


def commands_page(parser: argparse.ArgumentParser) -> str:
    """A section for each command: its usage and a table of its arguments."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    sections = [_command_section(name, command) for name, command in commands.choices.items()]
    return "\n".join([COMMANDS_INTRO, *sections])


def _command_section(name: str, command: argparse.ArgumentParser) -> str:
    usage = " ".join(command.format_usage().removeprefix("usage: ").split())
    wrapped = textwrap.fill(usage, 72, subsequent_indent="    ", break_on_hyphens=False)
    rows = [
        (_argument_name(action), _default(action), _escaped(action.help or ""))
        for action in command._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    table = _table(("argument", "default", "meaning"), rows)
    description = command.description or ""
    return f"## bytelm {name}\n\n{description}\n\n```text\n{wrapped}\n```\n\n{table}"


def _argument_name(action: argparse.Action) -> str:
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    else:
        metavar = action.metavar if isinstance(action.metavar, str) else None
        value = metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    takes_value = action.nargs != 0
    return f"`{action.option_strings[0]}{' ' + value if takes_value else ''}`"


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.nargs == 0 or action.default in (None, []):
        return ""
    if action.dest == "workers":
        return "the number of cores"
    return f"`{action.default}`"


def config_page() -> str:
    """A section for each dataclass of the config: a table of its keys."""
    sections = [_config_section(title, kind) for title, kind in SECTIONS.items()]
    return "\n".join([CONFIG_INTRO, *sections])


def _config_section(title: str, kind: type) -> str:
    described = described_fields(kind)
    rows = [
        (f"`{f.name}`", f"`{described[f.name][0]}`", _field_default(f), described[f.name][1])
        for f in dataclasses.fields(kind)
    ]
    heading = title if title.startswith("The") else f"`{title}`"
    table = _table(("key", "type", "default", "meaning"), rows)
    description = (inspect.getdoc(kind) or "").split("\nRaises:")[0]
    return f"## {heading}\n\n{description}\n\n{table}"


def described_fields(kind: type) -> dict[str, tuple[str, str]]:
    """The annotation of each field of a dataclass, and the docstring that follows it."""
    (body,) = (n for n in ast.parse(inspect.getsource(kind)).body if isinstance(n, ast.ClassDef))
    described = {}
    for node, following in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        docstring = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docstring = _escaped(str(following.value.value))
        described[node.target.id] = ast.unparse(node.annotation), docstring
    return described


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{_yaml(field.default)}`"
    return "its defaults" if field.default_factory is not dataclasses.MISSING else "required"


def _yaml(value: Any) -> str:
    """A default as a config file says it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped(text: str) -> str:
    """Text for a cell of a table: one line, and no `|` that would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")

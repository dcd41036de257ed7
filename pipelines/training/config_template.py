"""A config to begin with: what a first run needs, and every other key with its default.

# Steps over which the learning rates rise.        the docstring of the key
warmup_steps: 50                                   a value
# Decoupled weight decay of both optimizers.
#weight_decay: 0.1                                 a default
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bytelm.pipelines.config import RunConfig, SetConfig, config_from_dict
from bytelm.pipelines.config_schema import field_docs
from bytelm.pipelines.config_writer import comment_lines, scalar
from bytelm.pipelines.training.data_choices import choose_data
from bytelm.pipelines.training.pace import evaluation_interval

STEPS = 1_000
WARMUP_STEPS = 50
EVALUATION_ROWS = 8
EXAMPLE_SET = "sets/first"
PRESET = "modern-demo"
HEAD = """\
The config of a run. Values to begin with stand as they are; keys behind a # are defaults:
remove the # to change one.

    bytelm plan CONFIG                shows what it will do
    bytelm train CONFIG --out RUN     trains
"""


def config_template(paths: Sequence[str], schema: str | None) -> str:
    """Write a config that can be trained as it is.

    Args:
        paths: the sets, from which row length and weights are chosen; without any, the config
            names EXAMPLE_SET, which has to be prepared.
        schema: path of the JSON Schema for editors, named in the first line.
    Raises:
        ValueError: if a path is no set, or one without documents in `train`.
    """
    values, comments = choose_data(paths) if paths else _example()
    train = {
        "steps": STEPS,
        "eval_every": evaluation_interval(STEPS),
        "eval_rows": EVALUATION_ROWS,
    }
    values |= {"train": train, "optimizer": {"warmup_steps": WARMUP_STEPS}}
    comments = {key: text for key, text in comments.items() if not key.startswith("train.")}
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += [f"# {line}".rstrip() for line in HEAD.splitlines()]
    return "\n".join([*lines, *_sections(values, comments)]) + "\n"


def _example() -> tuple[dict[str, Any], dict[str, str]]:
    """Values and comments without sets to look at."""
    values = {"model": {"preset": PRESET}, "data": {"sets": [{"path": EXAMPLE_SET}]}}
    return values, {"data.sets": f"`bytelm prepare FILES... --out {EXAMPLE_SET}` makes this one."}


def _sections(values: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[str]:
    """The lines of every section of a config."""
    config = config_from_dict(dict(values))
    defaults = config.to_dict()
    docs = field_docs(RunConfig)
    for field in dataclasses.fields(RunConfig):
        section = defaults[field.name]
        yield ""
        yield from comment_lines(docs[field.name], "")
        if field.name not in values:
            yield f"#{field.name}: {scalar(section)}"
            continue
        yield f"{field.name}:"
        given = dict(values[field.name])
        if field.name == "model":
            yield f"  preset: {given.pop('preset')}"
        kind = type(getattr(config, field.name))
        for key, doc in field_docs(kind).items():
            reason = comments.get(f"{field.name}.{key}", "")
            yield from comment_lines(f"{doc} {reason}".strip(), "  ")
            yield from _inner_docs(kind, key)
            yield from _key_lines(key, given.get(key), section[key])


def _key_lines(key: str, given: Any, default: Any) -> Iterator[str]:
    """A key with its value, or with its default behind a #."""
    if isinstance(given, list):
        yield f"  {key}:"
        yield from (f"    - {scalar(item)}" for item in given)
    elif given is not None:
        yield f"  {key}: {scalar(given)}"
    else:
        yield f"  #{key}: {scalar(default)}"


def _inner_docs(kind: type, key: str) -> Iterator[str]:
    """Comments about the keys inside a key that holds a mapping, or a list of them."""
    inner = SetConfig if key == "sets" else typing.get_type_hints(kind)[key]
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
        for name, doc in field_docs(inner).items():
            yield from comment_lines(f"{name}: {doc}", "  ")

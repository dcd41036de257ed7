"""Read a config file: YAML of version 1.2's scalars, in which a key stands once.

PyYAML reads YAML 1.1, where `1e-4` is a text, `010` is eight, `1:30` is ninety, and the last of two
equal keys wins without a word.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_WHOLE = re.compile(r"[-+]?[0-9][0-9_]*$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+$")
_REAL = re.compile(
    r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$"
    r"|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


def _construct_whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if _LEADING_ZERO.match(text):
        raise yaml.constructor.ConstructorError(
            problem=f"the leading zero makes {node.value} octal for some programs: write "
            f"{int(text)}",
            problem_mark=node.start_mark,
        )
    return int(text, 0)


def _construct_real(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", _WHOLE, list("-+0123456789")),
    ("float", _REAL, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_real)


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the mapping that a file holds.

    Raises:
        ValueError: if the file is missing, no YAML, no mapping, or has a key twice.
    """
    try:
        values = parse_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"config {path} is no YAML: it is not in UTF-8") from error
    except ValueError as error:
        raise ValueError(f"config {path} {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path} must be a mapping with model, data and train")
    return values


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        ValueError: if it is none, or has a key twice; the text continues "config FILE ...".
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys_once(node, "", set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"is no YAML: {line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _check_keys_once(node: yaml.Node, path: str, seen: set[int]) -> None:
    """Raise ValueError for a mapping, at any depth, that has a key twice."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check_keys_once(item, f"{path}[{number}]", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        here = f"{path}.{key.value}" if path else key.value
        line = key.start_mark.line + 1
        if key.value in lines:
            where = f"lines {lines[key.value]} and {line}"
            if lines[key.value] == line:
                where = f"line {line}"
            raise ValueError(f"has {here} twice ({where})")
        lines[key.value] = line
        _check_keys_once(value, here, seen)

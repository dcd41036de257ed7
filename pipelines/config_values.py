"""Dataclasses from the plain values of a config file, with the mistakes in them by key."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text (a number in quotes)",
}
"""The types of single values, in words."""
SWITCHES = {"on": True, "yes": True, "off": False, "no": False}
"""Further words for true and false, beside YAML 1.2's own."""


def build(kind: type[Config], values: Any) -> Config:
    """Make a dataclass, whose fields may be dataclasses, of nested mappings.

    Raises:
        ValueError: for a key that is unknown (with the nearest known one) or missing, or a value of
            another type; what the dataclasses raise themselves.
    """
    built = _dataclass(kind, values, "", kind)
    assert isinstance(built, kind)
    return built


def _value(kind: Any, value: Any, path: str, root: type) -> Any:
    """Make a value of a type out of plain values.

    Args:
        kind: a dataclass, or the type of one of its fields.
        path: the value's key, `section.key`, for messages.
        root: the dataclass of the whole config, of which messages name keys.
    Raises:
        ValueError: for a key that is unknown or missing, or a value of another type.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, path, root)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple(arguments, value, path, root)
    if type(None) in arguments:
        return None if value is None else _value(arguments[0], value, path, root)
    if isinstance(value, str) and (kind is bool or True in arguments):
        value = SWITCHES.get(value.lower(), value)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            choices = ", ".join(str(choice).lower() for choice in arguments)
            raise ValueError(f"{path} must be one of {choices}, and is {value!r}")
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"{path} is a number of {value.bit_length()} bits, and must fit 64")
    if kind is not bool and isinstance(value, bool):
        pass  # in Python a bool is an int
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3
    elif kind is float and isinstance(value, int):
        return float(value)
    elif isinstance(value, kind):
        return value
    raise ValueError(f"{path} must be {TYPE_NAMES[kind]}, and is {value!r}")


def _tuple(kinds: tuple[Any, ...], values: Any, path: str, root: type) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{path} must be a list, and is {values!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise ValueError(f"{path} must be a list of {len(kinds)} values, and has {len(values)}")
    pairs = enumerate(zip(kinds, values, strict=True))
    return tuple(_value(kind, value, f"{path}[{i}]", root) for i, (kind, value) in pairs)


def _dataclass(kind: type, values: Any, path: str, root: type) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'the config'} must be a mapping, and is {values!r}")
    types = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{path}." if path else ""
    built = {}
    for key, value in values.items():
        if key not in fields:
            near = _nearest_key(str(key), list(fields), root)
            raise ValueError(f"unknown key {prefix}{key}: did you mean {near}?")
        built[key] = _value(types[key], value, f"{prefix}{key}", root)
    for name, f in fields.items():
        optional = (
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise ValueError(f"{prefix}{name} is missing from the config")
    return kind(**built)


def _nearest_key(key: str, siblings: list[str], root: type) -> str:
    """The known key nearest to an unknown one: of its section, or with its section of another."""
    near = difflib.get_close_matches(key, siblings, n=1)
    if near:
        return near[0]
    elsewhere = {known.rpartition(".")[2]: known for known in _keys(root, "")}
    near = difflib.get_close_matches(key, elsewhere, n=1)
    if near:
        return elsewhere[near[0]]
    return difflib.get_close_matches(key, siblings, n=1, cutoff=0.0)[0]


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    """Every `section.key` below a dataclass."""
    for name, inner in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"

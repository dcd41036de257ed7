"""The keys of a config for people and editors: their explanations, and a JSON Schema of the file.

Both are made from the dataclasses of `RunConfig` and the docstrings of their fields, so that they
cannot differ from what `bytelm train` reads.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any, Literal

from bytelm.model.config import ModelConfig
from bytelm.model.presets import PRESETS
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.config_values import SWITCHES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass that has one, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def json_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a config file.

    It knows keys, types and choices. What depends on several keys, `bytelm plan` checks.
    """
    schema = _object(RunConfig)
    schema["properties"]["model"] = _model_schema()
    return {"$schema": DIALECT, "title": "Config of bytelm train", **schema}


def _model_schema() -> Schema:
    """A preset's name, a preset with changed keys, or all keys of a model that have no default."""
    all_keys = _object(ModelConfig)
    names: Schema = {"enum": list(PRESETS), "description": "Name of a preset."}
    changed = {**all_keys, "properties": {"preset": names, **all_keys["properties"]}}
    changed["required"] = ["preset"]
    return {"description": field_docs(RunConfig)["model"], "anyOf": [names, changed, all_keys]}


def _object(kind: type) -> Schema:
    """The schema of a dataclass: an object without further keys."""
    types, docs = typing.get_type_hints(kind), field_docs(kind)
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        schema = _value(types[field.name])
        if field.name in docs:
            schema["description"] = docs[field.name]
        if field.default is not dataclasses.MISSING:
            default = field.default
            schema["default"] = list(default) if isinstance(default, tuple) else default
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = schema
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _value(kind: Any) -> Schema:
    """The schema of a field's type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        words = SWITCHES if True in arguments else {}
        return {"enum": [*arguments, *words]}
    if type(None) in arguments:
        return {"anyOf": [_value(arguments[0]), {"type": "null"}]}
    if origin is tuple:
        schema: Schema = {"type": "array", "items": _value(arguments[0])}
        if arguments[-1] is not Ellipsis:
            schema |= {"minItems": len(arguments), "maxItems": len(arguments)}
        return schema
    if kind is bool:  # as `config_values` takes it
        return {"enum": [True, False, *SWITCHES]}
    return {"type": {int: "integer", float: "number", str: "string"}[kind]}

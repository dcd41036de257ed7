"""A config as lines of YAML, with a mark on what differs from the defaults, and the difference of
several configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bytelm.model.presets import PRESETS
from bytelm.pipelines.config import DataConfig, OptimizerConfig, TrainConfig
from bytelm.pipelines.reporting.run_data import section

ABSENT = "–"
_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
}


@dataclass(frozen=True)
class ConfigLine:
    """A line of YAML."""

    text: str
    is_changed: bool
    """Whether its value differs from the default."""


def config_lines(config: Mapping[str, Any]) -> list[ConfigLine]:
    """The config as YAML. The defaults of `model` are those of the nearest preset."""
    lines = []
    for name, values in config.items():
        if not isinstance(values, dict):
            lines += [ConfigLine(line, False) for line in _yaml({name: values})]
            continue
        remark = ""
        if name == "model":
            preset = nearest_preset(values)
            remark = f"  # preset {preset}, marked where it differs"
            defaults: Mapping[str, Any] = PRESETS[preset].to_dict()
        else:
            defaults = _defaults(_SECTIONS[name]) if name in _SECTIONS else {}
        lines.append(ConfigLine(f"{name}:{remark}", False))
        for key, value in values.items():
            is_changed = key not in defaults or not _is_same(value, defaults[key])
            lines += [ConfigLine(f"  {line}", is_changed) for line in _yaml({key: value})]
    return lines


def nearest_preset(model: Mapping[str, Any]) -> str:
    """The name of the preset that differs from a model's config in the fewest keys."""
    return min(PRESETS, key=lambda name: len(_differing(PRESETS[name].to_dict(), model)))


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Each key whose values are not the same in all configs, with its value in each of them."""
    flat = [_flattened(config, "") for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [(key, [values.get(key, ABSENT) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def bytes_per_step(config: Mapping[str, Any]) -> int:
    """Ids that a step reads: the context times the global batch; 0 if unknown."""
    context = section(dict(config), "model").get("context")
    rows = section(dict(config), "train").get("global_batch")
    return context * rows if isinstance(context, int) and isinstance(rows, int) else 0


def _differing(defaults: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    return [key for key, value in defaults.items() if not _is_same(model.get(key), value)]


def _defaults(kind: type) -> dict[str, Any]:
    """Plain default values of a section; keys without a default are missing."""
    defaults = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
            is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
            defaults[field.name] = dataclasses.asdict(value) if is_section else value
    return defaults


def _is_same(value: Any, default: Any) -> bool:
    """Whether two plain values are equal, where JSON has made lists of tuples."""
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return len(value) == len(default) and all(map(_is_same, value, default))
    return bool(value == default)


def _flattened(values: Any, path: str) -> dict[str, str]:
    if isinstance(values, dict):
        inner = {f"{path}.{key}" if path else str(key): v for key, v in values.items()}
    elif isinstance(values, list) and any(isinstance(v, dict | list) for v in values):
        inner = {f"{path}[{number}]": v for number, v in enumerate(values)}
    else:
        return {path: _scalar(values)}
    flat: dict[str, str] = {}
    for key, value in inner.items():
        flat |= _flattened(value, key)
    return flat


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _yaml(values: Any) -> list[str]:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).splitlines()

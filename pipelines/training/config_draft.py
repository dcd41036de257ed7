"""A config while it is chosen: values with their reasons, and the values of `--set` over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bytelm.pipelines.config import RunConfig, config_from_dict, override_value
from bytelm.pipelines.training.data_profile import DataProfile


@dataclass
class ConfigDraft:
    """Values and comments of the config while it is chosen."""

    data: DataProfile
    """The sets that the run is trained on."""
    overrides: Sequence[str]
    """`section.key=value` texts."""
    seconds: float
    """Time of the command."""
    processes: int
    """Ranks of the run."""
    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def put(self, section: str, key: str, value: Any, comment: str) -> None:
        """Set a value and its reason."""
        self.values.setdefault(section, {})[key] = value
        self.comments[f"{section}.{key}"] = comment

    def is_given(self, *keys: str) -> bool:
        """Whether `--set` gives any `section.key`, alone or with its whole section."""
        names = {text.partition("=")[0] for text in self.overrides}
        return any(key in names or key.partition(".")[0] in names for key in keys)

    def merged(self) -> dict[str, Any]:
        """The values with those of `--set`."""
        values = {name: dict(section) for name, section in self.values.items()}
        for override in self.overrides:
            override_value(values, override)
        return values

    def config(self) -> RunConfig:
        """The config with the values of `--set`, checked."""
        return config_from_dict(self.merged())

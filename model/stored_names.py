"""Names of config keys and parameters on disk, which are those of the first version.

Models, checkpoints and compressed files hold these names (compressed files as a hash over all of
them). A name that changes in the code therefore keeps its old form on disk. Only this table maps
one to the other.
"""

from collections.abc import Mapping
from typing import Any

from bytelm.model.config import ModelConfig

CONFIG_KEYS = {
    "tie_embeddings": "tied_output",
    "swiglu": "gated_feed_forward",
    "ngram_table_size": "ngram_rows",
    "codec_features": "hints",
}
"""Field of `ModelConfig` to key on disk, where they differ."""
REMOVED_KEYS = {"token_shift": False}
"""Options that were removed, and the value under which a model does not depend on them."""
MODULES = {"feature_embed": "hint_embed", "feature_in": "hint_in"}
"""Name of a module to its name on disk, where they differ."""


def stored_config(config: ModelConfig) -> dict[str, Any]:
    """The config under the keys that files hold."""
    values = {CONFIG_KEYS.get(key, key): value for key, value in config.to_dict().items()}
    return values | REMOVED_KEYS


def config_from_stored(values: Mapping[str, Any]) -> ModelConfig:
    """The config of a file; the inverse of `stored_config`.

    Raises:
        ValueError: as `ModelConfig.from_dict`, and for an option that was removed.
    """
    for key, neutral in REMOVED_KEYS.items():
        if values.get(key, neutral) != neutral:
            raise ValueError(
                f"the model uses {key}, which this version no longer has: use the version of "
                "bytelm that wrote it"
            )
    fields = {key: field for field, key in CONFIG_KEYS.items()}
    kept = {key: value for key, value in values.items() if key not in REMOVED_KEYS}
    return ModelConfig.from_dict({fields.get(key, key): value for key, value in kept.items()})


def stored_parameter(name: str) -> str:
    """Name on disk of a parameter."""
    return ".".join(MODULES.get(part, part) for part in name.split("."))


def parameter_from_stored(name: str) -> str:
    """Name of a parameter, from its name on disk or from the name itself."""
    modules = {stored: module for module, stored in MODULES.items()}
    return ".".join(modules.get(part, part) for part in name.split("."))

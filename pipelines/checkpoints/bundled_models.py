"""The trained models that are installed with the package.

    bytelm/models/small/model.safetensors   weights, as `bytelm export --dtype bf16` stores them
    bytelm/models/small/config.json         sizes and options, and what the model was trained on
    bytelm/models/small/README.md           the model card
    bytelm/models/small/NOTICE.md           licences of the training data

In the repository `bytelm/models` is a link to `examples/models`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from bytelm.pipelines.checkpoints.pretrained import CONFIG_FILE

BUNDLED_MODELS = Path(str(resources.files("bytelm"))) / "models"


def bundled_model(name: str) -> Path | None:
    """Return the folder of the model that has a name; None if none has it."""
    return BUNDLED_MODELS / name if name in bundled_names() else None


def bundled_names() -> list[str]:
    """Return the names of the models, sorted."""
    return sorted(path.parent.name for path in BUNDLED_MODELS.glob(f"*/{CONFIG_FILE}"))

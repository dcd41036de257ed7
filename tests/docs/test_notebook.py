"""The notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

from bytelm.model.megabyte import Megabyte
from bytelm.model.presets import preset
from bytelm.pipelines.checkpoints.pretrained import save_pretrained

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
VIEWS = {"text": "utf8", "image": "raster", "audio": "s16be"}


def test_the_notebook_runs(tmp_path: Path) -> None:
    """The model has the shape of the Quickstart's, and is untrained: only its texts differ."""
    torch.manual_seed(0)
    config = preset("modern-demo")
    save_pretrained(Megabyte(config), config, tmp_path / "runs" / "first", {"views": VIEWS})
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("bits per byte" in output.get("text", "") for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs)


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)

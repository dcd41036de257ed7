"""The plots of the site show the numbers of its tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_plots_are_those_of_the_tables(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DOCS / "plots.py"), str(tmp_path)], check=True)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["hour.svg", "other-kinds.svg", "quality.svg"]
    for name in drawn:
        again = "`python docs/plots.py` draws it again"
        assert (tmp_path / name).read_text() == (DOCS / "images" / name).read_text(), again

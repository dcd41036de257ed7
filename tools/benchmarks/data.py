"""What the data plane delivers, beside what a user would have without it: JSON lines.

    python tools/bench_data.py [--text DIR] [--image DIR] [--audio DIR]

One line a figure: `name`, `value`, `unit`, `reference` (the other's figure, measured in the same
run) and `ratio` (value / reference). `loader/SIZE` is the loader against the stock webdataset
reader, `prepare/MODALITY/WORKERS` is `bytelm prepare` against a bare loop; `loader.py` and
`prepare.py` say what each measures.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from bytelm.tools.benchmarks import loader, prepare

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed of the loader and of prepare.")
    for modality in prepare.SUFFIXES:
        parser.add_argument(f"--{modality}", type=Path, default=DEMO / modality, metavar="DIR")
    folders = vars(parser.parse_args())
    for name, value, unit, reference in itertools.chain(loader.figures(), prepare.figures(folders)):
        figure = {"name": name, "value": value, "unit": unit, "reference": reference}
        print(json.dumps({**figure, "ratio": value / reference}), flush=True)


if __name__ == "__main__":
    main()

"""`bytelm calibrate`: find the sampling settings at which a model's draws cost what data cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.pipelines.cli.arguments import WholeNumber

if TYPE_CHECKING:
    from bytelm.pipelines.generation.calibration import Calibration, Trial

HELP = "Find the settings at which a model's draws cost as many bits as data, and keep them."
MODALITIES = ("text", "image", "audio")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="folder that `bytelm export` wrote, whose config.json is changed",
    )
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="SET", help="folders or URLs of shard sets"
    )
    parser.add_argument(
        "--modality",
        nargs="+",
        default=MODALITIES,
        choices=MODALITIES,
        help="what to calibrate; without it all that the sets have",
    )
    parser.add_argument(
        "--split", default="val", choices=["train", "val", "test"], help="part of the sets to use"
    )
    parser.add_argument(
        "--count",
        type=WholeNumber(1, 100_000),
        default=32,
        help="real files of each modality whose beginnings are drawn",
    )


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Calibrate each modality, write its settings into the model's config, and print them."""
    from dataclasses import asdict

    from bytelm.pipelines.checkpoints.load import load_model
    from bytelm.pipelines.checkpoints.pretrained import read_model_config, save_sampling
    from bytelm.pipelines.data.dataset_info import FINISHED, NEW
    from bytelm.pipelines.generation.calibration import SCALES, calibrate, read_pieces
    from bytelm.pipelines.shards.reader import open_set

    read_model_config(options.model)  # of a run's checkpoints no file may change
    model, info = load_model(options.model)
    sets = [open_set(location) for location in options.data]
    is_any = False
    for modality in options.modality:
        patch = model.config.patch
        pieces = read_pieces(sets, info, modality, options.split, options.count, patch)
        if not pieces:
            continue
        settings = {}
        for kind in (NEW, FINISHED):
            found = calibrate(model, pieces, SCALES[modality, kind], kind, _show)
            settings[kind] = asdict(found.best.sampling)
            _print(f"{kind} {modality}", found)
        save_sampling(options.model, {modality: settings})
        is_any = True
    if not is_any:
        raise ValueError(
            f"the sets have no {' and no '.join(options.modality)} in {options.split} that the "
            "model could draw: name other sets, or another --split"
        )
    return 0


def _show(trial: Trial) -> None:
    """Show on stderr what was tried, since all trials together take minutes."""
    print(f"tried {_line(trial)}", file=sys.stderr, flush=True)


def _print(name: str, found: Calibration) -> None:
    best, real = found.best, found.real_bits
    excess = best.bits / real - 1
    print(f"{name}: {_line(best)}, data {real:.3f} ({excess:+.1%})", flush=True)


def _line(trial: Trial) -> str:
    sampling = trial.sampling
    return (
        f"temperature {sampling.temperature:.3f} min-p {sampling.min_p:.5f}  "
        f"bits/byte drawn {trial.bits:.3f}"
    )

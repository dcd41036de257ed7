"""The demo: prepare, train, evaluate, generate and report on the files in examples/demo.

    python -m bytelm.tools.demo [DATA [OUT]]

Shows and runs the commands that a user would type, then prints a table of the scores and writes
the run's page. Takes 7 to 9 minutes on two cores with bf16, up to 13 without, most of it training.
A demo that was stopped continues in its folder, where nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from bytelm.pipelines.checkpoints.run_folder import CHECKPOINTS_FOLDER
from bytelm.pipelines.evaluation.records import Evaluation
from bytelm.pipelines.evaluation.table import print_evaluation
from bytelm.pipelines.reporting.report import PAGE_FILE
from bytelm.pipelines.runtime import signals
from bytelm.pipelines.runtime.child_command import run_child
from bytelm.pipelines.training.metrics_logger import METRICS

MODALITIES = ("text", "image", "audio")
PREPARE_OPTIONS = {"audio": ["--rate", "16000", "--channels", "1"]}
CONSOLE = Console(highlight=False)


def demo(data: Path, out: Path) -> None:
    """Run the demo on the files in `data`; `out` takes all that it writes, and what is finished
    there is kept."""
    out.mkdir(parents=True, exist_ok=True)
    run, sets, generated = out / "run", out / "sets", out / "generated"
    for modality in MODALITIES:
        options = PREPARE_OPTIONS.get(modality, [])
        _bytelm("prepare", data / modality, "--out", sets / modality, *options)
    if (run / CHECKPOINTS_FOLDER).exists():
        CONSOLE.print(f"{run} goes on from its newest checkpoint; remove {out} to begin anew")
    resume = ("--resume", "--allow-fresh-start")
    _bytelm("train", _write_config(out, sets), "--out", run, *resume)
    set_paths = [sets / modality for modality in MODALITIES]
    scores = _bytelm("evaluate", run, "--data", *set_paths, "--json", is_captured=True)
    _generate(run, generated, data)

    (out / "evaluation.json").write_text(scores, "utf-8")
    _show_scores(Evaluation.from_dict(json.loads(scores)), run)
    _bytelm("report", run)
    CONSOLE.print(
        f"open {run / PAGE_FILE} in a browser; look at {generated}: texts, sounds, images drawn "
        "freely (free/) and the lower half of an image that the model has not seen (finished/); "
        f"and `tensorboard --logdir {run}`",
        soft_wrap=True,
    )


def _write_config(out: Path, sets: Path) -> Path:
    """Write `demo.yaml` with the paths of the sets."""
    config = out / "demo.yaml"
    template = (resources.files("bytelm.tools") / "demo.yaml").read_text("utf-8")
    config.write_text(template.replace("sets/", f"{sets}/"), "utf-8")
    return config


def _generate(run: Path, out: Path, data: Path) -> None:
    """Generate texts, images drawn freely, an image from its upper half, and sounds."""
    unseen = min((data / "image" / "val").glob("*.png"))
    text = ["--prompt", "The whale ", "--max-bytes", 600]
    for folder, modality, options in (
        (out, "text", text),
        (out / "free", "image", []),
        (out / "finished", "image", ["--prompt", unseen, "--prompt-rows", 32]),
        (out, "audio", ["--seconds", 0.5]),
    ):
        arguments = ["--out", folder, "--modality", modality, "--count", 2, *options]
        _bytelm("generate", run, *arguments)


def _show_scores(scores: Evaluation, run: Path) -> None:
    """Print the tables of `evaluate --json`, and the scores during training."""
    print_evaluation(CONSOLE, scores)
    CONSOLE.print("during training, on rows of val:")
    for line in (run / METRICS).read_text("utf-8").splitlines():
        values = json.loads(line)
        if values["kind"] == "eval":
            bits = "  ".join(f"{m} {values[m]['bits_per_byte']:.3f}" for m in MODALITIES)
            CONSOLE.print(f"  step {values['step']:4d}  {bits}")


def _bytelm(*arguments: object, is_captured: bool = False) -> str:
    """Show and run a command; returns its output if captured. Exits with its status if it fails."""
    words = [str(argument) for argument in arguments]
    CONSOLE.print(Rule(align="left"))
    CONSOLE.print(f"[bold]$ bytelm {shlex.join(words)}[/bold]", soft_wrap=True)
    status, output = run_child([sys.executable, "-m", "bytelm", *words], is_captured=is_captured)
    if status:
        sys.exit(status)
    return output


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Prepare, train, evaluate, generate and report.")
    parser.add_argument("data", type=Path, nargs="?", default=Path("examples/demo"), metavar="DATA")
    parser.add_argument("out", type=Path, nargs="?", default=Path("demo"), metavar="OUT")
    options = parser.parse_args()
    signals.end_at_sigterm()
    try:
        demo(options.data, options.out)
    except KeyboardInterrupt:
        sys.exit(130)  # `bytelm demo` says what ended it


if __name__ == "__main__":
    main()

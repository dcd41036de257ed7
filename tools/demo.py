"""The demo: prepare, train, evaluate and generate on the files in examples/demo.

    python -m bytelm.tools.demo [DATA [OUT]]

It runs the commands that a user would type, shows each, and ends with a table: a few minutes of
training on two cores with bf16, seven to nine in all; up to twice as long without.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from bytelm.pipelines.evaluation.table import evaluation_table
from bytelm.pipelines.training.metrics_logger import METRICS

MODALITIES = ("text", "image", "audio")


def main(data: Path, out: Path) -> int:
    """Run the demo; returns the exit status."""
    console = Console(highlight=False)
    if not (data / "text" / "train").is_dir():
        print(f"no demo files at {data}: run this in the repository", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = out / "demo.yaml"
    template = (resources.files("bytelm.tools") / "demo.yaml").read_text("utf-8")
    config.write_text(template.replace("sets/", f"{out / 'sets'}/"), "utf-8")
    run, sets = out / "run", [out / "sets" / name for name in MODALITIES]

    for name, folder in zip(MODALITIES, sets, strict=True):
        sound = ["--rate", "16000", "--channels", "1"] if name == "audio" else []
        _bytelm(console, ["prepare", str(data / name), "--out", str(folder), *sound])
    _bytelm(console, ["train", str(config), "--out", str(run)])
    scores = _bytelm(
        console, ["evaluate", str(run), "--data", *map(str, sets), "--json"], is_captured=True
    )
    made = out / "generated"
    text = ["--modality", "text", "--count", "2", "--prompt", "The whale ", "--max-bytes", "600"]
    sound = ["--modality", "audio", "--count", "2", "--seconds", "0.5"]
    unseen = sorted((data / "image" / "val").glob("*.png"))[0]
    finish = ["--modality", "image", "--count", "2", "--prompt", str(unseen), "--prompt-rows", "32"]
    _generate(console, run, made, [*text, "--temperature", "0.8"])
    _generate(console, run, made / "free", ["--modality", "image", "--count", "2"])
    _generate(console, run, made / "finished", finish)
    _generate(console, run, made, sound)

    result = json.loads(scores)
    (out / "evaluation.json").write_text(scores, "utf-8")
    console.print(
        evaluation_table(result["model"], result["codecs"], "bits per byte on the demo's val")
    )
    console.print("during training, on rows of val:")
    for line in (run / METRICS).read_text("utf-8").splitlines():
        values = json.loads(line)
        if values["kind"] == "eval":
            figures = "  ".join(f"{m} {values[m]['bits_per_byte']:.3f}" for m in MODALITIES)
            console.print(f"  step {values['step']:4d}  {figures}")
    console.print(
        f"look at {made}: texts, sounds, images drawn freely (free/) and the lower half of an "
        f"image that the model has not seen (finished/); and `tensorboard --logdir {run}`",
        soft_wrap=True,
    )
    return 0


def _generate(console: Console, run: Path, out: Path, arguments: list[str]) -> None:
    _bytelm(console, ["generate", str(run), "--out", str(out), *arguments])


def _bytelm(console: Console, arguments: list[str], is_captured: bool = False) -> str:
    """Show and run a command; its output if captured. Ends the demo where it fails."""
    console.print(Rule(align="left"))
    console.print(f"[bold]$ bytelm {shlex.join(arguments)}[/bold]", soft_wrap=True)
    command = [sys.executable, "-m", "bytelm", *arguments]
    result = subprocess.run(
        command, check=False, text=True, stdout=subprocess.PIPE if is_captured else None
    )
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ""


if __name__ == "__main__":
    defaults = ["examples/demo", "demo"]
    given = sys.argv[1:]
    sys.exit(main(*map(Path, given + defaults[len(given) :])))

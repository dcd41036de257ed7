"""`bytelm export`: what is in the folder, what the card says, and that its snippet runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import environment, status
from helpers.run_folders import add_evaluation, documents, write_run
from helpers.served import TINY, write_model
from helpers.sets import SetMaker, text

from bytelm.pipelines.checkpoints.manifest import file_entry, write_checkpoint_manifest
from bytelm.pipelines.checkpoints.pretrained import from_pretrained
from bytelm.pipelines.checkpoints.run_folder import LATEST_FILE, MODEL_FOLDER
from bytelm.pipelines.checkpoints.train_state import TrainState, write_state

STEP = 40


def record(name: str, modality: str, **values: Any) -> dict[str, Any]:
    empty = {"seed": 3, "prompt": None, "condition_on": None, "given_share": 0}
    return {"file": name, "modality": modality, **empty, "title": "drawn", **values}


@pytest.fixture
def run(tmp_path: Path, make_set: SetMaker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint, an evaluation and samples."""
    shard_set = make_set([[text(b"a whale")] for _ in range(3)], "whales & <ships>")
    folder = write_run(tmp_path / "run", sets=[str(shard_set.location)])
    checkpoint = folder / "checkpoints" / f"step-{STEP:08d}"
    write_model(checkpoint / MODEL_FOLDER, replace(TINY, codec_features=True))
    state = TrainState(step=STEP, epoch=0, row=0, plan={}, ranks=1, zero_stage=0)
    write_state(checkpoint, state)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    entries = {path.relative_to(checkpoint).as_posix(): file_entry(path) for path in files}
    write_checkpoint_manifest(checkpoint, checkpoint.name, entries)
    (folder / "checkpoints" / LATEST_FILE).write_text(checkpoint.name)
    add_evaluation(folder, documents([200.0, 180.0]), step=STEP)
    samples = folder / "samples" / f"step-{STEP:08d}"
    samples.mkdir(parents=True)
    (samples / "text-000.txt").write_text("Call me <b>Ishmael</b>\n---\n# Not a heading")
    (samples / "image-000.png").write_bytes(b"drawn")
    (samples / "image-000-prompt.png").write_bytes(b"a real file")
    records = [
        record("text-000.txt", "text", prompt="Call me"),
        record("image-000.png", "image", prompt="image-000-prompt.png", given_share=0.5),
    ]
    (samples / "samples.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    return folder


def export(capsys: pytest.CaptureFixture[str], *arguments: object, expected: int = 0) -> str:
    """Run the command in this process; returns stderr."""
    found = status(["export", *map(str, arguments)])
    shown = capsys.readouterr()
    assert found == expected, shown
    return shown.err


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    _, front, card = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), card


def test_an_export_has_weights_config_card_and_samples(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(capsys, run, "--out", "first", "--license", "MIT") == ""
    files = {p.relative_to("first").as_posix() for p in Path("first").rglob("*") if p.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "model.safetensors",
        "samples/image-000.png",
        "samples/samples.json",
        "samples/text-000.txt",
    }
    front, card = read_card(Path("first"))
    assert front["license"] == "mit"
    assert front["library_name"] == "bytelm"
    assert {"text", "image", "audio"} < set(front["tags"])
    assert re.fullmatch(r"whales-ships-[0-9a-f]{8}", front["datasets"][0])
    (result, total) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 1.9
    assert result["metrics"][0]["type"] == "bits_per_byte"
    assert result["dataset"]["split"] == "val"
    assert "total" in total["dataset"]["name"]
    assert "| text | 1.900 | 1.500–2.500 |" in card
    assert "| gzip | 3.500 | 4.500 |" in card
    assert "whales \\& \\<ships\\>" in card
    assert "licensed as mit" in card
    assert str(run.parent) not in card + str(front)


def test_an_exported_model_can_mix_its_outputs(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card shows no scores of the network alone; what changes nothing leaves them."""
    lacks = export(capsys, run, "--out", "mixing", "--output-mixing", "--license", "mit")
    assert lacks.splitlines() == [
        "bytelm export: the card lacks something: scores and samples of the run are those of its "
        "weights in fp32, with its own mixing"
    ]
    model, _ = from_pretrained("mixing")
    assert model.config.output_mixing
    assert "1.900" not in read_card(Path("mixing"))[1]
    assert not Path("mixing/samples").exists()
    export(capsys, run, "--out", "as-it-was", "--no-output-mixing", "--license", "mit")
    assert not from_pretrained("as-it-was")[0].config.output_mixing
    assert "1.900" in read_card(Path("as-it-was"))[1]


def test_weights_can_be_stored_in_bf16(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loaded model has the rounded numbers in fp32."""
    export(capsys, run, "--out", "whole", "--license", "mit")
    lacks = export(capsys, run, "--out", "half", "--dtype", "bf16", "--license", "mit")
    assert "weights in fp32" in lacks
    whole, half = (Path(name, "model.safetensors").stat() for name in ("whole", "half"))
    assert half.st_size < 0.6 * whole.st_size
    readable = Path("whole", "config.json").stat().st_mode
    assert whole.st_mode == half.st_mode == readable
    expected = from_pretrained("whole")[0].state_dict()
    for name, tensor in from_pretrained("half")[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].bfloat16().float())
    assert not torch.equal(tensor, expected[name])


def test_samples_in_the_card_are_texts_and_no_markup(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(capsys, run, "--out", "first")
    _, card = read_card(Path("first"))
    assert "\n    Call me <b>Ishmael</b>\n    ---\n    # Not a heading\n" in card
    assert "![drawn, seed 3](samples/image-000.png)" in card
    assert "hold that part of a\nreal file" in card
    records = json.loads(Path("first/samples/samples.json").read_text())
    assert [entry["prompt"] for entry in records] == ["Call me", None]


def test_the_snippet_of_the_card_runs_in_its_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(capsys, run, "--out", "first")
    match = re.search(r"```python\n(.*?)```", read_card(Path("first"))[1], re.S)
    assert match
    code = match[1].replace("max_bytes=200", "max_bytes=20")
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd="first",
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.endswith("nats\n")
    assert result.stderr == ""
    assert Path("first/image.png").is_file()


def test_a_card_says_what_it_lacks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.rglob("evaluations/*"):
        path.unlink()
    (run / "samples" / f"step-{STEP:08d}").rename(run / "samples" / f"step-{STEP + 1:08d}")
    lines = export(capsys, run, "--out", "first").splitlines()
    assert [line.partition("lacks something: ")[2][:18] for line in lines] == [
        "step 40 is not eva",
        "the run has no sam",
        "no licence is name",
    ]
    front, card = read_card(Path("first"))
    assert (front["license"], front["license_name"]) == ("other", "unknown")
    assert "model-index" not in front
    assert "was not evaluated" in card
    assert "No licence was named" in card
    assert not Path("first/samples").exists()


def test_mistakes_are_refused_and_leave_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no id of a licence" in export(
        capsys, run, "--out", "first", "--license", "my own", expected=2
    )
    assert not Path("first").exists()
    export(capsys, run, "--out", "first")
    assert "exists" in export(capsys, run, "--out", "first", expected=2)
    for model in ("first", "small"):
        refusal = export(capsys, model, "--out", "second", expected=2)
        assert "is an exported model already: copy" in refusal
    assert sorted(p.name for p in run.parent.iterdir() if "first" in p.name) == ["first"]

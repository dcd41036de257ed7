"""`bytelm train --data`: what is chosen from data, time and speed, and how steps fit the time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import bytelm, metrics, status
from helpers.sets import audio, image, text, write_set

from bytelm.modalities.base import Sample
from bytelm.model.flops import training_flops_per_byte
from bytelm.pipelines.config import RunConfig, load_config
from bytelm.pipelines.config_writer import with_train_values
from bytelm.pipelines.training import auto_config, data_choices
from bytelm.pipelines.training.auto_config import AutoConfig, choose
from bytelm.pipelines.training.data_choices import choose_data, equal_shares, useful_passes
from bytelm.pipelines.training.pace import END_SECONDS, LEAST_STEPS, Pace, TimeBudget, with_steps
from bytelm.pipelines.training.step_speed import StepSpeed

DEMO = Path(__file__).parents[2] / "tools" / "demo.yaml"
RATE = 1.2e11
"""FLOP/s of two cores."""


class Machine:
    """A made-up machine of a speed, and the configs that were measured on it."""

    def __init__(self, rate: float = RATE):
        self.rate = rate
        self.measured: list[RunConfig] = []

    def measure(self, config: RunConfig, seconds: float) -> StepSpeed:
        self.measured.append(config)
        ids = config.train.global_batch * config.model.context
        step = training_flops_per_byte(config.model) * ids / self.rate
        return StepSpeed(step, step / config.train.global_batch / 3)


def chosen(
    *folders: Path,
    minutes: float = 5,
    machine: Machine | None = None,
    overrides: tuple[str, ...] = (),
    processes: int = 1,
) -> AutoConfig:
    machine = machine or Machine()
    paths = [str(folder) for folder in folders]
    now = time.monotonic()
    return choose(paths, 60 * minutes, now, overrides, processes, machine.measure)


def texts(count: int, size: int) -> list[list[Sample]]:
    letters = np.random.default_rng(0).integers(97, 123, (count, size), np.uint8)
    return [[text(row.tobytes())] for row in letters]


def documents(folder: Path, kind: str) -> Path:
    """A small set of a kind, with its first document in `val` too."""
    made = {
        "texts": texts(5, 4_000),
        "small images": [[image(64, 64, seed=n)] for n in range(3)],
        "large images": [[image(200, 200, seed=n)] for n in range(3)],
        "sounds": [[audio(40_000, seed=n)] for n in range(3)],
        "pairs": [[text(b"a cat"), image(32, 32, seed=n)] for n in range(4)],
    }[kind]
    write_set(folder, made, val=made[:1])
    return folder


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a few kB do not count as small, unless a test says so."""
    monkeypatch.setattr(data_choices, "PASSES", 1e9)
    monkeypatch.setattr(data_choices, "SMALL_DATA", 0.0)


# --- what is chosen ---


def test_text_images_and_sounds_get_the_demos_config(tmp_path: Path) -> None:
    folders = [documents(tmp_path / name, name) for name in ("texts", "small images", "sounds")]
    config = chosen(*folders).config
    demo = load_config(DEMO, [])
    assert config.model == demo.model
    assert config.data.packing == demo.data.packing
    assert [one.weight for one in config.data.sets] == [1, 1, 1]
    assert config.train.global_batch == demo.train.global_batch
    assert config.optimizer.muon_lr == demo.optimizer.muon_lr
    assert 0.04 < config.optimizer.warmup_steps / config.train.steps < 0.08


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("texts", 4_096),
        ("small images", 12_544),
        ("large images", 8_192),
        ("sounds", 8_192),
        ("pairs", 3_328),
    ],
)
def test_a_row_holds_most_documents_or_is_of_the_usual_length(
    kind: str, context: int, tmp_path: Path
) -> None:
    values, comments = choose_data([str(documents(tmp_path / "set", kind))])
    assert values["model"]["context"] == context
    assert values["data"]["packing"] == "best_fit"
    assert values["data"]["sets"] == [{"path": str(tmp_path / "set")}]
    assert comments["model.context"].endswith(".")


def test_documents_that_leave_much_padding_are_split(tmp_path: Path) -> None:
    lengths = [5_000] * 8 + [7_900]
    write_set(tmp_path / "set", [[text(b"x" * n)] for n in lengths], per_shard=9)
    assert choose_data([str(tmp_path / "set")])[0]["data"]["packing"] == "concat_then_split"


def test_more_time_speed_and_data_choose_a_larger_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = documents(tmp_path / "set", "texts")
    monkeypatch.setattr(
        auto_config,
        "SIZES",
        (("modern-demo", 0, 0), ("modern-hour", 1e14, 1e4), ("modern-16m", 2e15, 1e9)),
    )
    names = {minutes: load_preset(chosen(folder, minutes=minutes)) for minutes in (5, 60, 6_000)}
    assert names == {5: "modern-demo", 60: "modern-hour", 6_000: "modern-hour"}
    assert load_preset(chosen(folder, minutes=5, machine=Machine(1e14))) == "modern-hour"


def test_what_set_gives_decides_and_the_rest_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = documents(tmp_path / "set", "texts")
    monkeypatch.setattr(auto_config, "SIZES", (("modern-demo", 0, 0), ("modern-hour", 1e14, 1e4)))
    other = chosen(folder, minutes=60, overrides=("model.dropout=0.1",))
    assert load_preset(other) == "modern-hour"
    own = chosen(folder, minutes=60, overrides=("model.preset=modern-demo",))
    assert load_preset(own) == "modern-demo"
    section = chosen(folder, overrides=("train={steps: 123, global_batch: 1}",))
    assert section.config.train.steps == 123
    assert section.budget is None


def load_preset(made: AutoConfig) -> str:
    (line,) = [line for line in made.text.splitlines() if line.startswith("  preset: ")]
    return line.split()[1]


def test_shares_are_equal_but_for_what_is_exhausted() -> None:
    assert equal_shares({"a": 9, "b": 9}) == {"a": 0.5, "b": 0.5}
    assert equal_shares({"a": 0.2, "b": 9, "c": 9}) == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4})
    assert equal_shares({"a": 0.2, "b": 0.3, "c": 9}) == pytest.approx(
        {"a": 0.2, "b": 0.3, "c": 0.5}
    )
    assert equal_shares({"a": 0.2, "b": 0.3}) == pytest.approx({"a": 0.4, "b": 0.6})


def test_sets_of_one_modality_count_by_their_size(tmp_path: Path) -> None:
    write_set(tmp_path / "long", texts(6, 4_000))
    write_set(tmp_path / "short", texts(2, 4_000))
    documents(tmp_path / "images", "small images")
    config = chosen(tmp_path / "long", tmp_path / "short", tmp_path / "images").config
    assert [one.weight for one in config.data.sets] == pytest.approx([0.75, 0.25, 1])
    alone = chosen(tmp_path / "long", tmp_path / "short").config
    assert [one.weight for one in alone.data.sets] == [None, None]


def test_small_data_end_the_run_early_and_get_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_choices, "PASSES", 4.0)
    monkeypatch.setattr(data_choices, "SMALL_DATA", 1e6)
    write_set(tmp_path / "set", texts(25, 4_000))
    made = chosen(tmp_path / "set")
    assert made.config.model.context == 2_048
    assert made.config.model.dropout > 0
    run_bytes = made.config.train.steps * made.config.model.context
    assert run_bytes == pytest.approx(useful_passes(100_000) * 100_000, rel=0.01)
    assert "learned by heart" in made.text.replace("\n  # ", " ")
    large = useful_passes(9e6) * 9e6
    assert large > 5 * 60 * RATE / 1.3e6  # the demo's data are not small for five minutes


def test_a_set_without_training_documents_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [], val=texts(1, 100))
    with pytest.raises(ValueError, match="no documents in split 'train'"):
        chosen(tmp_path / "set")


def test_too_little_memory_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = documents(tmp_path / "set", "texts")
    monkeypatch.setattr(auto_config, "available_bytes", lambda: 2e9)
    with pytest.raises(ValueError, match=r"4 processes of 1.\d GB each do not fit the 2.0 GB"):
        chosen(folder, processes=4)
    assert chosen(folder).config.train.global_batch == 1


# --- the file ---


def test_the_text_is_the_config_and_says_what_was_given(tmp_path: Path) -> None:
    folder = documents(tmp_path / "a: set #1", "texts")
    made = chosen(folder, overrides=("train.seed=7", "model.dropout=0.1", "train.steps=123"))
    (tmp_path / "config.yaml").write_text(made.text, "utf-8")
    assert load_config(tmp_path / "config.yaml", []) == made.config
    assert (made.config.train.seed, made.config.train.steps) == (7, 123)
    assert made.budget is None  # nothing corrects the steps
    assert made.config.train.eval_every == 31
    assert made.text.count("# Given by --set.") == 3
    changed = with_train_values(made.text, {"steps": (99, "why"), "eval_every": (25, "")})
    (tmp_path / "config.yaml").write_text(changed, "utf-8")
    assert load_config(tmp_path / "config.yaml", []).train.steps == 99


# --- time ---


def budget(seconds: float = 300, most: int = 10**9) -> TimeBudget:
    return TimeBudget(1000.0, seconds, 12.0, 18.0, 0.1, most)


def test_steps_fill_the_time_that_other_parts_leave() -> None:
    steps = budget().steps(0.1, done=100, now=1020.0)
    spent = 20 + (steps - 100) * 0.1 + 12 + 18 + END_SECONDS
    assert spent == pytest.approx(300, abs=0.1)


def test_a_machine_that_is_half_as_fast_takes_half_as_many_steps() -> None:
    fast, slow = (budget().steps(step, done=0, now=1010.0) for step in (0.1, 0.2))
    assert slow < fast / 2  # evaluations are slower too


def test_a_run_has_a_step_left_and_no_more_than_it_may() -> None:
    assert budget(1).steps(0.1, done=0, now=1010.0) == LEAST_STEPS
    assert budget(1).steps(0.1, done=50, now=1010.0) == 51
    assert budget(most=70).steps(0.1, done=50, now=1010.0) == 70


def test_the_warm_up_is_measured_without_its_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(budget(), 20)
    due = []
    for step in range(1, 31):
        clock[0] += 5.0 if step < 5 else 0.2
        if pace.is_due_after(step):
            due.append(step)
            corrected = pace.corrected(load_config(DEMO, []))
            assert corrected.train.steps == budget().steps(0.2, done=20, now=clock[0])
    assert due == [20]


def test_a_resumed_warm_up_that_is_almost_over_is_not_measured() -> None:
    pace = Pace(budget(), 20)
    assert not any(pace.is_due_after(step) for step in range(18, 40))


def test_intervals_that_follow_the_steps_are_corrected_with_them(tmp_path: Path) -> None:
    folder = documents(tmp_path / "set", "texts")
    config = chosen(folder).config
    changed = with_steps(config, 400).train
    assert (changed.steps, changed.eval_every, changed.sample_every) == (400, 100, 400)
    assert changed.checkpoint_every == config.train.checkpoint_every
    own = chosen(folder, overrides=("train.eval_every=7",)).config
    assert with_steps(own, 400).train.eval_every == 7


# --- the command ---


TINY = (
    "--set",
    "model={stages: [{width: 32, layers: 1, heads: 2}, {width: 16, layers: 1, heads: 2}], "
    "patch_sizes: [8], context: 512}",
)


def test_a_chosen_run_is_repeated_by_its_config_and_resumed_without(tmp_path: Path) -> None:
    write_set(tmp_path / "set", texts(8, 4_000), val=texts(1, 3_000))
    run, again = tmp_path / "run", tmp_path / "again"
    shown = bytelm("train", "--data", tmp_path / "set", "--minutes", 0.1, "--out", run, *TINY)
    steps = json.loads((run / "config.json").read_text())["train"]["steps"]
    losses = [line["loss"] for line in metrics(run)]
    assert len(losses) == steps >= LEAST_STEPS
    assert f"next: bytelm report {run}" in shown.stdout
    bytelm("train", run / "config.yaml", "--out", again)
    assert [line["loss"] for line in metrics(again)] == losses
    bytelm("train", "--resume", "--out", run, "--set", f"train.steps={steps + 3}")
    assert len(metrics(run)) == steps + 3


def test_two_ranks_take_the_same_number_of_steps(tmp_path: Path) -> None:
    write_set(tmp_path / "set", texts(8, 4_000))
    run = tmp_path / "run"
    bytelm(
        *("train", "--data", tmp_path / "set", "--minutes", 0.1, "--out", run, *TINY),
        *("--processes", 2),
    )
    config = load_config(run / "config.yaml", [])
    assert config.train.global_batch == 2
    assert len(metrics(run)) == config.train.steps


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("c.yaml --data s", "c.yaml and --data are both given"),
        ("c.yaml --minutes 5", "--minutes goes with --data SET"),
        ("--minutes 5", "--minutes goes with --data SET"),
        ("--minutes 5 --resume", "--minutes goes with --data SET"),
        ("", "there is nothing to train on: name a CONFIG, or sets with --data"),
        ("--data nothing", "nothing"),
        ("--resume", "has no config.json to continue with"),
    ],
)
def test_a_run_has_one_source_of_its_config(
    line: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["train", *line.split(), "--out", str(tmp_path / "run")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("bytelm train: ")
    assert refusal in error
    assert not (tmp_path / "run").exists()


def test_time_must_be_above_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["train", "--data", "s", "--minutes", "0", "--out", "r"]) == 2
    assert "--minutes is 0, and must be above 0" in capsys.readouterr().err

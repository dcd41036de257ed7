"""`bytelm train`: ranks and ZeRO stages agree, and a killed run resumes exactly."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.commands import TINY_MODEL, bytelm, command, environment, metrics, write_config
from helpers.processes import kill_after_a_checkpoint
from helpers.sets import SetMaker, text

from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.config import load_config
from bytelm.pipelines.data.loader import make_loader
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source
from bytelm.pipelines.data.samplers import TrainingRows
from bytelm.pipelines.shards.reader import ShardSet
from bytelm.pipelines.shards.set_summary import size_text
from bytelm.pipelines.training.engine import join_process_group
from bytelm.pipelines.training.optimizer import learning_rate_factor
from bytelm.pipelines.training.preflight import training_plan


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run)]


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    name = (run / "checkpoints" / "latest").read_text()
    return safetensors.torch.load_file(run / "checkpoints" / name / "model" / "model.safetensors")


def losses_with_torch(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses of a config in this process, without DeepSpeed, with PyTorch's own optimizers.

    torch.optim.Muon always computes in bfloat16, which turns the last digits of a gradient into
    1e-4 of the loss. Here it computes in float32, as ours does in a run of fp32.
    """
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    config = load_config(path, [])
    torch.manual_seed(config.train.seed)
    model, options = Megabyte(config.model), config.optimizer
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    decay = {"weight_decay": options.weight_decay}
    muon = torch.optim.Muon(matrices, **decay)
    adamw = torch.optim.AdamW(rest, betas=options.betas, **decay)
    plan = training_plan(config)
    rows = TrainingRows(plan, (0, 0), config.train.global_batch, 1, 0, 1)
    losses = []
    for step, batch in enumerate(islice(make_loader(plan, rows, 0), config.train.steps)):
        nats = model(batch.ids.long(), batch.document, batch.modality)
        loss = nats[batch.scored].mean()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        share = learning_rate_factor(step, config.train.steps, options)
        for optimizer, lr in ((muon, options.muon_lr), (adamw, options.adamw_lr)):
            optimizer.param_groups[0]["lr"] = lr * share
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    "cases",
    [
        ("zero1", "zero3", "zero2_offload"),
        pytest.param(("zero0", "zero2", "zero3_offload"), marks=pytest.mark.long),
    ],
)
def test_two_ranks_at_every_zero_stage_equal_torch_in_one_process(
    mixed_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: tuple[str, ...]
) -> None:
    """Twenty steps of two micro batches a rank: losses, gradient norms and final weights.

    No compiler is on the path.
    """
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    sizes = {"steps": 20, "global_batch": 4, "micro_batch": 1, "checkpoint_every": 100}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    one = tmp_path / "one"
    bytelm("train", config, "--out", one, "--set", "train.deepspeed=zero0")
    assert len(losses(one)) == 20
    assert losses(one)[-1] < losses(one)[0] - 0.1
    with_torch = losses_with_torch(config, tmp_path, monkeypatch)
    assert losses(one) == pytest.approx(with_torch, abs=1e-5)
    expected = newest_weights(one)
    for case in cases:
        two = tmp_path / case
        zero = f"train.deepspeed={case}"
        bytelm("train", config, "--out", two, "--set", zero, "--processes", 2)
        assert losses(two) == pytest.approx(with_torch, abs=1e-5)
        norms = [[m["grad_norm"] for m in metrics(run)] for run in (one, two)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
        weights = newest_weights(two)
        assert weights.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name], atol=1e-3, rtol=0)


def test_every_option_of_the_model_trains_at_zero_3(mixed_set: ShardSet, tmp_path: Path) -> None:
    """With chunks and checkpointing, on two ranks whose rows have different modalities."""
    options = {
        "rope": True,
        "rms_norm": True,
        "qk_norm": True,
        "swiglu": True,
        "cross_patch_attention": 8,
        "conv_patch_encoder": True,
        "ngram_table_size": 500,
        "modality_heads": 3,
        "tie_embeddings": False,
        "local_chunk": 4,
        "activation_checkpointing": True,
    }
    config = write_config(
        tmp_path / "run.yaml", mixed_set, TINY_MODEL | options, steps=8, global_batch=4
    )
    one, two = tmp_path / "one", tmp_path / "two"
    bytelm("train", config, "--out", one, "--set", "train.deepspeed=zero0")
    bytelm("train", config, "--out", two, "--set", "train.deepspeed=zero3", "--processes", 2)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize(("deepspeed", "processes"), [("zero1", 1), ("zero3", 2)])
def test_a_killed_run_resumes_to_the_last_digit(
    mixed_set: ShardSet, tmp_path: Path, deepspeed: str, processes: int
) -> None:
    """The run is killed in a step after the checkpoint of step 10. Dropout is on, so a resumed run
    has to draw the same noise too."""
    sizes = {"steps": 20, "global_batch": 2, "checkpoint_every": 10, "deepspeed": deepspeed}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    rest = ("--set", "model.dropout=0.1", "--processes", processes)
    bytelm("train", config, "--out", tmp_path / "whole", *rest)

    broken = tmp_path / "broken"
    train = command("train", config, "--out", broken, *rest)
    assert kill_after_a_checkpoint(train, environment(), broken) == "step-00000010"

    bytelm("train", config, "--out", broken, *rest, "--resume")
    assert [m["step"] for m in metrics(broken)] == list(range(1, 21))
    assert losses(broken) == losses(tmp_path / "whole")
    expected, weights = newest_weights(tmp_path / "whole"), newest_weights(broken)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_run_writes_metrics_tensorboard_config_and_model(
    mixed_set: ShardSet, tmp_path: Path
) -> None:
    """In bf16, with evaluations on `val`."""
    sizes = {"steps": 6, "eval_every": 3, "eval_rows": 9, "precision": "bf16"}
    config = write_config(tmp_path / "run.yaml", mixed_set, **sizes)
    run = tmp_path / "run"
    shown = bytelm("train", config, "--out", run).stdout
    assert "step 6/6" in shown
    assert "bits per byte on val" in shown
    evaluations = metrics(run, "eval")
    assert [e["step"] for e in evaluations] == [3, 6]
    for name in ("text", "image", "audio", "total"):
        assert evaluations[1][name]["bits_per_byte"] < 10
    assert json.loads((run / "config.json").read_text())["train"]["precision"] == "bf16"
    assert list((run / "tensorboard").glob("events*"))
    out = tmp_path / "exported"
    bytelm("export", run, "--out", out)
    assert {p.name for p in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    scores = json.loads(bytelm("evaluate", out, "--data", mixed_set.location, "--json").stdout)
    assert scores["model"]["total"]["bits_per_byte"] == pytest.approx(
        evaluations[1]["total"]["bits_per_byte"], rel=0.02
    )


def test_mistakes_end_before_any_rank_starts(
    mixed_set: ShardSet, make_set: SetMaker, tmp_path: Path
) -> None:
    other = make_set([[text(b"another set")]], "other")
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=2, global_batch=3)
    run = tmp_path / "run"

    def refused(*arguments: object) -> str:
        error = bytelm("train", config, "--out", run, *arguments, status=2).stderr
        assert error.count("\n") == 1, error
        return error

    assert "2 processes do not divide it; use" in refused("--processes", 2)
    assert "has no checkpoint" in refused("--resume")
    assert "add --resume" in refused("--allow-fresh-start")
    assert "did you mean steps" in refused("--set", "train.stepz=1")
    assert "--set takes section.key=value" in refused("--set", "=5")
    assert "no shard set" in refused("--set", "data.sets=[{path: nowhere}]")
    assert "leave vocab_size" in refused("--set", "model.vocab_size=300")
    bytelm("train", config, "--out", run)
    assert "not empty: continue with --resume" in refused()
    for change, cause in (
        ("train.seed=5", "seed was 0 and is 5"),
        ("data.views.audio=u8", "views was"),
        (f"data.sets=[{{path: {mixed_set.location}, weight: 2}}]", "weights was [None]"),
        (f"data.sets=[{{path: {other.location}}}]", "sets was"),
    ):
        assert cause in refused("--resume", "--set", change)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--nproc-per-node=1"):
        join_process_group(1.0)


def test_a_new_plan_goes_on_with_the_weights(
    mixed_set: ShardSet, make_set: SetMaker, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=4)
    run = tmp_path / "run"
    bytelm("train", config, "--out", run)
    other = make_set([[text(bytes([65 + i] * 90))] for i in range(9)], "other")
    change = f"data.sets=[{{path: {other.location}}}]"
    more = ("--set", "train.steps=6", "--set", change)
    bytelm("train", config, "--out", run, "--resume", "--new-plan", *more)
    lines = metrics(run)
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5, 6]
    assert [(m["epoch"], m["row"]) for m in lines[4:]] == [(0, 0), (0, 1)]


def test_an_exhausted_set_repeats_stops_or_is_an_error(mixed_set: ShardSet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=60, log_every=10)
    rows = Plan(
        [Source(mixed_set)],
        PlanConfig(256, 8, {"text": "utf8", "image": "raster", "audio": "s16be"}, shuffle_window=2),
    ).rows(0)
    assert rows < 60
    stop = ("--set", "data.on_exhausted=stop")
    shown = bytelm("train", config, "--out", tmp_path / "stop", *stop).stdout
    assert f"the run ends after {rows} steps" in shown
    assert metrics(tmp_path / "stop")[-1]["step"] == rows
    error = ("--set", "data.on_exhausted=error")
    refused = bytelm("train", config, "--out", tmp_path / "error", *error, status=2).stderr
    assert f"exhausted after {rows} of 60 steps" in refused
    bytelm("plan", config, *error, "--set", "train.steps=20")
    assert "exhausted" in bytelm("plan", config, *error, status=2).stderr


def test_damage_stops_or_is_masked_counted_and_named(mixed_set: ShardSet, tmp_path: Path) -> None:
    """`raise` names the damage and ends the run; `mask` continues and logs it on two ranks; more
    damage than the allowed share ends all ranks."""
    shard = mixed_set.split("train")[1]
    row = mixed_set.index(shard)[0]
    with open(Path(mixed_set.location) / shard.name, "r+b") as file:
        file.seek(int(row["offset"]) + 1)
        file.write(b"\xff\x00\xff")
    config = write_config(
        tmp_path / "run.yaml", mixed_set, steps=40, global_batch=2, checkpoint_every=999
    )
    mask = ("--set", "data.damage=mask", "--processes", 2)
    stopped = bytelm("train", config, "--out", tmp_path / "raise", status=1).stderr
    assert f"{shard.name}: document train-3 " in stopped
    assert stopped.count("\n") == 1
    assert "Traceback" not in stopped
    run = tmp_path / "mask"
    shown = bytelm("train", config, "--out", run, *mask, "--set", "data.max_bad_share=0.5").stdout
    damage = metrics(run, "damage")
    masked = sum(d["bytes"] for d in damage)
    assert 2 * row["size"] <= masked <= 3 * row["size"], "80 rows are between 2 and 3 epochs"
    assert "train-3" in damage[0]["cause"]
    assert f"masked {damage[0]['bytes']} bytes" in shown
    few = ("--set", "data.max_bad_share=0.001")
    error = bytelm("train", config, "--out", tmp_path / "few", *mask, *few, status=1).stderr
    assert "more than max_bad_share 0.001" in error


def test_the_plan_command_shows_shares_rows_and_steps(mixed_set: ShardSet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", mixed_set, steps=30, global_batch=4)
    shown = bytelm("plan", config, "--processes", 2).stdout
    total = sum(sum(s.bytes.values()) for s in mixed_set.split("train"))
    for part in (
        f"{size_text(total)} of payload",
        "30 steps, 120 rows",
        "2 micro batches of 1",
        "100.0%",
    ):
        assert part in shown
    narrow = {**environment(), "COLUMNS": "80"}
    shown = subprocess.check_output(command("plan", config), env=narrow, text=True)
    first_column = "".join(re.findall(r"(?m)^  (\S+)", shown))
    assert str(mixed_set.location) in first_column, "wrapped, not cut"
    assert not (tmp_path / "run").exists()

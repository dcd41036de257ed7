"""Every option of every command, with values that no one should give: one line, no traceback.

The options come from the parser itself, so a new one is tried too. All run in this process.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from helpers.commands import TINY_MODEL, status, write_config
from helpers.run_folders import write_run
from helpers.sets import SetMaker, audio, image, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytelm.model.config import ModelConfig
from bytelm.model.megabyte import Megabyte
from bytelm.pipelines.checkpoints.pretrained import save_pretrained
from bytelm.pipelines.cli.arguments import Number, WholeNumber
from bytelm.pipelines.cli.main import build_parser
from bytelm.pipelines.runtime import child_command

VALUES = ("0", "-1", "1", "1e400", "nan", "inf", "-inf", "0.5", "1e-320", "x", "")
HUGE = (str(2**31), str(2**63), str(10**30), "9" * 5000)
NUMBER = WholeNumber | Number
SECONDS = 4.0
"""Time after which a command counts as at work on what a value asks for."""


def options() -> list[tuple[str, argparse.Action]]:
    """(command, option) of every option that takes a value."""
    parser = build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (name, action)
        for name, command in commands.items()
        for action in command._actions
        if action.option_strings and action.nargs != 0
    ]


OPTIONS = options()
NUMBERS = [(c, a) for c, a in OPTIONS if isinstance(a.type, NUMBER)]
NAMES = [f"{command} {action.option_strings[0]}" for command, action in OPTIONS]
NUMBER_NAMES = [f"{command} {action.option_strings[0]}" for command, action in NUMBERS]


def test_all_numbers_have_bounds() -> None:
    bare = [name for name, (_, a) in zip(NAMES, OPTIONS, strict=True) if a.type in (int, float)]
    assert bare == ["prepare --channels"]  # which has choices
    assert len(NUMBERS) > 20


@pytest.mark.parametrize(("command", "action"), NUMBERS, ids=NUMBER_NAMES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.sampled_from(HUGE)))
def test_a_number_is_in_its_bounds_or_is_refused_by_the_options_name(
    command: str, action: argparse.Action, value: object
) -> None:
    kind = action.type
    assert isinstance(kind, NUMBER)
    try:
        number, refusal = kind(str(value)), None
    except argparse.ArgumentTypeError as error:
        number, refusal = kind.least, str(error)
    assert kind.least <= number <= kind.most
    assert refusal is None or (refusal.startswith("is ") and len(refusal) < 150)


@pytest.fixture
def places(make_set: SetMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Whatever the commands need, by name; the working directory is an empty folder."""
    views = {"text": "utf8", "image": "raster", "audio": "s16be"}
    model = Megabyte(ModelConfig.from_dict(TINY_MODEL)).eval()
    save_pretrained(model, model.config, tmp_path / "model", {"views": views})
    documents = [[text(b"a whale")], [image(4, 4)], [audio(20)]]
    shard_set = make_set(documents, val=[[text(b"call me")]])
    config = write_config(tmp_path / "run.yaml", shard_set, steps=2)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("a")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return {
        "model": str(tmp_path / "model"),
        "set": str(shard_set.location),
        "config": str(config),
        "source": str(tmp_path / "source"),
        "file": str(tmp_path / "source" / "a.txt"),
        "none": str(tmp_path / "none"),
        "run": str(write_run(tmp_path / "run")),
    }


def arguments(command: str, places: dict[str, str]) -> list[str]:
    """Arguments of a command that do what it is for, without options."""
    return {
        "prepare": [places["source"], "--out", "out"],
        "inspect": [places["set"]],
        "index": [places["none"]],
        "init": ["--out", "out"],
        "plan": [places["config"]],
        "train": [places["config"], "--out", places["none"], "--resume"],
        "evaluate": [places["model"], "--data", places["set"]],
        "report": [places["run"]],
        "generate": [places["model"], "--modality", "text", "--out", "out"],
        "compress": [places["model"], places["file"], "--out", "out"],
        "decompress": [places["model"], places["none"], "--out", "out"],
        "merge": [places["none"]],
        "serve": [places["none"]],  # a page that opens would stay
        "export": [places["none"], "--out", "out"],
        "calibrate": [places["none"], "--data", places["set"]],
        "push": [places["none"], "user/name"],
        "demo": ["--data", places["none"]],
    }[command]


GROUPS = {
    "image": ("--size", "--prompt-rows"),
    "audio": ("--seconds", "--rate", "--channels", "--prompt-seconds"),
}


def modality_of(option: str) -> list[str]:
    """The arguments under which an option of `generate` has an effect."""
    for modality, names in GROUPS.items():
        if option in names:
            return ["--modality", modality]
    return []


@pytest.fixture
def time_limit() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(("command", "action"), OPTIONS, ids=NAMES)
def test_any_value_of_any_option_is_used_or_refused_in_one_line(
    command: str,
    action: argparse.Action,
    places: dict[str, str],
    time_limit: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = action.option_strings[0]
    if command == "demo":
        monkeypatch.setattr(child_command, "run_child", lambda command: (0, ""))
    for number, value in enumerate((*VALUES, *HUGE)):
        line = [command, *arguments(command, places)]
        if command == "generate":
            line += modality_of(option)
        line = [f"out-{number}" if part == "out" else part for part in line]
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        code = status([*line, f"{option}={value}"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        shown = capsys.readouterr()
        # A name that no file can have is the system's to refuse, with status 1.
        assert code in ((0, 2, 130) if isinstance(action.type, NUMBER) else (0, 1, 2)), (
            value,
            shown,
        )
        assert "Traceback" not in shown.err
        assert "unexpected" not in shown.err
        if code in (1, 2):
            assert shown.err.count("\n") == 1, (value, shown.err)
            assert shown.err.startswith(f"bytelm {command}: ")

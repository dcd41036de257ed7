"""`bytelm push` against a hub of the test's own: what is uploaded, and what each failure says."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import command, environment, status
from helpers.model_hub import TOKEN, Hub, model_hub
from helpers.served import write_model
from huggingface_hub import constants

NAME = "whaler/pequod"
Push = Callable[..., str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with model_hub() as served:
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    (folder / "README.md").write_text('---\nlicense: mit\n---\nmodel = bytelm.load(".")\n')
    (folder / "samples").mkdir()
    (folder / "samples" / "samples.json").write_text("[]\n")
    (folder / "samples" / "image-000.png").write_bytes(b"a picture")
    return folder


@pytest.fixture
def push(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    """Runs the command in this process; returns stdout, or the one line on stderr of a failure."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: object, expected: int = 0) -> str:
        found = status(["push", *map(str, arguments)])
        shown = capsys.readouterr()
        assert found == expected, shown
        if expected:
            assert shown.err.count("\n") == 1
            assert not shown.out
        return shown.err if expected else shown.out

    return run


def test_the_command_pushes_in_private_and_its_snippet_names_the_repository(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    (model / "notes.txt").write_text("not for others")
    (model / "checkpoints").mkdir()
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        command("push", model, NAME),
        env={**environment(), **variables, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == f"{hub.url}/{NAME} (private)\n"
    assert result.stderr == (
        "bytelm push: not uploaded, as no export wrote it: checkpoints, notes.txt\n"
    )
    files = hub.files[NAME]
    assert sorted(files) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "samples/image-000.png",
        "samples/samples.json",
    ]
    assert hub.private[NAME]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert files["README.md"].decode().endswith(f'model = bytelm.load("{NAME}")\n')
    assert 'bytelm.load(".")' in (model / "README.md").read_text()


def test_a_second_push_replaces_the_files(hub: Hub, model: Path, push: Push) -> None:
    push(model, NAME)
    (model / "README.md").write_text("another card")
    push(model, NAME)
    assert hub.files[NAME]["README.md"] == b"another card"


def test_a_public_repository_needs_to_be_asked_for(hub: Hub, model: Path, push: Push) -> None:
    assert push(model, NAME, "--public").endswith(" (public)\n")
    assert not hub.private[NAME]
    hub.files[NAME].clear()
    assert "add --public" in push(model, NAME, expected=2)
    assert not hub.files[NAME]


@pytest.mark.parametrize(
    ("place", "answer", "expected", "message"),
    [
        ("create", 401, 2, "the hub refuses the token: log in again with `hf auth login`"),
        ("create", 403, 2, "the token may not write there"),
        ("create", 500, 1, "the hub fails: push again later"),
        ("commit", 409, 1, "somebody else changes the repository at this moment: push again"),
        ("commit", 413, 1, "the hub refuses it"),
        ("commit", 500, 1, "the hub fails: push again later"),
    ],
)
def test_an_answer_that_refuses_is_one_line_with_a_way_out(
    hub: Hub, model: Path, push: Push, place: str, answer: int, expected: int, message: str
) -> None:
    hub.script[place] = answer
    error = push(model, NAME, expected=expected)
    assert error.startswith(f"bytelm push: {NAME} was not pushed: {message}")
    assert not hub.files.get(NAME)


def test_no_token_is_said_before_anything_is_sent(
    hub: Hub, model: Path, push: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    error = push(model, NAME, expected=2)
    assert error == (
        "bytelm push: there is no token of the Hugging Face hub: log in with `hf auth login`, or "
        "set HF_TOKEN\n"
    )
    assert not hub.asked


def test_no_network_is_one_line(model: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = push(model, NAME, expected=1)
    assert "check the connection" in error


def test_only_exported_models_are_pushed(hub: Hub, model: Path, push: Push, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert "is a run: `bytelm export" in push(run, NAME, expected=2)
    assert "no id of a repository" in push(model, "pequod", expected=2)
    (model / "model.safetensors").write_bytes(b"broken")
    assert "export the model again" in push(model, NAME, expected=2)
    assert not hub.asked

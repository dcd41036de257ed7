"""The environment of ranks: what a launcher left there is used whole or refused in one line."""

from __future__ import annotations

import pytest

from bytelm.pipelines.runtime.launcher import (
    LAUNCHER_LOCK,
    RANK_VARIABLES,
    STOPPED_STATUS,
    check_environment,
    status_of_stopped_rank,
)

RANK_OF_TWO = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def set_variables(patch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in (*RANK_VARIABLES, LAUNCHER_LOCK):
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": None}, r"RANK is set and WORLD_SIZE is not: unset RANK .* torchrun"),
        ({"LOCAL_RANK": None, "MASTER_PORT": None}, "LOCAL_RANK, MASTER_PORT are not"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' and no number"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE only 2"),
    ],
)
def test_variables_that_a_launcher_left_behind_are_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], message: str
) -> None:
    changed = {**RANK_OF_TWO, **changes}
    set_variables(monkeypatch, {k: v for k, v in changed.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        check_environment(1)


def test_a_launched_rank_starts_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, RANK_OF_TWO)
    check_environment(1)
    with pytest.raises(ValueError, match="--processes 2 beside RANK 1"):
        check_environment(2)
    monkeypatch.setenv(LAUNCHER_LOCK, "lock")  # one of our own, which has the command's arguments
    check_environment(2)


def test_without_a_launcher_any_number_of_processes_may_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variables(monkeypatch, {"WORLD_SIZE": "2"})
    check_environment(2)


@pytest.mark.parametrize(
    ("elastic", "was_asked", "status"),
    [("0", True, 7), ("0", False, 7), ("3", True, 7), ("3", False, STOPPED_STATUS)],
)
def test_a_rank_that_only_heard_of_a_request_to_stop_asks_torchrun_for_a_restart(
    monkeypatch: pytest.MonkeyPatch, elastic: str, was_asked: bool, status: int
) -> None:
    set_variables(monkeypatch, RANK_OF_TWO)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", elastic)
    assert status_of_stopped_rank(was_asked, stop_status=7) == status

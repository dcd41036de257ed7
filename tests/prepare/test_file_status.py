"""The status of many files: in order, with its errors, by threads where answers are slow."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bytelm.pipelines.prepare import file_status
from bytelm.pipelines.prepare.file_status import with_status

FILES = 70


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of different sizes, of which every tenth is missing."""
    monkeypatch.setattr(file_status, "BATCH", 32)
    for number in range(FILES):
        if number % 10:
            (tmp_path / str(number)).write_bytes(bytes(number))
    return [str(tmp_path / str(number)) for number in range(FILES)]


@pytest.mark.parametrize("slow_seconds", [0.0, 1e9])
def test_statuses_come_in_order_with_their_errors(
    paths: list[str], slow_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_status, "SLOW_SECONDS", slow_seconds)
    seen = list(with_status(zip(paths, range(FILES), strict=True)))
    assert [(path, number) for path, number, _ in seen] == list(
        zip(paths, range(FILES), strict=True)
    )
    for _, number, status in seen:
        if number % 10:
            assert isinstance(status, os.stat_result)
            assert status.st_size == number
        else:
            assert isinstance(status, FileNotFoundError)
    assert list(with_status([])) == []


def test_threads_ask_once_answers_are_slow(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    asking: set[str] = set()
    are_two = threading.Event()
    real_stat = os.stat

    def stat(path: str, **options: Any) -> os.stat_result:
        name = threading.current_thread().name
        threads.append(name)
        if name.startswith("status"):
            asking.add(name)
            if len(asking) > 1:
                are_two.set()
            assert are_two.wait(30)  # two of them ask at the same time
        return real_stat(path, **options)

    monkeypatch.setattr(file_status, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(file_status.os, "stat", stat)
    seen = list(with_status((path, None) for path in paths[:64]))
    assert len(seen) == 64
    assert threads[:32] == [threading.current_thread().name] * 32
    assert all(name.startswith("status") for name in threads[32:])

"""Measurements in processes of their own, each with a time limit.

A job is a generator function that yields figures. It runs in a fresh process, so that a crash, a
compiler that takes too long or memory that is never given back costs that job alone. A figure
reaches the caller as soon as it is measured: a job that is cut still gives its first ones.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bytelm.tools.benchmarks.measure import Figure

FAILED = "/failed"
"""End of the name of the figure of a job that failed."""
END_SECONDS = 10.0
"""Time that a process has to go away, once it is through or was killed."""


@dataclass(frozen=True)
class Job:
    """A function to run in a process of its own."""

    name: str
    function: Callable[..., Iterator[Figure]]
    """A function of a module, so that another process finds it."""
    arguments: tuple[Any, ...] = ()


def run_jobs(jobs: Sequence[Job], seconds: float) -> Iterator[Figure]:
    """Figures of jobs that run side by side, in the order in which they are measured.

    A job that fails, dies or is not through after `seconds` ends with the figure `NAME/failed`:
    the seconds that it ran, and its error.
    """
    began = time.perf_counter()
    running = {receiver: (job, process) for job, process, receiver in map(_start, jobs)}
    try:
        while running:
            ready = wait(list(running), timeout=max(0.0, began + seconds - time.perf_counter()))
            for receiver in ready:
                assert isinstance(receiver, Connection)
                figure, error = _receive(receiver)
                if figure is not None:
                    yield figure
                    continue
                job, process = running.pop(receiver)
                _end(process, is_through=True)
                if error:
                    yield _failed(job, began, error)
            if not ready:
                break
        for job, _ in running.values():
            yield _failed(job, began, f"not through after {seconds:.0f} s")
    finally:
        for _, process in running.values():
            _end(process)


def _failed(job: Job, began: float, error: str) -> Figure:
    seconds = time.perf_counter() - began
    return Figure(job.name + FAILED, seconds, "s", details={"error": error})


def _start(job: Job) -> tuple[Job, BaseProcess, Connection]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(sender, job))
    process.start()
    sender.close()  # so that the process's end is read as the end of the figures
    return job, process, receiver


def _run(sender: Connection, job: Job) -> None:
    """Send each figure of a job, then None, or its error; the body of its process."""
    os.setsid()  # a compiler's workers are ended with it
    os.dup2(2, 1)  # libraries that print must not break the lines of figures
    try:
        for figure in job.function(*job.arguments):
            sender.send(figure)
        sender.send(None)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        sender.send(f"{type(error).__name__}: {lines[0]}")


def _receive(receiver: Connection) -> tuple[Figure | None, str]:
    """The next figure of a process, or None and why there is none ("" at its regular end)."""
    try:
        message = receiver.recv()
    except EOFError:
        return None, "the process died"
    if isinstance(message, Figure):
        return message, ""
    return None, message or ""


def _end(process: BaseProcess, is_through: bool = False) -> None:
    """End a process and all that it started; one that `is_through` may end by itself first."""
    assert process.pid is not None
    if is_through:
        process.join(END_SECONDS)
    with suppress(ProcessLookupError):  # nothing is left, or it has not come to its own group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(END_SECONDS)

"""Decoding the rows of tables in worker processes, in order and with memory bounded.

A worker has up to REQUESTS_PER_WORKER units open, and delivers each in instalments. It is asked for
the next instalment of a unit when the one before has come, so a compressed table or a large row
group is read once. Where a worker dies, another begins its units again after the last row that
came. A row, or the reading of a unit, at which two workers have died is refused.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from bytelm.pipelines.prepare.decode_worker import READING_ROWS, reading_seconds
from bytelm.pipelines.prepare.table_decode import (
    Instalment,
    RowPosition,
    TableTask,
    rest_of_unit,
)
from bytelm.pipelines.prepare.tables import TableUnit
from bytelm.pipelines.prepare.worker_process import REQUESTS_PER_WORKER, START_ATTEMPTS, Worker
from bytelm.pipelines.runtime.processes import cause_of_death

READY_BYTES = 1 << 26
"""Decoded bytes that wait for earlier units, above which only the earliest unit is continued."""
MAX_OPEN_UNITS = 64
"""Units that are open or wait for earlier ones."""
MAX_ROW = 1 << 62
"""Above the number of any row."""

UnitRow = tuple[int, int]
"""Number of a unit among all, and of a row in it; everything before it is meant."""


class TablePosition(NamedTuple):
    """Progress through all tables."""

    done: Mapping[str, UnitRow]
    """For each split, up to where its documents are written."""
    counted: UnitRow
    """Up to where bad rows and notes are counted."""

    @property
    def first_unit(self) -> int:
        """The first unit that is not done."""
        return min(self.counted, *self.done.values())[0]

    def in_unit(self, number: int) -> RowPosition:
        """Progress through a unit: up to MAX_ROW where it is finished."""

        def row(position: UnitRow) -> int:
            if position[0] == number:
                return position[1]
            return MAX_ROW if position[0] > number else 0

        done = {split: row(position) for split, position in self.done.items()}
        return RowPosition(done, row(self.counted))


class TableDecoding:
    """Decodes units with workers that are idle, which it replaces where they die."""

    def __init__(
        self,
        units: Sequence[TableUnit],
        shares: tuple[float, float, float],
        workers: list[Worker],
        start_worker: Callable[[], Worker],
    ):
        self._units = units
        self._shares = shares
        self._workers = workers
        self._start_worker = start_worker
        self._owners: dict[int, Worker | None] = {}  # of each open unit
        self._rows: dict[int, int] = {}  # row after the last instalment of each open unit
        self._ready: dict[int, list[Instalment]] = {}  # of units that are not yet done
        self._ready_bytes = 0
        self._refused: dict[int, dict[int, tuple[str, str]]] = {}
        self._deaths: Counter[tuple[int, int, int]] = Counter()  # by unit, row and what was done
        self._deaths_at_start = 0
        self._next_unit = 0

    def instalments(self, position: TablePosition) -> Iterator[tuple[int, Instalment]]:
        """Number of the unit and instalment, for all units from a position on, in order.

        Raises RuntimeError where workers die before they read anything.
        """
        self._position = position
        number = self._next_unit = position.first_unit
        while number < len(self._units):
            self._send_requests(number)
            ready = self._ready.get(number, [])
            busy = {w.connection: w for w in self._workers if w.requests}
            for connection in wait(list(busy), 0 if ready else None):
                assert isinstance(connection, Connection)
                self._receive(busy[connection])
            self._send_requests(number)
            ready = self._ready.pop(number, [])
            for instalment in ready:
                self._ready_bytes -= instalment.size
                yield number, instalment
            if ready and ready[-1].is_end:
                number += 1

    def _send_requests(self, number: int) -> None:
        """Ask for the next instalments; unit `number`, for which the caller waits, comes first."""
        for unit in sorted(self._owners):
            if unit in self._owners and (unit == number or not self._is_full()):
                self._continue(unit)
        while self._next_unit < len(self._units) and self._may_open(number):
            worker = min(self._workers, key=lambda w: len(w.requests))
            if len(worker.requests) == REQUESTS_PER_WORKER:
                return
            unit = self._next_unit
            self._next_unit += 1
            self._owners[unit] = None
            self._continue(unit)

    def _is_full(self) -> bool:
        return self._ready_bytes >= READY_BYTES

    def _may_open(self, number: int) -> bool:
        """Whether a further unit may be opened."""
        is_next = self._next_unit == number
        return is_next or (not self._is_full() and self._next_unit < number + MAX_OPEN_UNITS)

    def _continue(self, unit: int) -> None:
        """Ask for the next instalment of a unit that is open or about to be opened, if its worker
        is free for it."""
        if any(task.number == unit for w in self._workers for task in _tasks(w)):
            return
        worker = self._owners[unit]
        position = None
        if worker is None:
            worker = min(self._workers, key=lambda w: len(w.requests))
            position = self._start_of(unit)
        if len(worker.requests) == REQUESTS_PER_WORKER:
            return
        refused = self._refused.get(unit, {})
        task = TableTask(unit, self._units[unit], self._shares, position, refused)
        self._owners[unit] = worker
        try:
            worker.send(task, task)
        except OSError:
            self._replace_dead(worker)

    def _start_of(self, unit: int) -> RowPosition:
        """Where a worker begins a unit: at its start, or after the last row that came."""
        position = self._position.in_unit(unit)
        row = self._rows.get(unit, 0)
        done = {split: max(done, row) for split, done in position.done.items()}
        return RowPosition(done, max(position.counted, row))

    def _receive(self, worker: Worker) -> None:
        """Take a worker's instalment, or replace the worker where it has died."""
        try:
            task, instalment, memory = worker.receive()
        except (EOFError, OSError):
            self._replace_dead(worker)
            return
        assert isinstance(task, TableTask)
        assert isinstance(instalment, Instalment)
        self._deaths_at_start = 0
        for rows in instalment.splits.values():
            rows.piece = replace(rows.piece, members=memory.view(rows.size))
        self._take(task.number, instalment)
        if instalment.is_last:
            self._replace(worker)

    def _take(self, unit: int, instalment: Instalment) -> None:
        self._ready.setdefault(unit, []).append(instalment)
        self._ready_bytes += instalment.size
        self._rows[unit] = instalment.stop
        if instalment.is_end:
            del self._owners[unit], self._rows[unit]

    def _replace_dead(self, worker: Worker) -> None:
        """Record what a worker was doing when it died, and replace it."""
        exit_code = worker.exit_code()
        begun = worker.begun()
        task = next(_tasks(worker), None)
        if begun == 0 or task is None:
            self._deaths_at_start += 1
            if self._deaths_at_start == START_ATTEMPTS * len(self._workers):
                raise RuntimeError(
                    f"decoding workers die before their first row ({cause_of_death(exit_code)}): "
                    "is there memory for them? Try fewer --workers"
                )
        else:
            self._add_death(task, begun, exit_code)
        self._replace(worker)

    def _add_death(self, task: TableTask, begun: int, exit_code: int) -> None:
        """Record a death at a row, or while rows were read; what caused a second one is refused."""
        row = self._rows.get(task.number, task.unit.first_row)
        self._deaths[task.number, row, begun] += 1
        is_second = self._deaths[task.number, row, begun] == 2
        if exit_code == -signal.SIGPROF or (exit_code == -signal.SIGALRM and is_second):
            refusal = ("too slow", f"over {reading_seconds(task.unit.size):.0f} seconds")
        elif is_second:
            refusal = ("decoder died", cause_of_death(exit_code))
        else:
            return
        if begun == READING_ROWS:
            self._take(task.number, rest_of_unit(task.unit, row, *refusal))
        else:
            self._refused.setdefault(task.number, {})[begun - 2] = refusal

    def _replace(self, worker: Worker) -> None:
        """Start a fresh worker for one that has ended; its units are begun again by any."""
        for unit, owner in self._owners.items():
            if owner is worker:
                self._owners[unit] = None
        worker.end()
        self._workers[self._workers.index(worker)] = self._start_worker()


def _tasks(worker: Worker) -> Iterator[TableTask]:
    """The requests for instalments that a worker has."""
    return (task for task in worker.requests if isinstance(task, TableTask))

"""Grader processes with a hard time limit.

Two limits guard each response. An alarm inside the worker stops Python code after `timeout`
seconds; the worker lives on. Code that never returns to the interpreter (a huge integer power)
does not see the alarm: then the worker is killed `GRACE` seconds later and replaced.

Workers are plain subprocesses, not forks: a fork of a process with torch's threads can deadlock,
and multiprocessing's spawn would run the user's script again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from oneshot.training.errors import RunError

WORKER = "oneshot.rlvr.rewards.grader_worker"
GRACE = 1.0
START_LIMIT = 120.0

Status = Literal["score", "raised", "timeout", "crash"]


class GraderStartError(RunError):
    """A grader process could not start: its function cannot be imported, for example."""


@dataclass(frozen=True)
class Outcome:
    """What became of one response: its score (0 without one) and, if it raised, the traceback."""

    status: Status
    score: float = 0.0
    detail: str = ""


class _Worker:
    def __init__(self, function: str, timeout: float) -> None:
        self.connection, child = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(child.fileno()), function, str(timeout)],
            pass_fds=[child.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        child.close()
        self.ready = False
        self.item: int | None = None
        self.deadline = time.monotonic() + START_LIMIT

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class GraderPool:
    """Grades items in worker processes, started at the first use and kept.

    Args:
        function: "math_verify", "strict", "harness", "choice" or "module:function".
        workers: Number of processes.
        timeout: Seconds per item.
    """

    def __init__(self, function: str, workers: int, timeout: float) -> None:
        self.function = function
        self.size = workers
        self.timeout = timeout
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def grade(self, items: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """Grades each item (the arguments of the grader); the outcomes are in the same order.

        Calls from several threads wait for each other.

        Raises:
            GraderStartError: The workers cannot start.
        """
        with self._lock:
            return self._grade(items)

    def _grade(self, items: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = list(range(len(items) - 1, -1, -1))
        while len(self._workers) < min(self.size, len(items)):
            self._workers.append(_Worker(self.function, self.timeout))
        while len(outcomes) < len(items):
            for worker in self._workers:
                if worker.ready and worker.item is None and waiting:
                    self._give(worker, waiting.pop(), items, outcomes)
            busy = {w.connection: w for w in self._workers if w.item is not None or not w.ready}
            nearest = min((worker.deadline for worker in busy.values()), default=0.0)
            for connection in wait(list(busy), max(0.0, nearest - time.monotonic())):
                assert isinstance(connection, Connection)
                self._receive(busy[connection], outcomes)
            for worker in list(self._workers):
                late = time.monotonic() > worker.deadline
                if late and (worker.item is not None or not worker.ready):
                    self._lose(worker, Outcome("timeout"), outcomes)
        return [outcomes[i] for i in range(len(items))]

    def close(self) -> None:
        """Ends the workers, when no other thread is grading."""
        with self._lock:
            _stop_all(self._workers)

    def _give(
        self,
        worker: _Worker,
        index: int,
        items: Sequence[tuple[Any, ...]],
        outcomes: dict[int, Outcome],
    ) -> None:
        worker.item = index
        worker.deadline = time.monotonic() + self.timeout + GRACE
        try:
            worker.connection.send(items[index])
        except (BrokenPipeError, ConnectionResetError):
            self._lose(worker, Outcome("crash"), outcomes)

    def _receive(self, worker: _Worker, outcomes: dict[int, Outcome]) -> None:
        try:
            status, value = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._lose(worker, Outcome("crash"), outcomes)
            return
        if status == "ready":
            worker.ready = True
        elif status == "failed":
            _stop_all(self._workers)
            raise GraderStartError(f"grader {self.function!r} cannot start:\n{value}")
        else:
            assert worker.item is not None
            score, detail = (value, "") if status == "score" else (0.0, value or "")
            outcomes[worker.item] = Outcome(status, score, detail)
            worker.item = None

    def _lose(self, worker: _Worker, outcome: Outcome, outcomes: dict[int, Outcome]) -> None:
        """Records the item of a dead or late worker and puts a new worker in its place."""
        started, code = worker.ready, worker.process.poll()
        worker.stop()
        if not started:
            _stop_all(self._workers)
            raise GraderStartError(
                f"grader {self.function!r} did not start within {START_LIMIT:.0f} s "
                f"(exit status {code})"
            )
        if worker.item is not None:
            outcomes[worker.item] = outcome
        self._workers[self._workers.index(worker)] = _Worker(self.function, self.timeout)


def _stop_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()

"""Interleaved rounds over workers: in every round each provider runs once, in random order."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from oneshot._load import native
from oneshot.bench.registry import SUITES, Operation, Provider

# Lowest first; a machine runs all levels up to its best.
LEVELS = ("scalar", "avx2", "avx512")
# Pools of OpenMP threads spin for some milliseconds after a call; let one process's pool fall
# asleep before another process is timed.
SETTLE_SECONDS = 0.01
# Short calls are repeated within a round so that a provider's time makes about this many rounds.
ROUNDS = 20


class WorkerDied(RuntimeError):
    """A worker process ended or raised outside a provider."""


class Worker:
    """Handle of one worker process (``worker.py``)."""

    def __init__(self, suite: str, **environment: str) -> None:
        self._suite, self._environment = suite, environment
        self.start()

    def start(self) -> None:
        """Start the process; again after it died."""
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "oneshot.bench.worker", self._suite],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **self._environment},
        )
        described = self.ask("describe")
        self.isa: str = described["isa"]
        self.threads: int = described["threads"]

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            tail = self._log.read()[-2000:]
            raise WorkerDied(
                f"benchmark worker ended with status {self._process.wait()} during {do!r} "
                f"{arguments} (out of memory?). It last said:\n{tail}"
            )
        reply = json.loads(line)
        if "raised" in reply:
            raise WorkerDied(
                f"benchmark worker raised during {do!r} {arguments}\n{reply['raised']}"
            )
        return reply

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()


def start_workers(suite: str) -> list[Worker]:
    """The main worker (best backend, and all that is not ours), then one per lower backend."""
    if SUITES[suite].device == "cuda":
        compiled = Worker(suite)
        if compiled.isa == "Triton":
            return [compiled]
        return [compiled, Worker(suite, ONESHOT_DISABLE_NATIVE="1")]
    module, _ = native()
    if suite != "cpu" or module is None or module.best_isa() not in LEVELS:
        return [Worker(suite)]
    best = LEVELS.index(module.best_isa())
    return [Worker(suite, ONESHOT_CPU_ISA=level) for level in reversed(LEVELS[: best + 1])]


@dataclass
class Measurement:
    """One provider in one worker.

    Args:
        provider: Who.
        name: Shown name: the provider's, with the level for our own.
        isa: Backend of our own providers (instruction-set level, CUDA, Triton), "" for others.
        threads: Threads torch and the kernels may use.
        status: "ok", "failed" or "not installed"; only "ok" is timed.
        detail: Reason when not ok.
        error: Largest relative error (2-norm) against float64.
        tolerance: What was allowed.
        iterations: Calls per round.
        wall: Seconds per call, one entry per round.
        cpu: CPU seconds per call (all threads), one entry per round.
        peak_memory: Bytes above the inputs; None where the system cannot tell.
    """

    provider: Provider
    name: str
    isa: str
    threads: int
    status: str
    detail: str
    error: float | None
    tolerance: float | None
    iterations: int = 1
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_memory: int | None = None


def _entrants(operation: Operation, workers: list[Worker]) -> Iterator[tuple[Worker, Measurement]]:
    for worker in workers:
        for provider in operation.providers:
            if provider.kind != "ours" and worker is not workers[0]:
                continue
            isa = worker.isa if provider.kind == "ours" else ""
            name = f"{provider.name} [{isa}]" if isa else provider.name
            verdict = worker.ask("verify", provider=provider.name)
            yield worker, Measurement(provider, name, isa, worker.threads, **verdict)


def measure(
    operation: Operation,
    workers: list[Worker],
    *,
    timed: bool,
    min_rounds: int,
    max_time: float,
    min_time: float,
    seed: int = 0,
) -> list[Measurement]:
    """Verify all providers, then time those that passed.

    Args:
        operation: What to run.
        workers: From :func:`start_workers`.
        timed: False verifies only.
        min_rounds: Rounds that every provider takes part in.
        max_time: Seconds per provider after which it takes part in no further round.
        min_time: Least length of one round in seconds (at least 1/20 of `max_time`).
        seed: Of the order within rounds.

    Returns:
        One measurement per provider and, for our own, per instruction-set level.
    """
    for worker in workers:
        if not worker.alive:
            worker.start()
        worker.ask("open", operation=operation.id)
    entrants = list(_entrants(operation, workers))
    running = [(worker, entry) for worker, entry in entrants if entry.status == "ok" and timed]
    for worker, entry in running:
        found = worker.ask(
            "calibrate", provider=entry.provider.name, min_time=max(min_time, max_time / ROUNDS)
        )
        entry.iterations, entry.peak_memory = found["iterations"], found["peak_memory"]
    order, last = random.Random(seed), None
    while running:
        order.shuffle(running)
        for worker, entry in running:
            if worker is not last:
                time.sleep(SETTLE_SECONDS)
            last = worker
            once = worker.ask("time", provider=entry.provider.name, iterations=entry.iterations)
            entry.wall.append(once["wall"])
            entry.cpu.append(once["cpu"])
        running = [
            (worker, entry)
            for worker, entry in running
            if len(entry.wall) < min_rounds
            or (len(entry.wall) < 3 * ROUNDS and sum(entry.wall) * entry.iterations < max_time)
        ]
    for worker in workers:
        worker.ask("close")
    return [entry for _, entry in entrants]

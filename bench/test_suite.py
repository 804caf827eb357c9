"""The suite: ``pytest bench/ --benchmark-only``, or ``oneshot bench``, which calls it.

One test per operation. It verifies every provider, times those who passed in interleaved rounds
and enters each as a benchmark of its own, so that pytest-benchmark's tables, ``--benchmark-json``,
``--benchmark-compare`` and ``--benchmark-histogram`` work on them. With ``--benchmark-disable``
all providers are verified and none is timed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from oneshot.bench import measure, results
from oneshot.bench.registry import Operation


def _enter(benchmark: BenchmarkFixture, operation: Operation, entry: measure.Measurement) -> None:
    """Give one provider's rounds to pytest-benchmark (its fixture times one callable per test)."""
    own = copy.copy(benchmark)
    own.name, own.group = entry.name, operation.id
    own.fullname = f"{operation.id}::{entry.name}"
    own.extra_info = {"error": entry.error, "peak_memory": entry.peak_memory}
    stats = own._make_stats(entry.iterations)
    for wall in entry.wall:
        stats.update(wall * entry.iterations)


def test_operation(
    operation: Operation,
    benchmark: BenchmarkFixture,
    workers: list[measure.Worker],
    recorder: results.Recorder,
    pytestconfig: pytest.Config,
) -> None:
    """Verify, time, report; red if a provider computes the wrong thing."""
    option: Any = pytestconfig.getoption
    entries = measure.measure(
        operation,
        workers,
        timed=benchmark.enabled,
        min_rounds=option("benchmark_min_rounds"),
        max_time=float(option("benchmark_max_time")),
        min_time=float(option("benchmark_min_time")),
    )
    benchmark._mode = "interleaved rounds"
    for entry in entries:
        if entry.wall:
            _enter(benchmark, operation, entry)
    recorder.add(results.rows(operation, entries))
    wrong = [f"{entry.name}: {entry.detail}" for entry in entries if entry.status == "failed"]
    assert not wrong, "failed verification and was not timed:\n" + "\n".join(wrong)

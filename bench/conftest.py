"""Options and session objects of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oneshot.bench import measure, registry, render, results
from oneshot.bench.results import Row


def pytest_addoption(parser: pytest.Parser) -> None:
    """What ``oneshot bench`` passes on."""
    group = parser.getgroup("oneshot bench")
    group.addoption("--quick", action="store_true", help="quick operations only")
    group.addoption(
        "--family", action="append", choices=registry.FAMILIES, help="only this family (repeatable)"
    )
    group.addoption("--output", type=Path, help="write the JSON below this folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per operation."""
    if "operation" in metafunc.fixturenames:
        chosen = registry.operations(
            metafunc.config.getoption("family") or registry.FAMILIES,
            quick=metafunc.config.getoption("quick"),
        )
        metafunc.parametrize("operation", chosen, ids=lambda operation: operation.id)


@pytest.fixture(scope="session")
def workers() -> Iterator[list[measure.Worker]]:
    """One process per instruction-set level, alive for the whole session."""
    started = measure.start_workers()
    yield started
    for worker in started:
        worker.stop()


@pytest.fixture(scope="session")
def collected(pytestconfig: pytest.Config) -> Iterator[list[Row]]:
    """Rows of the session; written at its end if a folder was given."""
    run: dict[str, Any] = results.run_info()
    rows: list[Row] = []
    yield rows
    folder = pytestconfig.getoption("output")
    if folder is not None and any(row.rounds for row in rows):
        path = results.save(folder, results.machine(), run, rows)
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\nwrote", path, *render.render(path), sep="\n  ")

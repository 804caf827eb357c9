"""Options and session objects of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshot.bench import measure, registry, render, results


def pytest_addoption(parser: pytest.Parser) -> None:
    """What ``oneshot bench`` passes on."""
    group = parser.getgroup("oneshot bench")
    group.addoption("--suite", choices=registry.SUITES, default="cpu", help="which operations")
    group.addoption("--quick", action="store_true", help="quick operations only")
    group.addoption(
        "--family", action="append", choices=registry.GROUPS, help="only this family (repeatable)"
    )
    group.addoption("--output", type=Path, help="write the JSON below this folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per operation."""
    if "operation" in metafunc.fixturenames:
        chosen = registry.operations(
            metafunc.config.getoption("family") or registry.GROUPS,
            quick=metafunc.config.getoption("quick"),
            suite=metafunc.config.getoption("suite"),
        )
        metafunc.parametrize("operation", chosen, ids=lambda operation: operation.id)


@pytest.fixture(scope="session")
def workers(pytestconfig: pytest.Config) -> Iterator[list[measure.Worker]]:
    """One process per backend, alive for the whole session."""
    started = measure.start_workers(pytestconfig.getoption("suite"))
    yield started
    for worker in started:
        worker.stop()


@pytest.fixture(scope="session")
def recorder(pytestconfig: pytest.Config) -> Iterator[results.Recorder]:
    """Collects the rows of the session; rendered at its end if a folder was given."""
    found = results.Recorder(pytestconfig.getoption("output"), pytestconfig.getoption("suite"))
    yield found
    if found.path is not None:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\nwrote", found.path, *render.render(found.path), sep="\n  ")

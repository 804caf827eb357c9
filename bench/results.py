"""Results as files: one row schema for every operation, provider and metric; one file per run."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.stats import Stats
from pytest_benchmark.utils import get_commit_info

from oneshot._load import build_info, native
from oneshot._version import __version__
from oneshot.bench.measure import Measurement
from oneshot.bench.registry import SUITES, Operation, operation_id

SCHEMA = 1
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One metric of one provider on one operation.

    A provider that was not timed has one row, metric "wall", whose numbers are None.

    Args:
        family: Family of the op.
        kernel: Public function.
        variant: Which of several settings of the kernel, or "".
        shape: Sizes, e.g. "2048x151936".
        dtype: Dtype of the main input.
        mode: "forward" or "forward+backward".
        provider: Shown name, level included.
        kind: "ours", "reference", "peer" or "floor".
        isa: Backend of our own providers (instruction-set level, CUDA, Triton), else "".
        threads: Threads allowed.
        status: "ok", "failed", "not installed" or "not timed".
        detail: Reason when not ok.
        error: Largest relative error (2-norm) of an output or gradient against float64.
        tolerance: Allowed error.
        floor: Shown name of the floor that bounds this provider.
        metric: "wall" (on a GPU: device time), "cpu" (all threads of the host) or "peak_memory"
            (above the inputs).
        unit: "s" or "byte", per call.
        median: Median over rounds.
        q1: First quartile.
        q3: Third quartile.
        rounds: Rounds measured.
        iterations: Calls per round.
        samples: One number per round, in the order of the rounds (of this provider).
    """

    family: str
    kernel: str
    variant: str
    shape: str
    dtype: str
    mode: str
    provider: str
    kind: str
    isa: str
    threads: int
    status: str
    detail: str
    error: float | None
    tolerance: float | None
    floor: str | None
    metric: str
    unit: str
    median: float | None
    q1: float | None
    q3: float | None
    rounds: int
    iterations: int
    samples: list[float]

    @property
    def operation(self) -> str:
        """Id of the operation."""
        return operation_id(self.kernel, self.variant, self.shape, self.dtype, self.mode)


def summary(samples: list[float]) -> dict[str, Any]:
    """Median and quartiles as pytest-benchmark computes them."""
    stats = Stats()
    stats.data = list(samples)
    return {"median": stats.median, "q1": stats.q1, "q3": stats.q3, "rounds": stats.rounds}


def rows(operation: Operation, measurements: list[Measurement]) -> list[Row]:
    """Turn what was measured into rows."""
    found = []
    for entry in measurements:
        common: dict[str, Any] = {
            "family": operation.family,
            "kernel": operation.kernel,
            "variant": operation.variant,
            "shape": operation.shape,
            "dtype": operation.dtype,
            "mode": operation.mode,
            "provider": entry.name,
            "kind": entry.provider.kind,
            "isa": entry.isa,
            "threads": entry.threads,
            "status": entry.status if entry.wall or entry.status != "ok" else "not timed",
            "detail": entry.detail,
            "error": entry.error,
            "tolerance": entry.tolerance,
            "floor": operation.floor_of(entry.provider),
            "iterations": entry.iterations,
        }
        if not entry.wall:
            empty: dict[str, Any] = {"median": None, "q1": None, "q3": None, "rounds": 0}
            found.append(Row(**common, metric="wall", unit="s", samples=[], **empty))
            continue
        metrics = [("wall", "s", entry.wall), ("cpu", "s", entry.cpu)]
        if entry.peak_memory is not None:
            metrics.append(("peak_memory", "byte", [float(entry.peak_memory)]))
        for metric, unit, samples in metrics:
            short = [float(f"{sample:.5g}") for sample in samples]
            found.append(Row(**common, metric=metric, unit=unit, samples=short, **summary(short)))
    return found


def _cpu() -> dict[str, Any]:
    import cpuinfo  # comes with pytest-benchmark

    info = cpuinfo.get_cpu_info()
    return {key: info.get(key) for key in ("brand_raw", "family", "model", "l3_cache_size")}


def machine(suite: str) -> dict[str, Any]:
    """What the numbers depend on and what stays the same between runs.

    Args:
        suite: A key of ``registry.SUITES``.
    """
    module, _ = native()
    on_gpu = SUITES[suite].device == "cuda"
    return {
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cores": os.cpu_count(),
        "best_isa": module.best_isa() if module else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "oneshot": __version__,
        "built_with": build_info(),
    }


def run_info() -> dict[str, Any]:
    """What is particular to this run; call it before anything heavy starts."""
    commit = get_commit_info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit["id"],
        "uncommitted_changes": commit["dirty"],
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def fingerprint(machine_info: dict[str, Any]) -> str:
    """Name of the folder that holds the results of machines like this one."""
    cpu = machine_info["cpu"]
    text = machine_info["gpu"] or (
        f"{cpu['brand_raw']} family{cpu['family']} model{cpu['model']} "
        f"{machine_info['cores']}cores {machine_info['best_isa']}"
    )
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def save(folder: Path, machine_info: dict[str, Any], run: dict[str, Any], found: list[Row]) -> Path:
    """Write one run below `folder`, in the folder of its machine; the file is named by its date."""
    target = folder / fingerprint(machine_info)
    target.mkdir(parents=True, exist_ok=True)
    name = f"{run['date'][:19].replace(':', '')}-{run['commit'][:8]}.json"
    document = {
        "schema": SCHEMA,
        "machine": machine_info,
        "run": run,
        "rows": [asdict(row) for row in found],
    }
    text = json.dumps(document, indent=1)
    # One line per list of samples.
    text = re.sub(r"\[\s+([-\d.e+,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    (target / name).write_text(text + "\n", encoding="utf-8")
    return target / name


class Recorder:
    """Collects rows and keeps the file up to date, so that an interrupted run is not lost.

    Args:
        folder: Where results go; None writes nothing.
        suite: A key of ``registry.SUITES``.
    """

    def __init__(self, folder: Path | None, suite: str) -> None:
        self.folder, self.suite = folder, suite
        self.run = run_info()
        self.rows: list[Row] = []
        self.path: Path | None = None
        self._machine: dict[str, Any] | None = None

    def add(self, found: list[Row]) -> None:
        """Add the rows of one operation."""
        self.rows += found
        if self.folder is not None and any(row.rounds for row in self.rows):
            self._machine = self._machine or machine(self.suite)
            self.path = save(self.folder, self._machine, self.run, self.rows)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[Row]]:
    """Read a file written by :func:`save`.

    Returns:
        Machine, run and rows.

    Raises:
        ValueError: The file is of another schema, or a row lacks or adds a field.
    """
    document = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a benchmark result of schema {SCHEMA}")
    names = {column.name for column in fields(Row)}
    for index, row in enumerate(document["rows"]):
        if set(row) != names:
            raise ValueError(f"{path}: row {index} differs in {sorted(set(row) ^ names)}")
    return document["machine"], document["run"], [Row(**row) for row in document["rows"]]

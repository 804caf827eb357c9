"""What setup.py checks, and how many compile jobs it starts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("jobs", ROOT / "cmake" / "jobs.py")
jobs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(jobs)

GIB = 1024**3


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),  # the affinity mask, not the 64 cores of the machine
        ({"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:  {6 * 1024**2} kB\n"}, 3),
        ({"proc/meminfo": "MemAvailable:  1000 kB\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            2,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        (
            {
                "sys/fs/cgroup/memory.max": f"{12 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
                "proc/meminfo": f"MemAvailable: {100 * 1024**2} kB\n",
            },
            5,
        ),
        (
            {
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "7\n",
            },
            16,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{6 * GIB}\n",
            },
            1,
        ),
    ],
)
def test_limits(tmp_path, files, expected):
    assert jobs.job_count(machine(tmp_path, files)) == expected


def test_max_jobs_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", " 40 ")
    assert jobs.job_count(machine(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000"})) == 40


@pytest.mark.parametrize("wish", ["0", "-1", "auto", "2.5", "1e3"])
def test_bad_max_jobs(tmp_path, monkeypatch, wish):
    monkeypatch.setenv("MAX_JOBS", wish)
    with pytest.raises(SystemExit, match=f"MAX_JOBS must be a positive integer.*{wish}"):
        jobs.job_count(tmp_path)


def test_an_old_setuptools_is_refused_in_one_line():
    code = (
        "import runpy, setuptools, sys\n"
        "setuptools.__version__, sys.argv = '65.5.0', ['setup.py', '--version']\n"
        "runpy.run_path('setup.py')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "setuptools >= 77" in line
    assert "65.5.0" in line

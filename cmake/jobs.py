"""How many compile jobs a build may run: MAX_JOBS, or what cores and memory allow."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

BYTES_PER_JOB = 2 * 1024**3


def job_count(root: Path = Path("/")) -> int:
    """Compile jobs: MAX_JOBS, else as many as the available cores and memory allow.

    Args:
        root: Folder that holds ``proc`` and ``sys``.

    Raises:
        SystemExit: MAX_JOBS is not a positive integer.

    """
    wish = os.environ.get("MAX_JOBS", "").strip()
    if wish:
        if not wish.isdecimal() or int(wish) < 1:
            raise SystemExit(f"MAX_JOBS must be a positive integer or unset, got {wish!r}")
        return int(wish)
    memory = available_memory(root)
    jobs = available_cores(root)
    return jobs if memory is None else max(1, min(jobs, memory // BYTES_PER_JOB))


def available_cores(root: Path) -> int:
    """Cores in the affinity mask of this process, capped by the CPU quota of its container."""
    groups = root / "sys/fs/cgroup"
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota, period = [*_read(groups / "cpu.max").split(), "", ""][:2]  # cgroup version 2
    if not quota:
        quota = _read(groups / "cpu/cpu.cfs_quota_us").strip()
        period = _read(groups / "cpu/cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal():  # "max" and -1 mean no quota
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def available_memory(root: Path) -> int | None:
    """Bytes that are free on the machine and within the limit of the container, if known."""
    groups = root / "sys/fs/cgroup"
    known = []
    free = re.search(r"MemAvailable:\s+(\d+)", _read(root / "proc/meminfo"))
    if free:
        known.append(int(free.group(1)) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        numbers = _read(groups / limit).strip(), _read(groups / used).strip()
        if all(number.isdecimal() for number in numbers):
            known.append(max(0, int(numbers[0]) - int(numbers[1])))
    return min(known, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

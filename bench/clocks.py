"""How time and memory of a call are measured: on the CPU, and on a GPU."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class HostClock:
    """Wall time, CPU time of all threads, and resident memory of this process."""

    device = "cpu"
    warm_up = 0  # calls before the first that is timed, besides the verified one

    def seconds(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Wall and CPU seconds that `work` takes."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    def peak(self, work: Callable[[], Any]) -> int | None:
        """Largest resident memory during `work` above that before it, in bytes, if it is known."""
        self.trim()
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
            before = _status("VmRSS")
        except OSError:
            before = None
        work()
        return None if before is None else _status("VmHWM") - before

    def trim(self) -> None:
        """Give freed memory back, so that resident memory means live memory."""
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


class DeviceClock:
    """CUDA events around the work, CPU time of the host, and memory of torch's allocator."""

    device = "cuda"
    warm_up = 2  # autotuning

    def seconds(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds on the device, and CPU seconds of the host, that `work` takes."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cpu = time.process_time()
        start.record()
        work()
        end.record()
        host = time.process_time() - cpu
        end.synchronize()
        return start.elapsed_time(end) / 1e3, host

    def peak(self, work: Callable[[], Any]) -> int:
        """Largest allocation during `work` above that before it, in bytes."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def trim(self) -> None:
        """Return cached blocks to the device."""
        torch.cuda.empty_cache()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)

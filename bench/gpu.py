"""The suite on a GPU: `python -m oneshot.bench.gpu`, one table; part of `make gpu`.

Everyone is verified against float64 before being timed. Times are CUDA events around bursts of
calls, after a warm-up, in interleaved rounds; inputs of less than the second-level cache stay there
between calls. With --dry-run everything that needs no GPU runs on CPU tensors of tiny sizes.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from oneshot._load import cuda_library
from oneshot.bench import gpu_operations, verify
from oneshot.bench.registry import Call, Foreign, Inputs, Operation, Provider
from oneshot.bench.render import seconds as readable
from oneshot.bench.results import summary

WARM_UP = 3  # calls before the first that is timed: compilation, autotuning, caches
BURST_SECONDS = 0.005  # least length of what two events enclose


@dataclass
class Entry:
    """One provider of one operation: the outcome of its verification, and its times."""

    provider: Provider
    call: Call | None
    status: str
    detail: str = ""
    error: float | None = None
    burst: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None


def moved(value: Any, device: str) -> Any:
    """Tensors, also inside tuples, on the device."""
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


class Bench:
    """The inputs of one operation on the device, and those who compute it."""

    def __init__(self, operation: Operation, device: str) -> None:
        torch.manual_seed(0)
        self.operation, self.device = operation, device
        self.inputs: Inputs = {k: moved(v, device) for k, v in operation.make().items()}
        spoiled = {key for provider in operation.providers for key in provider.mutates}
        self.pristine = {key: self.inputs[key].clone() for key in spoiled}
        self.rows, want = verify.expected(operation, self.inputs)
        self.want = self._judged(want)
        self.entries = [self._verified(provider) for provider in operation.providers]

    def _judged(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        judge = self.operation.judge
        return outputs if judge is None else judge(self.inputs, outputs)

    def _verified(self, provider: Provider) -> Entry:
        if self.device == "cpu" and provider.name == "torch.compile":
            return Entry(provider, None, "absent", "compiled for a GPU only")
        try:
            call = provider.load()
        except ImportError as error:
            return Entry(provider, None, "absent", str(error))
        if isinstance(call, Foreign):
            return Entry(provider, None, "absent", "computes on arrays of the CPU")
        entry = Entry(provider, call, "ok")
        try:
            got = self.run(entry)
            if provider.kind != "floor":
                found = verify.compare(
                    self.operation, provider, self._judged(got), self.rows, self.want
                )
                entry.status, entry.detail, entry.error = found.status, found.detail, found.error
        except Exception as error:
            entry.status, entry.detail = "failed", f"{type(error).__name__}: {error}"
        self._restore(provider)
        return entry

    def run(self, entry: Entry) -> tuple[torch.Tensor, ...]:
        """One unit of work."""
        assert entry.call is not None
        bare = entry.provider.kind == "floor"
        return verify.step(entry.call, self.inputs, () if bare else self.operation.differentiate)

    def _restore(self, provider: Provider) -> None:
        for key in provider.mutates:
            self.inputs[key].copy_(self.pristine[key])

    def seconds(self, entry: Entry, calls: int) -> float:
        """Seconds a call, over so many; what a call spoils is restored outside the clock."""
        bursts, length = (calls, 1) if entry.provider.mutates else (1, calls)
        total = 0.0
        for _ in range(bursts):
            total += elapsed(self.device, lambda: [self.run(entry) for _ in range(length)])
            self._restore(entry.provider)
        return total / calls

    def prepare(self, entry: Entry) -> None:
        """Warm up, measure memory, and find how many calls make a burst."""
        for _ in range(WARM_UP):
            self.run(entry)
            self._restore(entry.provider)
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(entry)
            entry.peak = torch.cuda.max_memory_allocated() - before
            self._restore(entry.provider)
        entry.burst = max(1, min(1000, round(BURST_SECONDS / max(self.seconds(entry, 1), 1e-6))))


def elapsed(device: str, work: Callable[[], Any]) -> float:
    """Seconds that `work` takes on the device."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(operation: Operation, device: str, rounds: int) -> list[Entry]:
    """Verify everyone, then time those who passed, each once a round, in random order."""
    bench = Bench(operation, device)
    running = [entry for entry in bench.entries if entry.status == "ok"]
    for entry in running:
        bench.prepare(entry)
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(running)
        for entry in running:
            entry.seconds.append(bench.seconds(entry, entry.burst))
    return bench.entries


def lines(operation: Operation, entries: list[Entry], by: str) -> list[str]:
    """The rows of the table that belong to one operation; `by`: who computes our ops."""
    medians = {e.provider.name: summary(e.seconds)["median"] for e in entries if e.seconds}
    found = []
    for entry in entries:
        ours = entry.provider.kind == "ours"
        cells = [operation.id, f"{entry.provider.name} [{by}]" if ours else entry.provider.name]
        if entry.seconds:
            spread = summary(entry.seconds)
            bound = operation.floor_of(entry.provider)
            over = medians[entry.provider.name] / medians[bound] if bound in medians else None
            cells += [
                f"{readable(spread['median'])} ({readable(spread['q1'])} - "
                f"{readable(spread['q3'])})",
                "" if over is None else f"{over:.2f}x",
                "" if entry.peak is None else f"{entry.peak / 1e6:.1f} MB",
                "" if entry.error is None else f"{entry.error:.1e}",
            ]
        else:
            cells += [f"{entry.status}: {' '.join(entry.detail.split())[:120]}", "", "", ""]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main(argv: list[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: Command line.

    Returns:
        0; 1 if one of our own providers is wrong; 2 without a GPU.
    """
    parser = argparse.ArgumentParser(prog="python -m oneshot.bench.gpu", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--ours", action="store_true", help="only our own and the floors, as more rows of a table"
    )
    parser.add_argument("--select", default="", help="only operations whose name contains this")
    arguments = parser.parse_args(argv)
    device = "cpu" if arguments.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"no GPU: torch {torch.__version__} sees none (--dry-run needs none)", file=sys.stderr
        )
        return 2
    name = "no GPU, tiny sizes: a dry run" if device == "cpu" else torch.cuda.get_device_name()
    library = cuda_library()
    by = "CPU" if arguments.dry_run else "Triton" if library[0] is None else "compiled"
    if not arguments.ours:
        print(f"{name}; torch {torch.__version__}; CUDA library of oneshot: {library[1]}")
        print("| operation | provider | median (quartiles) | of its floor | memory | error |")
        print("|---|---|---|---|---|---|")
    wrong = []
    for operation in gpu_operations.operations(tiny=arguments.dry_run):
        if arguments.select not in operation.id:
            continue
        if arguments.ours:
            own = tuple(p for p in operation.providers if p.kind in ("ours", "floor"))
            operation = replace(operation, providers=own)
        entries = measure(operation, device, arguments.rounds)
        print("\n".join(lines(operation, entries, by)), flush=True)
        wrong += [
            f"{operation.id}, {entry.provider.name}: {entry.detail}"
            for entry in entries
            if entry.provider.kind == "ours" and entry.status != "ok"
        ]
        del entries
        torch.compiler.reset()
        gc.collect()
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

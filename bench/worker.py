"""A process that computes and times on request, one JSON line in, one JSON line out.

What computes our own ops is fixed once per process, so each backend (an instruction-set level; on
a GPU the compiled kernels or Triton) is a worker of its own; the parent (``measure.py``) decides
who runs when.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from oneshot._load import cuda_library, native
from oneshot.bench import registry, verify
from oneshot.bench.clocks import DeviceClock, HostClock
from oneshot.bench.registry import Call, Foreign, Inputs, Operation, Provider


class Worker:
    """Holds the inputs of one operation and runs its providers.

    Args:
        suite: A key of ``registry.SUITES``.
    """

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.clock = DeviceClock() if registry.SUITES[suite].device == "cuda" else HostClock()
        self.operation: Operation | None = None
        self.inputs: Inputs = {}
        self.pristine: dict[str, torch.Tensor] = {}
        self.calls: dict[str, Call] = {}
        self.foreign: set[str] = set()
        self.want: tuple[torch.Tensor | None, tuple[torch.Tensor, ...]] | None = None

    def describe(self) -> dict[str, Any]:
        """What this process runs with."""
        if self.clock.device == "cuda":
            backend = "Triton" if cuda_library()[0] is None else "CUDA"
        else:
            module, _ = native()
            backend = module.isa() if module else "none"
        return {"isa": backend, "threads": torch.get_num_threads()}

    def open(self, operation: str) -> dict[str, Any]:
        """Make the inputs of an operation."""
        self.close()
        self.operation = registry.find(operation, self.suite)
        torch.manual_seed(0)
        made = self.operation.make()
        self.inputs = {key: _moved(value, self.clock.device) for key, value in made.items()}
        return {}

    def close(self) -> dict[str, Any]:
        """Free everything the operation held."""
        self.operation, self.want = None, None
        self.inputs, self.pristine, self.calls, self.foreign = {}, {}, {}, set()
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        self.clock.trim()
        return {}

    def verify(self, provider: str) -> dict[str, Any]:
        """Load a provider (torch.compile compiles here) and judge its first result."""
        assert self.operation is not None
        chosen = self.operation.provider(provider)
        if self.want is None:
            rows, want = verify.expected(self.operation, self.inputs)
            self.want = rows, self._judged(want)
        for key in chosen.mutates:
            self.pristine.setdefault(key, self.inputs[key].clone())
        threads = torch.get_num_threads()
        verdict = verify.Verdict("ok")
        try:
            call, outputs = self._loaded(chosen)
            got = outputs(self._run(chosen, call))
            if chosen.kind != "floor":
                verdict = verify.compare(self.operation, chosen, self._judged(got), *self.want)
        except ImportError as error:
            verdict = verify.Verdict("not installed", str(error))
        except Exception as error:
            verdict = verify.Verdict("failed", f"{type(error).__name__}: {error}")
        self._restore(chosen)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # an imported library meddled
        if verdict.status == "ok":
            self.calls[provider] = call
        return vars(verdict)

    def calibrate(self, provider: str, min_time: float) -> dict[str, Any]:
        """Peak memory of one call, and calls per round so that it lasts `min_time` seconds."""
        chosen, call = self._chosen(provider)
        for _ in range(self.clock.warm_up):
            self._run(chosen, call)
            self._restore(chosen)
        once: list[float] = []
        peak = self.clock.peak(
            lambda: once.append(self.clock.seconds(lambda: self._run(chosen, call))[0])
        )
        self._restore(chosen)
        iterations, wall = 1, once[0]
        if wall < 50 * min_time:  # that call paid for page faults and caches
            wall = min(wall, self._timed(provider, 1)["wall"])
        while wall * iterations < min_time and iterations < 1_000_000:
            iterations = math.ceil(min(min_time / max(wall, 1e-7), 100 * iterations))
            wall = min(wall, self._timed(provider, iterations)["wall"])
        return {"iterations": iterations, "peak_memory": peak}

    def time(self, provider: str, iterations: int) -> dict[str, Any]:
        """Seconds per call, wall and CPU of all threads, over `iterations` calls."""
        if iterations > 1:  # short calls: the caches and threads are another process's until now
            self._timed(provider, 1)
        return self._timed(provider, iterations)

    def _timed(self, provider: str, iterations: int) -> dict[str, Any]:
        chosen, call = self._chosen(provider)
        wall = cpu = 0.0
        # What a call spoils is restored after it, outside the clock.
        bursts, length = (iterations, 1) if chosen.mutates else (1, iterations)
        for _ in range(bursts):
            once = self.clock.seconds(lambda: [self._run(chosen, call) for _ in range(length)])
            wall, cpu = wall + once[0], cpu + once[1]
            self._restore(chosen)
        return {"wall": wall / iterations, "cpu": cpu / iterations}

    def _loaded(self, provider: Provider) -> tuple[Call, Callable[[Any], Any]]:
        """The provider's call, and what makes tensors of its result, which is not timed."""
        loaded = provider.load()
        if not isinstance(loaded, Foreign):
            return loaded, lambda outputs: outputs
        if self.clock.device != "cpu":
            raise ImportError("computes on arrays of the CPU")
        self.foreign.add(provider.name)
        arguments = loaded.prepare(self.inputs)
        return lambda _: loaded.run(arguments), loaded.outputs

    def _judged(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        assert self.operation is not None
        judge = self.operation.judge
        return outputs if judge is None else judge(self.inputs, outputs)

    def _chosen(self, provider: str) -> tuple[Provider, Call]:
        assert self.operation is not None
        return self.operation.provider(provider), self.calls[provider]

    def _run(self, provider: Provider, call: Call) -> tuple[torch.Tensor, ...]:
        assert self.operation is not None
        bare = provider.kind == "floor" or provider.name in self.foreign
        return verify.step(call, self.inputs, () if bare else self.operation.differentiate)

    def _restore(self, provider: Provider) -> None:
        for key in provider.mutates:
            self.inputs[key].copy_(self.pristine[key])


def _moved(value: Any, device: str) -> Any:
    """Tensors, also inside tuples, on the device."""
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _confine() -> None:
    """Keep to as many cores as torch has threads.

    A library with a thread pool of its own (XLA) counts cores and knows nothing of ours.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-torch.get_num_threads() :])


def main() -> None:
    """Serve requests until standard input closes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not reach the channel
    if registry.SUITES[sys.argv[1]].device == "cpu":
        _confine()
    gc.disable()  # a collection costs up to a second here; it runs between operations only
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except Exception:
            reply = {"raised": traceback.format_exc()}
        print(json.dumps(reply), file=channel, flush=True)


if __name__ == "__main__":
    main()

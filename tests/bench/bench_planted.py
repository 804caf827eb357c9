"""A small operation with planted providers, and a worker that lives in the test's process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from oneshot.bench import worker as worker_module
from oneshot.bench.floors import floor
from oneshot.bench.registry import Inputs, Operation, Provider, plain


def softmax(inputs: Inputs) -> tuple[torch.Tensor]:
    return (inputs["x"].softmax(-1),)


def operation(*providers: Provider, backward: bool = False, **changes: Any) -> Operation:
    """Softmax of [5, 63], its definition as oracle, plus the given providers and a floor."""

    def make() -> Inputs:
        return {"x": torch.randn(5, 63), "cotangents": (torch.randn(5, 63),)}

    settings: dict[str, Any] = {
        "family": "test",
        "kernel": "softmax",
        "shape": "5x63",
        "dtype": "float32",
        "mode": "forward+backward" if backward else "forward",
        "make": make,
        "oracle": softmax,
        "providers": (*providers, floor("read", read=("x",))),
        "differentiate": ("x",) if backward else (),
    }
    return Operation(**{**settings, **changes})


def provider(call: Any, name: str = "planted", kind: Any = "peer", **changes: Any) -> Provider:
    return Provider(name, kind, plain(call), **changes)


def local_worker(monkeypatch: Any, *operations: Operation, isa: str = "scalar") -> Any:
    """Answers like a worker process, without one."""
    by_id = {operation.id: operation for operation in operations}
    monkeypatch.setattr(worker_module.registry, "find", lambda wanted, suite: by_id[wanted])
    served = worker_module.Worker("cpu")

    def ask(do: str, **arguments: Any) -> dict[str, Any]:
        return getattr(served, do)(**arguments)

    return SimpleNamespace(isa=isa, threads=1, alive=True, ask=ask, served=served)

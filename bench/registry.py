"""What is measured: operations (op x shape x dtype x mode) and the providers that compute them.

A family module (``bench/<family>.py``) lists its operations in ``OPERATIONS``, which are the suite
of the CPU; the suite of the GPU is in ``gpu_operations.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

FAMILIES = ("advantage", "hmm", "logprob", "policy_loss", "routing")
GROUPS = (*FAMILIES, "step")  # and whole training steps

Inputs = dict[str, Any]
Call = Callable[[Inputs], tuple[torch.Tensor, ...]]
Kind = Literal["ours", "reference", "peer", "floor"]


@dataclass(frozen=True)
class Foreign:
    """A call on another library's own arrays; turning tensors into those and back is not timed.

    Args:
        prepare: Inputs -> what `run` takes, in the layout the library likes best.
        run: The timed part. It differentiates by itself where the operation is differentiated.
        outputs: What `run` returned -> outputs, then gradients, in the form of the oracle.
    """

    prepare: Callable[[Inputs], Any]
    run: Callable[[Any], Any]
    outputs: Callable[[Any], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Provider:
    """One way to compute an operation.

    Args:
        name: Shown in tables; unique within the operation.
        kind: "ours" runs once per backend (an instruction-set level; on a GPU compiled or Triton);
            "peer" competes for best peer; "floor" is a bound that computes nothing (a read, a copy)
            and is therefore not verified.
        load: Imports what the provider needs and returns the callable: inputs -> outputs in the
            form of the oracle; or a :class:`Foreign`. An ImportError means "not installed".
        mutates: Names of inputs that the call overwrites; restored, untimed, after each call.
        floor: Name of the floor this provider is compared with; default: the operation's first.
        coarse: It computes in the half format of its inputs, so single elements of its gradient
            are noise where terms cancel: only the norm of its error is judged.
    """

    name: str
    kind: Kind
    load: Callable[[], Call | Foreign]
    mutates: tuple[str, ...] = ()
    floor: str | None = None
    coarse: bool = False


def operation_id(kernel: str, variant: str, shape: str, dtype: str, mode: str) -> str:
    """Name of an operation on command lines and in reports."""
    return "-".join(part for part in (kernel, variant, shape, dtype, mode) if part)


@dataclass(frozen=True)
class Operation:
    """One op at one shape, dtype and mode, with all providers that can compute it.

    Args:
        family: Word of the family; also the name of its module here.
        kernel: Public function of ``oneshot.ops``.
        shape: Sizes that matter, e.g. "2048x151936".
        dtype: Dtype of the main input, e.g. "float32".
        mode: "forward" or "forward+backward".
        make: Seeded inputs by name; "cotangents" holds one tensor per output if differentiated.
        oracle: The definition; receives the inputs in float64 and must be differentiable.
        providers: All that is measured, floors included.
        differentiate: Names of the inputs whose gradient is part of the work.
        quick: Also part of ``--quick``.
        variant: Which of several settings of the same kernel, e.g. "dapo".
        verify_rows: Compare only this many rows (first dimension of every input and output, where
            rows are independent); the calls themselves run on everything. Default: compare all.
        judge: What is compared, untimed, where several outputs are right (a best path among ties, a
            sample): inputs and outputs -> tensors. Default: the outputs themselves.
    """

    family: str
    kernel: str
    shape: str
    dtype: str
    mode: Literal["forward", "forward+backward"]
    make: Callable[[], Inputs]
    oracle: Call
    providers: tuple[Provider, ...]
    differentiate: tuple[str, ...] = ()
    quick: bool = True
    variant: str = ""
    verify_rows: int | None = None
    judge: Callable[[Inputs, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]] | None = None

    @property
    def id(self) -> str:
        """Unique name."""
        return operation_id(self.kernel, self.variant, self.shape, self.dtype, self.mode)

    def provider(self, name: str) -> Provider:
        """The provider of this name."""
        return {provider.name: provider for provider in self.providers}[name]

    def floor_of(self, provider: Provider) -> str | None:
        """Name of the floor that bounds `provider`; None for floors and where there is none."""
        floors = [other.name for other in self.providers if other.kind == "floor"]
        if provider.kind == "floor" or not floors:
            return None
        return provider.floor or floors[0]


@dataclass(frozen=True)
class Suite:
    """Operations and where they run.

    Args:
        device: "cpu" or "cuda".
        list: Returns the operations of some families.
    """

    device: Literal["cpu", "cuda"]
    list: Callable[[Iterable[str]], list[Operation]]


def _of_families(families: Iterable[str]) -> list[Operation]:
    found: list[Operation] = []
    for family in families:
        found += importlib.import_module(f"oneshot.bench.{family}").OPERATIONS
    return found


def _on_gpu(families: Iterable[str]) -> list[Operation]:
    found = importlib.import_module("oneshot.bench.gpu_operations").operations()
    return [operation for operation in found if operation.family in families]


def _rehearsal(families: Iterable[str]) -> list[Operation]:
    found = importlib.import_module("oneshot.bench.gpu_operations").operations(tiny=True)
    return [
        # Compiling for the CPU would take longer than everything else.
        replace(o, providers=tuple(p for p in o.providers if p.name != "torch.compile"))
        for o in found
        if o.family in families
    ]


SUITES = {
    "cpu": Suite("cpu", _of_families),
    "gpu": Suite("cuda", _on_gpu),
    # The operations of the GPU at sizes that a CPU does at once: a rehearsal without a GPU.
    "gpu-rehearsal": Suite("cpu", _rehearsal),
}


def operations(
    families: Iterable[str] = GROUPS, *, quick: bool = False, suite: str = "cpu"
) -> list[Operation]:
    """All operations of the families in a suite, or the quick ones only."""
    found = SUITES[suite].list(families)
    return [operation for operation in found if operation.quick or not quick]


def find(wanted: str, suite: str = "cpu") -> Operation:
    """The operation of this id, from all families of a suite."""
    return {operation.id: operation for operation in operations(suite=suite)}[wanted]


def plain(call: Call) -> Callable[[], Call]:
    """A `load` for a callable that needs nothing imported."""
    return lambda: call


def compiled(call: Call) -> Callable[[], Call]:
    """A `load` that gives `call` to torch.compile (static shapes: its best case)."""
    return lambda: torch.compile(call, fullgraph=True, dynamic=False)

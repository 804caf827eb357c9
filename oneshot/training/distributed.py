"""Several processes of one run, started by `torchrun` or `accelerate launch`.

Both set RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process; only these variables
are used. Large models are sharded by torch's FSDP2 (`shard`). Small trainable parts are replicated
and their gradients summed. With one process everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from oneshot.training.errors import RunError

T = TypeVar("T")

# Longest time that one process may be behind another: a rollout of long responses.
PATIENCE = timedelta(hours=1)


class ProcessLostError(RunError):
    """Another process of the run has died or hangs."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this one; the first (0) writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.size > 1:
            dist.barrier()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's share: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, item: T) -> list[T]:
        """The items of all processes, in every process, by rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in every process; the others do not call it."""
        return self.gather(make() if self.is_main else None)[0]  # type: ignore[return-value]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over the processes."""
        if self.size == 1:
            return list(values)
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def means(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Means of metrics over the processes, whose shares are equally large."""
        sums = self.sums(list(metrics.values()))
        return {name: total / self.size for name, total in zip(metrics, sums, strict=True)}

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sums the gradients of whole (not sharded) parameters over the processes.

        A parameter that only some of the processes used has a gradient in all of them afterwards.
        """
        if self.size == 1:
            return
        used = self.gather([parameter.grad is not None for parameter in parameters])
        for parameter, anywhere in zip(parameters, map(any, zip(*used, strict=True)), strict=True):
            if anywhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def concatenated(self, rows: Tensor) -> tuple[Tensor, slice]:
        """The rows of all processes, by rank, in every process; and the slice of this process.

        For computations that need the whole rollout, such as its mean.
        """
        if self.size == 1:
            return rows, slice(0, len(rows))
        parts = self.gather(rows.cpu())
        begin = sum(len(part) for part in parts[: self.rank])
        return torch.cat(parts).to(rows.device), slice(begin, begin + len(rows))

    def maximum(self, value: float) -> float:
        """The largest of the numbers of all processes."""
        return max(self.gather(value))

    def padded(self, batches: list[T]) -> list[T]:
        """The batches, the last one repeated up to the largest number of any process.

        A pass through a sharded model is a collective call: all must make equally many.
        """
        most = int(self.maximum(len(batches)))
        return batches + batches[-1:] * (most - len(batches))


def resolve_device(device: str, option: str = "model.device") -> str:
    """A torch device; "auto" is the first GPU if there is one, else the CPU.

    "cuda" is the GPU of this process inside `joined`.

    Args:
        device: Value of an option.
        option: Its name, for the message of an error.

    Raises:
        ValueError: torch does not know such a device, or there is no GPU for it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f'{option} must be "auto", "cpu" or "cuda", got {device!r}') from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{option}: {device} was requested, but torch finds no CUDA device; use cpu or auto"
        )
    return device


def interleave(parts: Sequence[Sequence[T]], block: int) -> list[T]:
    """The items of all processes in the order of the whole batch.

    Args:
        parts: Of each process, the items of its prompts (`Processes.share`).
        block: Items per prompt.
    """
    count = len(parts[0]) // block
    return [x for i in range(count) for part in parts for x in part[i * block : (i + 1) * block]]


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Joins the other processes of the run inside the block, if there are any.

    The process group stays for the next run in the same processes (a second group at the same
    address may meet what is left of the first and wait forever); one that already exists is used.

    Args:
        device: "cpu" (gloo) or a GPU (NCCL, each process on its own).

    Raises:
        ProcessLostError: In the block, when a call to the others fails.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start the run with "
            "torchrun or accelerate launch"
        )
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    try:
        yield Processes(rank, size)
    except BaseException as error:
        lost = isinstance(error, RuntimeError) and _from_collective(error)
        _leave()  # at once, not when this process ends: the others wait for it
        if lost:
            raise ProcessLostError(
                f"process {rank} of {size} lost another process of the run ({error}); look at its "
                "log for the cause, then continue with --resume from the newest checkpoint"
            ) from error
        raise


def _from_collective(error: RuntimeError) -> bool:
    """Whether torch.distributed raised the error.

    NCCL's failures have a class; gloo's are plain RuntimeErrors, known by where they were raised.
    """
    frames = traceback.walk_tb(error.__traceback__)
    modules = (frame.f_globals.get("__name__", "") for frame, _ in frames)
    return isinstance(error, dist.DistError) or any(
        m.startswith("torch.distributed") for m in modules
    )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(model: torch.nn.Module, device: str, processes: Processes, mixed: bool = False) -> None:
    """Spreads the parameters of a model over the processes with FSDP2, block by block.

    Gradients are summed, not averaged, over the processes.

    Args:
        model: Of float32 weights, when `mixed`.
        device: "cpu" or a GPU.
        processes: Those of the run.
        mixed: Compute in bfloat16; shards and gradient sums stay in float32.
    """
    if processes.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu" if device == "cpu" else "cuda", (processes.size,))
    names: Any = getattr(model, "_no_split_modules", None) or ()  # transformers: its blocks
    blocks = [m for m in model.modules() if type(m).__name__ in names]
    types = MixedPrecisionPolicy()
    if mixed:
        types = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in [*blocks, model]:
        # The root, too: else its parameters stay whole after a pass without a backward pass.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=types)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as a plain one (all processes must call this); a plain one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor; a plain one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(tensor: Tensor, pattern: Any) -> Tensor:
    """A plain tensor sharded as `pattern` is; all processes have the same values."""
    if not hasattr(pattern, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements)

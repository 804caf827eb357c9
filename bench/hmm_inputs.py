"""Shapes, inputs and floors that the operations of the `hmm` family share."""

from __future__ import annotations

import torch

from oneshot.bench.floors import floor
from oneshot.bench.registry import Inputs, Provider

Shape = tuple[int, int, int]
SMALL, MIDDLE, LARGE, LONG = (32, 128, 9), (64, 256, 17), (8, 512, 64), (1, 100_000, 8)
GEMM = (32, 256, 512)
# At T = 1e5 a log-space loop takes 7 s and its float32 posteriors are off by 1e-3 and more.
LONGEST_FOR_LOOPS = 1000
# torch-struct holds K^3 temporaries: 2 GB at the middle shape, more than 8 GB at the large one.
MOST_STATES_FOR_TORCH_STRUCT = 17


def model(shape: Shape, shared: bool, **more: object) -> Inputs:
    """A random HMM: log-probabilities, emissions that keep log Z within some nats a step of 0."""
    batch, steps, states = shape
    matrices = (states, states) if shared else (batch, steps - 1, states, states)
    return {
        "log_emit": torch.randn(batch, steps, states) - 0.37,
        "log_init": torch.randn(states).log_softmax(-1),
        "log_trans": torch.randn(matrices).mul_(2).log_softmax(-1),
        **more,
    }


def name_of(shape: Shape) -> str:
    """As it appears in names of operations."""
    return "x".join(map(str, shape))


def memory(shared: bool, *, write: bool) -> Provider:
    """Potentials read once; posteriors, of their size, written once."""
    if not write:
        read = ("log_emit",) if shared else ("log_trans", "log_emit")
        return floor("read potentials", read=read)
    copy = ("log_emit",) if shared else ("log_trans", "log_emit")
    return floor("read potentials, write posteriors", copy=copy)

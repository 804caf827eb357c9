"""Benchmarks of the `advantage` family."""

from __future__ import annotations

import torch

from oneshot import ops
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.reference import advantage as reference


def _ragged_mask(rows: int, steps: int) -> torch.Tensor:
    """True up to a random length in every row."""
    return torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))


def _whiten_formula(inputs: Inputs) -> tuple[torch.Tensor]:
    values, mask = inputs["values"], inputs["mask"]
    count = mask.sum()
    mean = torch.where(mask, values, 0).sum() / count
    deviation = torch.where(mask, values - mean, 0)
    return (deviation * torch.rsqrt(deviation.square().sum() / (count - 1) + 1e-8),)


def _whiten_verl() -> Call:
    from verl.utils.torch_functional import masked_whiten

    # verl leaves numbers in masked places; its callers mask them afterwards, so it does here.
    return lambda inputs: (masked_whiten(inputs["values"], inputs["mask"]) * inputs["mask"],)


def _whiten(rows: int, steps: int) -> Operation:
    return Operation(
        family="advantage",
        kernel="whiten",
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward",
        make=lambda: {
            "values": torch.randn(rows, steps) * 3 + 1,
            "mask": _ragged_mask(rows, steps),
        },
        oracle=lambda inputs: (reference.whiten(inputs["values"], inputs["mask"], True, 1e-8),),
        providers=(
            Provider("oneshot", "ours", plain(lambda x: (ops.whiten(x["values"], x["mask"]),))),
            Provider(
                "reference",
                "reference",
                plain(lambda x: (reference.whiten(x["values"], x["mask"], True, 1e-8),)),
            ),
            Provider("torch", "peer", plain(_whiten_formula)),
            Provider("torch.compile", "peer", compiled(_whiten_formula)),
            Provider("verl masked_whiten", "peer", _whiten_verl),
            floor("read inputs + write output", read=("mask",), copy=("values",)),
        ),
    )


OPERATIONS = [_whiten(8, 16), _whiten(1024, 4096)]

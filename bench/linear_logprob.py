"""Benchmarks of the head without logits. Shapes are rows x width x vocabulary.

The floor is the matrix products alone, in the same tiles: one forward, two more backward. An
implementation that computes logits again in backward needs a fourth.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from oneshot import ops
from oneshot.bench.registry import Call, Inputs, Operation, Provider, plain

Pair = tuple[torch.Tensor, torch.Tensor]
COLUMNS = 8192  # of a tile of the floor
TRL_COLUMNS = 32768  # as TRL's trainers call it


def _judged(inputs: Inputs, logprobs: torch.Tensor, entropy: torch.Tensor) -> Pair:
    """In the dtype of the inputs, by whose tolerance they are judged: logits are rounded to it."""
    return logprobs.to(inputs["hidden"].dtype), entropy.to(inputs["hidden"].dtype)


def _ours(inputs: Inputs) -> Pair:
    hidden, weight, targets = inputs["hidden"], inputs["weight"], inputs["targets"]
    return _judged(inputs, *ops.linear_token_logprobs_and_entropy(hidden, weight, targets))


def _formula(inputs: Inputs) -> Pair:
    logp = torch.log_softmax(functional.linear(inputs["hidden"], inputs["weight"]), -1)
    chosen = logp.gather(-1, inputs["targets"].unsqueeze(-1)).squeeze(-1)
    return chosen, -(logp.exp() * logp).sum(-1)


def _materialised(inputs: Inputs) -> Pair:
    logits = functional.linear(inputs["hidden"], inputs["weight"])
    outputs = ops.token_logprobs_and_entropy(logits, inputs["targets"], inplace_backward=True)
    return _judged(inputs, *outputs)


def _trl() -> Call:
    import trl.trainer.utils  # noqa: F401  (its backward imports it)
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def call(inputs: Inputs) -> Pair:
        logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
            inputs["hidden"], inputs["weight"], None, inputs["targets"], 1.0, TRL_COLUMNS, None,
            1.0, ("log_probs", "entropy"),
        )  # fmt: skip
        return _judged(inputs, logprobs, entropy)

    return call


def _products(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """One product a tile, into the same memory."""
    hidden, weight = inputs["hidden"], inputs["weight"]
    tile = hidden.new_empty(len(hidden), COLUMNS)
    for part in weight.split(COLUMNS):
        torch.mm(hidden, part.t(), out=tile[:, : len(part)])
    return (tile,)


def _all_products(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Those of forward, and with the gradient of a tile those of backward."""
    (tile,) = _products(inputs)
    hidden, weight = inputs["hidden"], inputs["weight"]
    grad_hidden, grad_weight = torch.zeros_like(hidden), torch.empty_like(weight)
    for part, out in zip(weight.split(COLUMNS), grad_weight.split(COLUMNS), strict=True):
        grad = tile[:, : len(part)]
        torch.mm(grad.t(), hidden, out=out)
        grad_hidden.addmm_(grad, part)
    return grad_hidden, grad_weight


def operation(
    rows: int, width: int, vocabulary: int, dtype: str, mode: str, *, quick: bool
) -> Operation:
    """linear_token_logprobs_and_entropy, one target a row, gradients of hidden and weight."""
    backward = mode == "forward+backward"

    def make() -> Inputs:
        kind = getattr(torch, dtype)
        return {
            "hidden": torch.empty(rows, width, dtype=kind).normal_(),
            "weight": torch.empty(vocabulary, width, dtype=kind).normal_(0, 3 / width**0.5),
            "targets": torch.randint(vocabulary, (rows,)),
            "cotangents": (torch.randn(rows), torch.randn(rows)),
        }

    rounded = dtype == "bfloat16"
    return Operation(
        family="logprob",
        kernel="linear_token_logprobs_and_entropy",
        shape=f"{rows}x{width}x{vocabulary}",
        dtype=dtype,
        mode="forward+backward" if backward else "forward",
        make=make,
        oracle=_formula,
        providers=(
            Provider("oneshot", "ours", plain(_ours), coarse=rounded),
            Provider("oneshot with logits", "ours", plain(_materialised), coarse=rounded),
            Provider("torch", "peer", plain(_formula), coarse=rounded),
            Provider("TRL", "peer", _trl, coarse=rounded),
            Provider("matrix products", "floor", plain(_all_products if backward else _products)),
        ),
        differentiate=("hidden", "weight") if backward else (),
        quick=quick,
    )


OPERATIONS = [
    operation(64, 128, 5003, "float32", "forward+backward", quick=True),
    *(
        operation(512, 896, 151936, dtype, mode, quick=False)
        for dtype in ("float32", "bfloat16")
        for mode in ("forward", "forward+backward")
    ),
]

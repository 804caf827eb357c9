"""Benchmarks of the `logprob` family; the head without logits is in `linear_logprob.py`."""

from __future__ import annotations

from typing import Any

import torch

from oneshot import ops
from oneshot.bench import linear_logprob
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.reference import logprob as reference

Pair = tuple[torch.Tensor, torch.Tensor]
# verl keeps about nine copies of the logits alive in forward and backward.
MOST_ROWS_FOR_VERL_BACKWARD = 512
# The definition in plain torch is for reading; its intermediates are several times the logits.
MOST_ROWS_FOR_REFERENCE = 64


class ModelOutput(torch.autograd.Function):
    """Stands for the output of a model: no leaf, and no view of one, in the memory of its input."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """The gradient as it is."""
        return grad


def _ours(inputs: Inputs) -> Pair:
    return ops.token_logprobs_and_entropy(inputs["logits"], inputs["targets"])


def _ours_in_place(inputs: Inputs) -> Pair:
    logits = ModelOutput.apply(inputs["logits"])
    return ops.token_logprobs_and_entropy(logits, inputs["targets"], inplace_backward=True)


def _reference(inputs: Inputs) -> Pair:
    return reference.token_logprobs_and_entropy(
        inputs["logits"], inputs["targets"], None, None, 1.0, False
    )[:2]


def _formula(inputs: Inputs) -> Pair:
    """The form that torch.compile fuses best: log-sum-exp first, then exp(x - lse)."""
    logits = inputs["logits"].float()
    total = logits.logsumexp(-1)
    logprobs = logits.gather(-1, inputs["targets"].unsqueeze(-1)).squeeze(-1) - total
    entropy = total - ((logits - total.unsqueeze(-1)).exp() * logits).sum(-1)
    return logprobs, entropy


def _trl() -> Call:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    def call(inputs: Inputs) -> Pair:
        # TRL loops over the first dimension: [4, N / 4, V] is how a batch looks there.
        logits, targets = inputs["logits"], inputs["targets"]
        batch = 4 if len(targets) % 4 == 0 else 1
        logprobs, entropy = selective_log_softmax_and_entropy(
            logits.view(batch, -1, logits.shape[-1]), targets.view(batch, -1)
        )
        return logprobs.view(-1), entropy.view(-1)

    return call


def _verl() -> Call:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    def call(inputs: Inputs) -> Pair:
        logits = inputs["logits"]
        return logprobs_from_logits(logits, inputs["targets"]), entropy_from_logits(logits)

    return call


def operation(rows: int, vocabulary: int, dtype: str, mode: str, *, quick: bool) -> Operation:
    """token_logprobs_and_entropy, one target a row."""
    backward = mode == "forward+backward"

    def make() -> Inputs:
        logits = torch.empty(rows, vocabulary, dtype=getattr(torch, dtype)).normal_(0, 3)
        targets = torch.randint(vocabulary, (rows,))
        return {
            "logits": logits,
            "targets": targets,
            "cotangents": (torch.randn(rows), torch.randn(rows)),
        }

    providers = [Provider("oneshot", "ours", plain(_ours))]
    if backward:
        providers.append(
            Provider(
                "oneshot in place",
                "ours",
                plain(_ours_in_place),
                mutates=("logits",),
                floor="read + rewrite in place",
            )
        )
    if rows <= MOST_ROWS_FOR_REFERENCE:
        providers.append(Provider("reference", "reference", plain(_reference)))
    providers += [
        Provider("torch", "peer", plain(_formula)),
        Provider("torch.compile", "peer", compiled(_formula)),
        Provider("TRL", "peer", _trl, coarse=dtype == "bfloat16"),
    ]
    if not backward or rows <= MOST_ROWS_FOR_VERL_BACKWARD:
        providers.append(Provider("verl", "peer", _verl, coarse=dtype == "bfloat16"))
    if backward:
        providers += [
            floor("read + copy to fresh memory", read=("logits",), copy=("logits",)),
            floor("read + rewrite in place", read=("logits",), rewrite=("logits",)),
        ]
    else:
        providers.append(floor("read", read=("logits",)))
    return Operation(
        family="logprob",
        kernel="token_logprobs_and_entropy",
        shape=f"{rows}x{vocabulary}",
        dtype=dtype,
        mode="forward+backward" if backward else "forward",
        make=make,
        oracle=_reference,
        providers=tuple(providers),
        differentiate=("logits",) if backward else (),
        quick=quick,
        verify_rows=min(rows, 16),
    )


OPERATIONS = [
    operation(4, 1000, "float32", "forward", quick=False),
    operation(4, 1000, "float32", "forward+backward", quick=True),
    operation(256, 151936, "float32", "forward", quick=True),
    operation(256, 151936, "float32", "forward+backward", quick=True),
    operation(256, 151936, "bfloat16", "forward+backward", quick=True),
    operation(2048, 151936, "float32", "forward", quick=False),
    operation(2048, 151936, "float32", "forward+backward", quick=False),
    operation(2048, 151936, "bfloat16", "forward", quick=False),
    operation(2048, 151936, "bfloat16", "forward+backward", quick=False),
    *linear_logprob.OPERATIONS,
]

"""Benchmarks of `combine_emissions`, and of a training step of the conditional HMM.

Shapes are BxTxSxL: S sources name one of L labels; there are K = L states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot import ops
from oneshot.bench import hmm_loops as loops
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.reference import hmm_emissions as reference


def _chmm_inputs(batch: int, steps: int, sources: int, labels: int) -> Inputs:
    """Logits as the networks of a conditional HMM emit them, and soft observations.

    The observations of a token sum to 6, which keeps log Z near 0 and changes nothing else. With a
    sum of 1, log Z is -3500 at T = 400 and float32 loops in log space get gradients wrong by 1e-3.
    """
    return {
        "emission_logits": torch.randn(batch, steps, sources, labels, labels) * 2,
        "trans_logits": torch.randn(batch, steps - 1, labels, labels) * 2,
        "observations": torch.randn(batch, steps, sources, labels).mul(2).softmax(-1) * 6,
        "log_init": torch.randn(labels).log_softmax(-1),
        "cotangents": (torch.randn(batch),),
    }


def _combine_ours(inputs: Inputs) -> tuple[Tensor]:
    found = ops.combine_emissions(inputs["emission_logits"], inputs["observations"], normalize=True)
    return (found,)


def _combine_reference(inputs: Inputs) -> tuple[Tensor]:
    return (
        reference.combine_emissions(inputs["emission_logits"], inputs["observations"], None, True),
    )


def _combine_formula(inputs: Inputs) -> tuple[Tensor]:
    """In probability space, the cheapest in plain torch."""
    matrices = inputs["emission_logits"].softmax(-1)
    return ((matrices @ inputs["observations"].unsqueeze(-1)).squeeze(-1).log().sum(2),)


def _combine_log_space(inputs: Inputs) -> tuple[Tensor]:
    return loops.chmm_potentials(inputs)[1:]


def _combine(*sizes: int, quick: bool) -> Operation:
    batch, steps, _, labels = sizes

    def make() -> Inputs:
        inputs = _chmm_inputs(*sizes)
        inputs["cotangents"] = (torch.randn(batch, steps, labels),)
        # What does not matter here must not cost the log-space peer anything.
        inputs["trans_logits"] = torch.zeros(batch, 0, labels, labels)
        return inputs

    return Operation(
        family="hmm",
        kernel="combine_emissions",
        shape="x".join(map(str, sizes)),
        dtype="float32",
        mode="forward+backward",
        make=make,
        oracle=_combine_reference,
        providers=(
            Provider("oneshot", "ours", plain(_combine_ours)),
            Provider("torch", "peer", plain(_combine_formula)),
            Provider("torch log space", "peer", plain(_combine_log_space)),
            Provider("torch.compile", "peer", compiled(_combine_formula)),
            floor(
                "read + copy to fresh memory", read=("emission_logits",), copy=("emission_logits",)
            ),
        ),
        differentiate=("emission_logits",),
        quick=quick,
    )


def _step_likelihood(inputs: Inputs) -> tuple[Tensor]:
    log_trans = inputs["trans_logits"].log_softmax(-1)
    return (ops.hmm_log_likelihood(inputs["log_init"], log_trans, *_combine_ours(inputs)),)


def _step_expected(inputs: Inputs) -> tuple[Tensor]:
    """What the public code maximises, gradients through the posteriors included."""
    log_init, log_trans = inputs["log_init"], inputs["trans_logits"].log_softmax(-1)
    (log_emit,) = _combine_ours(inputs)
    found = ops.hmm_posteriors(log_init, log_trans, log_emit, xi=True)
    assert found.xi is not None
    return (
        (found.gamma[:, 0] * log_init).sum(-1)
        + (found.gamma * log_emit).sum((1, 2))
        + (found.xi * log_trans).sum((1, 2, 3)),
    )


def _step(
    variant: str,
    ours: Call,
    loop: Call,
    in_place: Call,
    *sizes: int,
    quick: bool,
) -> Operation:
    """Logits of all matrices -> objective -> gradients, without the networks before them."""
    return Operation(
        family="hmm",
        kernel="hmm_posteriors" if "expected" in variant else "hmm_log_likelihood",
        variant=variant,
        shape="x".join(map(str, sizes)),
        dtype="float32",
        mode="forward+backward",
        make=lambda: _chmm_inputs(*sizes),
        oracle=loop,
        providers=(
            Provider("oneshot", "ours", plain(ours)),
            Provider("torch loop", "peer", plain(loop)),
            Provider("torch loop in place", "peer", plain(in_place)),
            floor("read + copy logits", copy=("emission_logits", "trans_logits")),
        ),
        differentiate=("trans_logits", "emission_logits"),
        quick=quick,
    )


def _steps(*sizes: int, quick: bool) -> list[Operation]:
    likelihood = (
        _step_likelihood, loops.chmm_log_likelihood, loops.chmm_log_likelihood_in_place,
    )  # fmt: skip
    expected = _step_expected, loops.chmm_expected, loops.chmm_expected_in_place
    return [
        _step("chmm-likelihood", *likelihood, *sizes, quick=quick),
        _step("chmm-expected-likelihood", *expected, *sizes, quick=quick),
    ]


OPERATIONS = [
    _combine(16, 400, 9, 5, quick=True),
    *_steps(16, 100, 5, 5, quick=True),
    *_steps(16, 400, 5, 5, quick=False),
]

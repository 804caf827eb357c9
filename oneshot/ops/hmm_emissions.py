"""Evidence of several label sources, combined into the emissions of one chain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._checks import check_float, check_same_device, check_tensor
from oneshot.ops.hmm_inputs import at_least_float32, check_like
from oneshot.reference import hmm_emissions as reference

_INPUTS = "Tensor log_emissions, Tensor observations, Tensor? weights, bool normalize"


def _fake_backward(
    grad: Tensor, log_emissions: Tensor, observations: Tensor, weights: Tensor | None, _: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        grad.new_empty(log_emissions.shape),
        grad.new_empty(observations.shape if observations.is_floating_point() else (0,)),
        grad.new_empty((0,) if weights is None else weights.shape),
    )


_forward = _library.define(
    f"combine_emissions({_INPUTS}) -> Tensor",
    reference.combine_emissions,
    lambda log_emissions, observations, *_: log_emissions.new_empty(
        (*observations.shape[:2], log_emissions.shape[-2])
    ),
)
_backward = _library.define(
    f"combine_emissions_backward(Tensor grad, {_INPUTS}) "
    "-> (Tensor grad_log_emissions, Tensor grad_observations, Tensor grad_weights)",
    reference.combine_emissions_backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.normalize = inputs
    _library.save_for_backward(ctx, *tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    log_emissions, observations, weights = ctx.saved_tensors  # read once: checkpointing needs it
    by_log_emissions, by_observations, by_weights = _backward(
        grad, log_emissions, observations, weights, ctx.normalize
    )
    return (
        by_log_emissions,
        by_observations if observations.is_floating_point() else None,
        None if weights is None else by_weights,
        None,
    )


_library.differentiable("combine_emissions", _differentiate, _save)


def combine_emissions(
    log_emissions: Tensor,
    observations: Tensor,
    *,
    weights: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Log-likelihood of each state given what S independent sources say about its label.

    ``log_emit[b, t, i] = sum_s w_s log sum_j exp(log_emissions[b, t, s, i, j]) x[b, t, s, j]``,
    where row i of a source's matrix holds the probability of each of L labels in state i.

    A source that abstains (id -1, or a row of zeros) adds exactly 0 and gets no gradient; one that
    rules a state out adds -inf, a constant, and gets none there either; one of weight 0 adds 0.
    Differentiable once in `log_emissions`, soft `observations` and `weights`. A place whose
    upstream gradient is 0, as all padding has, passes exactly 0, whatever stands there.

    Args:
        log_emissions: [B, T, S, K, L], or [S, K, L] for matrices that do not change; float32,
            float64, bfloat16 or float16, nats. -inf is legal. Entries of labels with x = 0 are not
            read (with `normalize` they are).
        observations: int64 or int32 [B, T, S], label ids in [0, L) or -1; or floats (float64 if
            and only if `log_emissions` are) [B, T, S, L], weights of the labels, finite and >= 0
            (they need not sum to 1).
        weights: [S], w_s. Default: 1.
        normalize: `log_emissions` are logits: take their log-softmax over L. A row of nothing but
            -inf has none, and gives NaN. Default: False.

    Returns:
        [B, T, K]; float32 (float64 for float64 `log_emissions`).

    Raises:
        TypeError: A dtype is not one of the above, or only some float inputs are float64.
        ValueError: A shape or device does not fit.
        RuntimeError: An id outside [-1, L); the message names sequence, step, source and value.

    Source:
        Li et al. 2021 (arXiv 2105.12848), conditional HMM: the evidence of a token is the product
        over sources of (emission matrix times observation).
    """
    check_float("log_emissions", log_emissions)
    if log_emissions.dim() not in (3, 5) or 0 in log_emissions.shape[-2:]:
        raise ValueError(
            "log_emissions must have the shape [B, T, S, K, L] or [S, K, L] with K, L >= 1, "
            f"got {list(log_emissions.shape)}"
        )
    sources, _, labels = log_emissions.shape[-3:]
    check_tensor("observations", observations)
    if observations.dtype in (torch.int32, torch.int64):
        observations = observations.to(torch.int64)
        form, tail = "[B, T, S]", [sources]
        check_same_device("observations", observations, "log_emissions", log_emissions)
    elif observations.is_floating_point():
        form, tail = "[B, T, S, L]", [sources, labels]
        check_like("observations", observations, "log_emissions", log_emissions)
    else:
        raise TypeError(
            "observations must be int64 or int32 label ids, or floats (float64 if log_emissions "
            f"are), got {observations.dtype}"
        )
    leading = observations.shape[:2] if log_emissions.dim() == 3 else log_emissions.shape[:2]
    if observations.shape != (*leading, *tail):
        raise ValueError(
            f"observations must have the shape {form} of log_emissions "
            f"{list(log_emissions.shape)}, got {list(observations.shape)}"
        )
    if weights is not None:
        check_like("weights", weights, "log_emissions", log_emissions)
        if weights.shape != (sources,):
            raise ValueError(
                f"weights must have the shape [{sources}], one for each source, "
                f"got {list(weights.shape)}"
            )
        weights = at_least_float32(weights)
    return _forward(
        at_least_float32(log_emissions), at_least_float32(observations), weights, normalize
    )

"""Hidden Markov models and linear-chain CRFs: log-likelihood, posteriors, entropy of the path."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops.hmm_inputs import Potentials, TransAxis, potentials
from oneshot.reference import hmm as reference

_INPUTS = "Tensor log_init, Tensor log_trans, Tensor log_emit, Tensor? lengths, Tensor? log_final"
_GRADIENTS = "Tensor? grad_log_likelihood, Tensor? grad_gamma, Tensor? grad_xi, Tensor? grad_xi_sum"
_NEVER = float("-inf")


def _fake_posteriors(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None,
    log_final: Tensor | None,
    gamma: bool,
    xi: bool,
    xi_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, steps, states = log_emit.shape
    return (
        log_emit.new_empty((batch,)),
        log_emit.new_empty((batch, steps, states) if gamma else (0,)),
        log_emit.new_empty((batch, steps - 1, states, states) if xi else (0,)),
        log_emit.new_empty((batch, states, states) if xi_sum else (0,)),
    )


def _fake_posteriors_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_init, log_trans, log_emit, _, log_final = arguments[4:]
    return (
        log_init.new_empty(log_init.shape),
        log_trans.new_empty(log_trans.shape),
        log_emit.new_empty(log_emit.shape),
        log_emit.new_empty((0,) if log_final is None else log_final.shape),
    )


_posteriors = _library.define(
    f"hmm_posteriors({_INPUTS}, bool gamma, bool xi, bool xi_sum) "
    "-> (Tensor log_likelihood, Tensor gamma, Tensor xi, Tensor xi_sum)",
    reference.hmm_posteriors,
    _fake_posteriors,
)
_posteriors_backward = _library.define(
    f"hmm_posteriors_backward({_GRADIENTS}, {_INPUTS}) "
    "-> (Tensor grad_init, Tensor grad_trans, Tensor grad_emit, Tensor grad_final)",
    reference.hmm_posteriors_backward,
    _fake_posteriors_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.gamma, ctx.xi, ctx.xi_sum = inputs
    log_likelihood, *posteriors = output
    # The posteriors, too: with create_graph=True they lead back to this node, so the second
    # derivative arrives below as the gradient of gamma and xi. Of log_likelihood only what backward
    # needs, so that callers may edit what they got: `log_likelihood[empty] = 0`.
    _library.save_for_backward(ctx, *tensors, log_likelihood == _NEVER, *posteriors)
    ctx.set_materialize_grads(False)  # an output nobody differentiates costs nothing


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, impossible, gamma, xi, xi_sum = ctx.saved_tensors
    grad, *upstream = (
        grad if asked else None  # an empty output has an empty gradient
        for grad, asked in zip(grads, (True, ctx.gamma, ctx.xi, ctx.xi_sum), strict=True)
    )
    if any(x is not None for x in upstream):
        return _gradients(_posteriors_backward(grad, *upstream, *inputs), inputs)
    if grad is None:
        return (None,) * 8

    # d log Z: init and final get gamma of their step, emit gamma, trans xi.
    _, log_trans, _, lengths, log_final = inputs
    by_state = any(ctx.needs_input_grad[i] for i in (0, 2, 4))
    by_pair, constant = ctx.needs_input_grad[1], log_trans.shape[1] == 1
    missing = (
        by_state and not ctx.gamma,
        by_pair and not constant and not ctx.xi,
        by_pair and constant and not ctx.xi_sum,
    )
    if any(missing):
        _, *again = _posteriors(*inputs, *missing)
        gamma, xi, xi_sum = (
            new if asked else old
            for new, asked, old in zip(again, missing, (gamma, xi, xi_sum), strict=True)
        )
    # -inf is a constant, whatever is made of it
    scale = torch.where(impossible, 0, grad)[:, None]
    grad_init = grad_trans = grad_emit = grad_final = None
    if by_state:
        grad_emit = scale[:, :, None] * gamma
        grad_init = scale * gamma[:, 0]
        if log_final is not None:
            grad_final = scale * _at_last_step(gamma, lengths)
    if by_pair:
        pair = xi_sum[:, None] if constant else xi
        grad_trans = scale[:, :, None, None] * pair
    return _gradients((grad_init, grad_trans, grad_emit, grad_final), inputs)


def _at_last_step(gamma: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return gamma[:, -1]
    last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, gamma.shape[2])
    return gamma.gather(1, last).squeeze(1)  # of an empty sequence: 0


def _gradients(
    grads: tuple[Tensor | None, ...], inputs: list[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """In the order of the op's arguments, summed over the batch where an input had no batch."""
    grad_init, grad_trans, grad_emit, grad_final = grads
    log_init, log_trans, _, _, log_final = inputs

    def shared(grad: Tensor | None, x: Tensor | None) -> Tensor | None:
        if grad is None or x is None:
            return None
        return grad.sum(0, keepdim=True) if x.shape[0] == 1 else grad

    return (
        shared(grad_init, log_init), shared(grad_trans, log_trans), grad_emit, None,
        shared(grad_final, log_final), None, None, None,
    )  # fmt: skip


def _no_third_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "hmm: log_likelihood can be differentiated twice and posteriors once; this is a derivative "
        "of a gradient of the posteriors"
    )


_library.differentiable("hmm_posteriors", _differentiate, _save)
_library.differentiable("hmm_posteriors_backward", _no_third_derivative, lambda *_: None)


class HmmPosteriors(NamedTuple):
    """log Z and the posteriors of states and of pairs of states; None where not asked for."""

    log_likelihood: Tensor  # [B]
    gamma: Tensor  # [B, T, K]
    xi: Tensor | None  # [B, T - 1, K, K]
    xi_sum: Tensor | None  # [B, K, K]


def hmm_log_likelihood(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None = None,
    log_final: Tensor | None = None,
    *,
    trans_axis: TransAxis = None,
) -> Tensor:
    """Log of the sum over all state paths, differentiable twice in every input.

    For a path z of n steps the score is ``log_init[z_0] + sum_t log_emit[t, z_t] +
    sum_t log_trans[t, z_t, z_{t+1}] + log_final[z_{n-1}]``; the result is log Z = log of the sum of
    exp(score). With normalised inputs that is the log-likelihood of an HMM, with any others
    the log-partition function of a linear-chain CRF.

    The gradient is the posterior, and comes from the same fused forward-backward call; an input
    that needs no gradient adds no cost. ``create_graph=True`` gives second derivatives.

    Args:
        log_init: [K] or [B, K], float32, float64, bfloat16 or float16; nats, as all inputs. Either
            all float inputs are float64 or none; the others may be mixed, as autocast does, and are
            computed in float32. -inf is legal everywhere.
        log_trans: Source state first: ``[..., i, j]`` leads from i to j. [K, K]; or 4-D
            [1|B, 1|T-1, K, K], where matrix t leads from step t to step t + 1; or 3-D with
            `trans_axis`. Matrices that do not change with t need T times less memory backward.
        log_emit: [B, T, K], T >= 1, K >= 1.
        lengths: int64 or int32 [B], steps of each sequence, 0 <= length <= T. Emissions from step
            `length` on and transitions into them may hold anything. Default: T.
        log_final: [K] or [B, K], added at the last step of a sequence. Default: 0.
        trans_axis: What the first dimension of a 3-D `log_trans` counts: ``"sequence"`` for
            [B, K, K], ``"step"`` for [T-1, K, K].

    Returns:
        [B]; float32 (float64 for float64 inputs). 0 for an empty sequence; -inf where no path is
        possible, then with a gradient of 0; NaN where the sequence uses a NaN or +inf.

    Raises:
        TypeError: A dtype is not one of the above, or only some float inputs are float64.
        ValueError: A shape or device does not fit, or a 3-D `log_trans` comes without `trans_axis`.
        RuntimeError: A length outside [0, T]; the message names sequence and value.

    Source:
        Rabiner 1989, "A tutorial on hidden Markov models", equations 19-21; Lafferty et al. 2001
        for the CRF. d log Z / d log_emit = gamma, d log Z / d log_trans = xi.
    """
    x = potentials(log_init, log_trans, log_emit, lengths, log_final, trans_axis)
    by_state = by_pair = False
    if torch.is_grad_enabled():
        by_pair = x.log_trans.requires_grad
        by_state = x.log_init.requires_grad or x.log_emit.requires_grad
        by_state = by_state or (x.log_final is not None and x.log_final.requires_grad)
    constant = x.log_trans.shape[1] == 1
    return _posteriors(*x, by_state, by_pair and not constant, by_pair and constant)[0]


def hmm_posteriors(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None = None,
    log_final: Tensor | None = None,
    *,
    trans_axis: TransAxis = None,
    xi: bool = False,
    xi_sum: bool = False,
) -> HmmPosteriors:
    """Posterior probabilities of states and of pairs of neighbouring states.

    Differentiable in every input through every output: log_likelihood twice, posteriors once.

    Args:
        log_init: As in :func:`hmm_log_likelihood`, like all inputs.
        log_trans: [K, K], [1|B, 1|T-1, K, K], or 3-D with `trans_axis`.
        log_emit: [B, T, K].
        lengths: int64 or int32 [B]. Default: T.
        log_final: [K] or [B, K]. Default: 0.
        trans_axis: ``"sequence"`` or ``"step"`` for a 3-D `log_trans`.
        xi: Return the pairs of every step: T K^2 numbers a sequence.
        xi_sum: Return their sum over steps: K^2 numbers a sequence, what EM needs.

    Returns:
        ``log_likelihood`` [B]; ``gamma`` [B, T, K] with gamma[t, i] = p(z_t = i); ``xi``
        [B, T-1, K, K] with xi[t, i, j] = p(z_t = i, z_{t+1} = j), or None; ``xi_sum`` [B, K, K], or
        None. float32 (float64 for float64 inputs). Exactly 0 behind the end of a sequence and
        where no path is possible; NaN up to its end where a sequence uses a NaN or +inf.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`hmm_log_likelihood`.

    Source:
        Rabiner 1989, equations 27 and 37. The gradient of the posteriors is a forward-mode sweep in
        the direction of the upstream gradient, as the Hessian of log Z is symmetric.
    """
    x = potentials(log_init, log_trans, log_emit, lengths, log_final, trans_axis)
    log_likelihood, gamma, pairs, pairs_sum = _posteriors(*x, True, xi, xi_sum)
    return HmmPosteriors(
        log_likelihood, gamma, pairs if xi else None, pairs_sum if xi_sum else None
    )


def hmm_entropy(
    log_init: Tensor,
    log_trans: Tensor,
    log_emit: Tensor,
    lengths: Tensor | None = None,
    log_final: Tensor | None = None,
    *,
    trans_axis: TransAxis = None,
) -> Tensor:
    """Entropy of the posterior over whole paths, differentiable once in every input.

    log Z minus the posterior mean of the score, computed in float64 for every input dtype: the two
    grow with T and almost cancel. Keeps float64 posteriors, of the size of `log_trans` if its
    matrices change with t, else of the size of `log_emit`.

    Args:
        log_init: As in :func:`hmm_log_likelihood`, like all inputs.
        log_trans: [K, K], [1|B, 1|T-1, K, K], or 3-D with `trans_axis`.
        log_emit: [B, T, K].
        lengths: int64 or int32 [B]. Default: T.
        log_final: [K] or [B, K]. Default: 0.
        trans_axis: ``"sequence"`` or ``"step"`` for a 3-D `log_trans`.

    Returns:
        [B] nats; float32 (float64 for float64 inputs). 0 for an empty sequence and where no path is
        possible, NaN where the sequence uses a NaN or +inf.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`hmm_log_likelihood`.

    Source:
        H = -sum_z p(z) log p(z) with log p(z) = score(z) - log Z.
    """
    x = potentials(log_init, log_trans, log_emit, lengths, log_final, trans_axis)
    log_init, log_trans, log_emit, _, log_final = doubles = Potentials(
        *(y if y is None or y is x.lengths else y.double() for y in x)  # type: ignore[arg-type]
    )
    constant = log_trans.shape[1] == 1
    log_likelihood, gamma, xi, xi_sum = _posteriors(*doubles, True, not constant, constant)

    score = _mean(log_init, gamma[:, 0]) + _mean(log_emit, gamma)
    score = score + (_mean(log_trans[:, 0], xi_sum) if constant else _mean(log_trans, xi))
    if log_final is not None:
        score = score + _mean(log_final, _at_last_step(gamma, lengths))
    entropy = torch.where(log_likelihood == _NEVER, 0, log_likelihood - score)
    return entropy.to(x.log_emit.dtype)


def _mean(potential: Tensor, probability: Tensor) -> Tensor:
    """Sum of p * x for each sequence; x where p is 0 (-inf, garbage in padding) does not count."""
    used = torch.where(probability == 0, 0, potential)
    return (probability * used).flatten(1).sum(1)

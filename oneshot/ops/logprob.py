"""Log-probabilities of chosen tokens, and the entropy they were drawn with."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from oneshot.ops import _library
from oneshot.ops._checks import (
    as_bool,
    as_int64,
    as_mask,
    check_float,
    check_same_device,
    check_values,
)
from oneshot.ops._numbers import is_finite, number, refuse_gradient
from oneshot.reference import logprob as reference

_INPUTS = "Tensor targets, Tensor? mask, Tensor? keep_mask"
_GRADIENTS = "Tensor? grad_logprobs, Tensor? grad_entropy"
_SAVED = "Tensor logprobs, Tensor stats, float temperature"


def _fake_forward(
    logits: torch.Tensor, targets: torch.Tensor, *_: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.shape[:-1]
    return (
        logits.new_empty(targets.shape, dtype=real),
        logits.new_empty(rows, dtype=real),
        logits.new_empty((*rows, 3), dtype=real),
    )


_forward = _library.define(
    f"token_logprobs_and_entropy(Tensor logits, {_INPUTS}, float temperature, "
    "bool inplace_backward) -> (Tensor logprobs, Tensor entropy, Tensor stats)",
    reference.token_logprobs_and_entropy,
    _fake_forward,
)
_backward = _library.define(
    f"token_logprobs_and_entropy_backward({_GRADIENTS}, Tensor logits, {_INPUTS}, {_SAVED}) "
    "-> Tensor",
    reference.token_logprobs_and_entropy_backward,
    lambda grad_logprobs, grad_entropy, logits, *_: logits.new_empty(logits.shape),
)
_backward_ = _library.define(
    f"token_logprobs_and_entropy_backward_({_GRADIENTS}, Tensor(a!) logits, {_INPUTS}, {_SAVED}) "
    "-> ()",
    reference.token_logprobs_and_entropy_backward_,
    lambda *_: None,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, targets, mask, keep_mask, ctx.temperature, ctx.inplace = inputs
    logprobs, _, stats = output
    # A copy, one number per token, so that callers may edit what they got: `logprobs[~mask] = 0`.
    saved = logits, targets, mask, keep_mask, logprobs.clone(), stats
    _library.save_for_backward(ctx, *saved)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)  # an output nobody differentiates costs nothing


def _differentiate(
    ctx: Any,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    _grad_stats: None,
) -> tuple[torch.Tensor | None, ...]:
    if grad_logprobs is None and grad_entropy is None:
        return (None,) * 6
    logits, *others = ctx.saved_tensors
    arguments = (grad_logprobs, grad_entropy, logits, *others, ctx.temperature)
    # With create_graph=True and in torch.func the gradient may be differentiated, so it needs a
    # node of its own; what compiles a backward does not see that a version went up.
    fresh = torch.is_grad_enabled() or forward_ad._current_level >= 0
    if not ctx.inplace or fresh or torch.compiler.is_compiling():
        return (_backward(*arguments), *(None,) * 5)
    # The version goes up, so whoever saved these logits for a backward of their own gets autograd's
    # error instead of wrong numbers; a second backward through this node gets it too.
    _backward_(*arguments)
    torch.autograd.graph.increment_version(logits)
    return (logits.detach(), *(None,) * 5)


_library.differentiable("token_logprobs_and_entropy", _differentiate, _save)


def _check(
    logits: torch.Tensor,
    targets: torch.Tensor | None,
    temperature: Any,
    mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    inplace_backward: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Check everything that is cheap; returns targets, mask and keep_mask as the op takes them."""
    check_float("logits", logits)
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(
            "logits must have shape [..., vocabulary] with at least one token, "
            f"got {list(logits.shape)}"
        )
    rows = logits.shape[:-1]
    if not (is_finite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if targets is not None:
        targets = as_int64("targets", targets)
        if targets.shape != rows and targets.shape[:-1] != rows:
            raise ValueError(
                f"targets must have the shape of the rows {list(rows)} or one more dimension, "
                f"got {list(targets.shape)}"
            )
        check_same_device("targets", targets, "logits", logits)
    if mask is not None:
        mask = as_mask("mask", mask, rows, "the rows of logits", logits)
    if keep_mask is not None:
        keep_mask = _as_keep_mask(keep_mask, logits)
    if inplace_backward:
        _check_overwritable(logits)
    return targets, mask, keep_mask


def _by_row(
    logits: torch.Tensor, temperature: float | torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, float | torch.Tensor]:
    """Logits divided by a temperature per row or token, and 1; both unchanged if it is a number."""
    if not isinstance(temperature, torch.Tensor) or temperature.dim() == 0:
        return logits, temperature
    check_float("temperature", temperature)
    check_float("logits", logits)
    refuse_gradient("temperature", temperature)
    rows, own = logits.shape[:-1], temperature.shape
    sizes = zip(own, rows, strict=False)
    if len(own) > len(rows) or any(size not in (1, full) for size, full in sizes):
        raise ValueError(
            f"temperature must be a number, or have the leading dimensions of the rows of logits "
            f"{list(rows)} (each of that size or 1), got {list(own)}"
        )
    check_same_device("temperature", temperature, "logits", logits)
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    divisor = temperature.to(real).reshape(*own, *(1,) * (len(rows) - len(own))).expand(rows)
    if mask is not None:
        divisor = torch.where(as_mask("mask", mask, rows, "the rows of logits", logits), divisor, 1)
    allowed = (divisor > 0) & divisor.isfinite()
    check_values(allowed, "temperature must be positive and finite", divisor)
    return logits.to(real) / divisor.unsqueeze(-1), 1.0


def _as_keep_mask(keep_mask: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    keep_mask = as_bool("keep_mask", keep_mask)
    sizes = zip(reversed(keep_mask.shape[:-1]), reversed(logits.shape[:-1]), strict=False)
    if (
        not 1 <= keep_mask.dim() <= logits.dim()
        or keep_mask.shape[-1] != logits.shape[-1]
        or any(size not in (1, rows) for size, rows in sizes)
    ):
        raise ValueError(
            f"keep_mask must have the vocabulary of logits {list(logits.shape)} and leading "
            f"dimensions that broadcast to it, got {list(keep_mask.shape)}"
        )
    check_same_device("keep_mask", keep_mask, "logits", logits)
    return keep_mask


def _check_overwritable(logits: torch.Tensor) -> None:
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return
    owner = logits if logits._base is None else logits._base
    if owner.is_leaf and owner.requires_grad:
        raise ValueError(
            "inplace_backward=True would overwrite a leaf tensor with its own gradient: logits "
            "must be the output of an operation (a model), not a parameter, an input or a view of "
            "one"
        )
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        raise ValueError(
            "inplace_backward=True needs logits whose vocabulary dimension has stride 1, "
            f"got strides {list(logits.stride())}"
        )
    if any(
        size > 1 and step == 0 for size, step in zip(logits.shape, logits.stride(), strict=True)
    ):
        raise ValueError(
            "inplace_backward=True needs logits that own their memory, got an expanded tensor: "
            f"shape {list(logits.shape)}, strides {list(logits.stride())}"
        )


def token_logprobs_and_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    inplace_backward: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of target tokens and entropy of softmax(logits / temperature).

    One read of the logits forward; one read and one write backward. Differentiable in the logits
    through both outputs (once); an output that needs no gradient adds no cost.

    Args:
        logits: ``[..., V]``, float32, float64, bfloat16 or float16. Rows may lie anywhere (slices,
            padded vocabularies); a vocabulary dimension with a stride other than 1 is copied.
            -inf is legal. A NaN or +inf, or a row of nothing but -inf, makes that row's results
            NaN, as in `torch.log_softmax`.
        targets: Token ids, int64 or int32, ``[...]`` (one per row) or ``[..., k]``, each in
            ``[0, V)``.
        temperature: Divides the logits before everything else: a number, or a tensor with the
            leading dimensions of the rows (``[B]`` or ``[B, T]`` for rows ``[B, T]``; dimensions of
            size 1 are expanded). A tensor costs one copy of the logits in float32 and takes no
            gradient; in masked rows it may hold anything. Default: 1.
        mask: ``[...]``, bool, or numbers that are all 0 or 1; rows with False are never read, give
            0 and get no gradient, whatever stands in them. Default: all rows count.
        keep_mask: bool (or 0 and 1), broadcastable to ``[..., V]``: False gives a token probability
            0 (top-k and top-p sampling replayed). Default: all tokens are kept.
        inplace_backward: Write the gradient over the logits instead of into a new tensor. The
            logits hold the gradient afterwards: nothing may read them after backward. Autograd
            raises if another operation saved them for its backward. Under `torch.compile`, where
            it could not, with create_graph=True and in transforms of torch.func the gradient is a
            new tensor. Default: False.

    Returns:
        Log-probabilities in the shape of `targets` and entropy (nats) in the shape of the rows,
        float32 (float64 for float64 logits). A target of probability 0 (outside `keep_mask`, or a
        logit of -inf) has log-probability -inf and passes no gradient.

    Raises:
        TypeError: A dtype is not one of the above.
        ValueError: A shape, device or the temperature does not fit, or logits cannot be
            overwritten as `inplace_backward` asks.
        RuntimeError: A target of an unmasked row lies outside ``[0, V)``; the message names row and
            value.

    Source:
        log p_t = y_t - log sum exp y and H = log sum exp y - sum p y with y = logits / temperature,
        in one pass by the running maximum of Milakov and Gimelshein (2018), "Online normalizer
        calculation for softmax", algorithm 3.
    """
    inplace_backward = inplace_backward and not torch.compiler.is_compiling()
    logits, temperature = _by_row(logits, temperature, mask)
    ids, mask, keep_mask = _check(logits, targets, temperature, mask, keep_mask, inplace_backward)
    logprobs, entropy, _ = _forward(
        logits, ids, mask, keep_mask, number("temperature", temperature), inplace_backward
    )
    return logprobs, entropy


def token_logprobs(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    inplace_backward: bool = False,
) -> torch.Tensor:
    """The log-probabilities of :func:`token_logprobs_and_entropy` alone, at the same cost.

    Args:
        logits: ``[..., V]``.
        targets: int64 or int32, ``[...]`` or ``[..., k]``.
        temperature: Divides the logits first: a number, or a tensor per row or token. Default: 1.
        mask: bool ``[...]``; False rows give 0. Default: all rows count.
        keep_mask: bool, broadcastable to ``[..., V]``; False: probability 0. Default: all kept.
        inplace_backward: Write the gradient over the logits. Default: False.

    Returns:
        Log-probabilities in the shape of `targets`.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`token_logprobs_and_entropy`.

    Source:
        ``selective_log_softmax`` of TRL, ``logprobs_from_logits`` of verl.
    """
    return token_logprobs_and_entropy(
        logits,
        targets,
        temperature=temperature,
        mask=mask,
        keep_mask=keep_mask,
        inplace_backward=inplace_backward,
    )[0]


def token_entropy(
    logits: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
    inplace_backward: bool = False,
) -> torch.Tensor:
    """The entropy of :func:`token_logprobs_and_entropy` alone; needs no targets.

    Args:
        logits: ``[..., V]``.
        temperature: Divides the logits first: a number, or a tensor per row or token. Default: 1.
        mask: bool ``[...]``; False rows give 0. Default: all rows count.
        keep_mask: bool, broadcastable to ``[..., V]``; False: probability 0. Default: all kept.
        inplace_backward: Write the gradient over the logits. Default: False.

    Returns:
        Entropy in nats, ``[...]``.

    Raises:
        TypeError, ValueError: As :func:`token_logprobs_and_entropy`.

    Source:
        H = -sum p log p; ``entropy_from_logits`` of TRL and verl.
    """
    inplace_backward = inplace_backward and not torch.compiler.is_compiling()
    logits, temperature = _by_row(logits, temperature, mask)
    _, mask, keep_mask = _check(logits, None, temperature, mask, keep_mask, inplace_backward)
    targets = logits.new_empty((*logits.shape[:-1], 0), dtype=torch.int64)
    return _forward(
        logits, targets, mask, keep_mask, number("temperature", temperature), inplace_backward
    )[1]

"""Plain PyTorch definitions of the `logprob` family."""

from __future__ import annotations

import torch


def _real(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results: float64 for float64 logits, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _select(
    logits: torch.Tensor, mask: torch.Tensor | None, keep_mask: torch.Tensor | None
) -> torch.Tensor:
    """Logits in the result dtype: -inf outside `keep_mask`, 0 in masked rows."""
    x = logits.to(_real(logits.dtype))
    if keep_mask is not None:
        x = torch.where(keep_mask, x, float("-inf"))
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0)
    return x


def _matrix(targets: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Targets as [..., k], 0 in masked rows, every other one checked against the vocabulary."""
    ids = targets.unsqueeze(-1) if targets.dim() == logits.dim() - 1 else targets
    if mask is not None:
        ids = torch.where(mask.unsqueeze(-1), ids, 0)
    bad = (ids < 0) | (ids >= logits.shape[-1])
    if bad.any():
        row = int(bad.flatten(0, -2).any(-1).nonzero()[0]) if ids.dim() > 1 else 0
        value = int(ids[bad].flatten()[0])
        raise RuntimeError(  # what the native kernel raises
            f"oneshot: targets must lie in [0, {logits.shape[-1]}), got {value} in row {row} "
            "(rows with mask False are not checked)"
        )
    return ids


def token_logprobs_and_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    temperature: float,
    inplace_backward: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of logits / temperature at the targets, and the entropy of that distribution.

    Returns:
        logprobs (shape of targets), entropy (shape of the rows) and, for backward, stats [rows, 3]:
        the largest logit m, sum exp((x - m) / T), and the mean of (x - m) / T.
    """
    ids = _matrix(targets, logits, mask)
    x = _select(logits, mask, keep_mask)
    high = x.amax(-1, keepdim=True)
    shifted = (x - high) / temperature
    weights = shifted.exp()
    total = weights.sum(-1)
    # p log p is 0 at p = 0, also where the logit is -inf.
    mean = torch.where(weights == 0, 0, weights * shifted).sum(-1) / total
    entropy = total.log() - mean
    logprobs = shifted.gather(-1, ids) - total.log().unsqueeze(-1)
    logprobs = logprobs.view(targets.shape).clone()  # no view: callers edit it in place
    stats = torch.stack((high.squeeze(-1), total, mean), -1)
    if mask is not None:
        entropy = torch.where(mask, entropy, 0)
        rows = mask.view(mask.shape + (1,) * (targets.dim() - mask.dim()))
        logprobs = torch.where(rows, logprobs, 0)
        stats = torch.where(mask.unsqueeze(-1), stats, 0)
    return logprobs, entropy.contiguous(), stats


def token_logprobs_and_entropy_backward(
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    logits: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    logprobs: torch.Tensor,
    stats: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Gradient of the logits; every output of the forward is given back to it.

    d log p_t / d x_i = (1[i = t] - p_i) / T and d entropy / d x_i = p_i (mean - y_i) / T, with y
    the shifted logits over T. A log-probability of -inf is a constant: it passes no gradient.
    """
    ids = _matrix(targets, logits, mask)
    x = _select(logits, mask, keep_mask)
    high, total, mean = (part.unsqueeze(-1) for part in stats.unbind(-1))
    shifted = (x - high) / temperature
    p = shifted.exp() / total
    grad = torch.zeros_like(x)
    silent = torch.ones_like(mean, dtype=torch.bool)
    if grad_entropy is not None:
        upstream = grad_entropy.unsqueeze(-1)
        grad = torch.where(p == 0, 0, p * (mean - shifted)) * upstream
        silent &= upstream == 0
    if grad_logprobs is not None:
        alive = (logprobs != float("-inf")).view(ids.shape)
        upstream = torch.where(alive, grad_logprobs.reshape(ids.shape), 0)
        grad = grad - p * upstream.sum(-1, keepdim=True)
        grad = grad.scatter_add(-1, ids, upstream)
        silent &= (grad_logprobs.reshape(ids.shape) == 0).all(-1, keepdim=True)
    if mask is not None:
        silent |= ~mask.unsqueeze(-1)
    return torch.where(silent, 0, grad / temperature).to(logits.dtype).contiguous()


def token_logprobs_and_entropy_backward_(
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    logits: torch.Tensor,
    targets: torch.Tensor,
    mask: torch.Tensor | None,
    keep_mask: torch.Tensor | None,
    logprobs: torch.Tensor,
    stats: torch.Tensor,
    temperature: float,
) -> None:
    """The same, written over the logits."""
    logits.copy_(
        token_logprobs_and_entropy_backward(
            grad_logprobs,
            grad_entropy,
            logits,
            targets,
            mask,
            keep_mask,
            logprobs,
            stats,
            temperature,
        )
    )

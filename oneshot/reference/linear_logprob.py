"""Plain PyTorch definition of the head without logits (family `logprob`); it makes the logits."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Definition(NamedTuple):
    """What the definition returns; see `oneshot.ops.linear_logprob.TokenStatistics`."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    log_sum_sq_probs: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def linear_token_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    mask: torch.Tensor | None = None,
    keep_mask: torch.Tensor | None = None,
) -> Definition:
    """Log-softmax at the targets and entropy of z = softcap(scale (h W^T + b)) / T.

    Differentiable by autograd, in the dtype of its inputs. A masked row is replaced before the
    product, so that nothing of it, NaN included, reaches a value or a gradient.
    """
    ids = targets.unsqueeze(-1) if targets.dim() == hidden.dim() - 1 else targets
    if mask is not None:
        hidden = torch.where(mask.unsqueeze(-1), hidden, 0)
        ids = torch.where(mask.unsqueeze(-1), ids, 0)
    z = hidden @ weight.t()
    z = logit_scale * (z if bias is None else z + bias)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    z = z / temperature
    kept = torch.ones_like(z, dtype=torch.bool) if keep_mask is None else keep_mask.expand(z.shape)
    logp = torch.log_softmax(torch.where(kept, z, float("-inf")), -1)
    possible = logp > float("-inf")
    finite = torch.where(possible, logp, 0)
    p = torch.where(possible, finite.exp(), 0)
    chosen = torch.where(possible, logp, 0).gather(-1, ids)  # of probability 0: a constant
    chosen = torch.where(possible.gather(-1, ids), chosen, float("-inf"))
    entropy = -(p * finite).sum(-1)
    squares = p.detach().square().sum(-1).log()
    mean = (torch.where(possible, z, 0).sum(-1) / possible.sum(-1)).detach()
    top = ids == torch.where(kept, z, float("-inf")).argmax(-1, keepdim=True)
    if mask is not None:
        chosen = torch.where(mask.unsqueeze(-1), chosen, 0)
        entropy, squares, mean = (torch.where(mask, x, 0) for x in (entropy, squares, mean))
        top = top & mask.unsqueeze(-1)
    return Definition(
        chosen.reshape(targets.shape), entropy, squares, mean, top.reshape(targets.shape)
    )

"""Choosing the next token from logits with given random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    logits: Tensor, uniforms: Tensor | None, temperature: float, top_k: int = -1, top_p: float = 1.0
) -> Tensor:
    """The next token of each row.

    Sampling inverts the cumulative distribution at one uniform number per row: a row's token does
    not depend on the other rows, and one number per row is far cheaper than one per entry of
    the vocabulary, as torch.multinomial draws.

    Args:
        logits: [N, V].
        uniforms: [N] float64 in [0, 1); None takes the most likely token (lowest id of a tie).
        temperature: Divides the logits when sampling.
        top_k: Keep the `top_k` most likely tokens (ties with the last of them too); -1 keeps all.
        top_p: Keep the most likely tokens until their mass reaches `top_p`; 1 keeps all.

    Returns:
        [N] int64.
    """
    if uniforms is None:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if 0 < top_k < probabilities.shape[-1]:
        least = probabilities.topk(top_k, -1).values[:, -1:]
        probabilities = torch.where(probabilities >= least, probabilities, 0)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.double().cumsum(-1) - ordered
        total = probabilities.sum(-1, keepdim=True)
        nucleus = torch.where(before < top_p * total, ordered, 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, nucleus)
    mass = probabilities.double().cumsum(-1)
    total = mass[:, -1:]
    # Rounding must not push the threshold to the total: no token lies above it.
    threshold = (uniforms[:, None] * total).minimum(torch.nextafter(total, total - 1))
    return torch.searchsorted(mass, threshold, right=True).squeeze(-1)

"""What only the Triton kernels of `policy_loss` promise; the rest is in tests/parity."""

import math

import torch

from oneshot.reference.policy_loss import PolicyOptions
from oneshot.triton_kernels import policy_loss as kernels

INF, NAN = math.inf, math.nan
PLAIN = PolicyOptions(
    0, 0, 0.8, 1.2, INF, INF, -INF, INF, 3, False, INF, INF, 1.0, 1e-2, 1e-2, 0, -1, -1, False, 7
)  # fmt: skip


def batch(lengths):
    """Ragged tokens with garbage in every place that does not count."""
    shape = (len(lengths), max(lengths))
    mask = (torch.rand(shape) < 0.8) & (torch.arange(shape[1]) < torch.tensor(lengths)[:, None])
    new, old, advantages, ref, entropy, weights = (
        torch.where(mask, torch.randn(shape) * 0.4, NAN) for _ in range(6)
    )
    return new, old, advantages, mask, ref, entropy, weights.abs(), None


def test_padding_and_neighbours_change_no_bit():
    inputs = batch([40, 63])
    numbers = list(map(float, PLAIN[:-1]))
    together = kernels.policy_loss(*inputs, torch.tensor(9.0), numbers, 7)[2]
    alone = tuple(None if x is None else x[:1, :40] for x in inputs)
    apart = kernels.policy_loss(*alone, torch.tensor(9.0), numbers, 7)[2]
    assert torch.equal(together[3, :1], apart[3])


def test_absurd_cu_seqlens_are_loud():
    tokens, bounds = torch.randn(8), torch.tensor([0, 5, 9])
    inputs = (tokens, tokens, torch.randn(2), None, tokens, tokens, torch.rand(2), bounds)
    loss, _, _ = kernels.policy_loss(*inputs, None, list(map(float, PLAIN[:-1])), 7)
    assert loss.isnan()

"""What only the Triton kernels of `policy_loss` promise; the rest is in tests/parity."""

import math

import torch

from oneshot.policy_options import KernelOptions
from oneshot.triton_kernels import policy_loss as kernels

NAN = math.nan
PLAIN = KernelOptions(kl_coef=1e-2, entropy_coef=1e-2, max_length=7)


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
    numbers = PLAIN.packed()
    together = kernels.policy_loss(*inputs, torch.tensor(9.0), numbers, 7)[2]
    alone = tuple(None if x is None else x[:1, :40] for x in inputs)
    apart = kernels.policy_loss(*alone, torch.tensor(9.0), numbers, 7)[2]
    assert torch.equal(together[3, :1], apart[3])


def test_absurd_cu_seqlens_are_loud():
    tokens, bounds = torch.randn(8), torch.tensor([0, 5, 9])
    inputs = (tokens, tokens, torch.randn(2), None, tokens, tokens, torch.rand(2), bounds)
    loss, _, _ = kernels.policy_loss(*inputs, None, PLAIN.packed(), 7)
    assert loss.isnan()

"""What only the Triton kernels of `routing` promise; the rest is in tests/parity."""

import pytest
import torch

from oneshot.reference import routing as reference
from oneshot.triton_kernels import routing as kernels

NAN = float("nan")
REPEATS = [3, 17]  # of 4 groups: few rows go from the inventories, more from mixtures


def lora(groups, repeat, mixtures):
    x, base = torch.randn(groups, repeat, 10), torch.randn(groups, repeat, 6)
    a, b = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 4, 3)
    rows = torch.randint(mixtures, (groups,))
    return x, a, b, torch.rand(mixtures, 2, 3), rows, base


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_nan_stays_with_its_mixture(repeat):
    x, a, b, weights, _, base = lora(4, repeat, 3)
    rows = torch.tensor([0, 1, 0, 2])
    x[1, 2, 5] = NAN
    y, shrunk = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    assert y.isnan().any(2).nonzero().tolist() == [[1, 2]]
    mixed = (reference.mix_adapters(a, weights, True), reference.mix_adapters(b, weights, False))
    _, grad_a, grad_b, _ = kernels.routed_lora_backward(
        torch.randn_like(y), x, *mixed, None, rows, shrunk, 1.0, True, True, True, False
    )
    assert grad_a.isnan().flatten(1).any(1).tolist() == [False, True, False]
    assert grad_b.isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("repeat", REPEATS)
def test_a_row_of_no_mixture_is_loud(repeat):
    x, a, b, weights, _, base = lora(4, repeat, 3)
    rows = torch.tensor([0, 3, -1, 2])
    y, _ = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    assert y.isnan().all(2).all(1).tolist() == [False, True, True, False]
    assert y[[0, 3]].isfinite().all()


@pytest.mark.parametrize("repeat", [3, 20])
def test_neighbours_change_no_bit(repeat):
    x, a, b, weights, rows, base = lora(9, repeat, 2)
    y, _ = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    part = slice(3, 7)
    alone, _ = kernels.routed_lora(x[part], a, b, weights, rows[part], base[part], 1.0)
    assert torch.equal(y[part], alone)

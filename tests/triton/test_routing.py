"""Interpreted Triton kernels of the `routing` family against the reference in float64."""

import pytest
import torch

from oneshot.reference import routing as reference
from oneshot.triton_kernels import routing as kernels

NAN = float("nan")


def close(got, true, dtype=torch.float32):
    """Half formats: factors are rounded to the dtype of x before each product."""
    got, scale = got.double(), true.abs().max().item() if true.numel() else 1.0
    eps = torch.finfo(dtype).eps
    atol = scale * (1e-6 if dtype == torch.float32 else 2 * eps)
    torch.testing.assert_close(
        got, true, rtol=1e-5 if dtype == torch.float32 else eps, atol=atol, equal_nan=True
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 4), (3, 2, 65, 1), (1, 5, 3, 130)])
def test_mix_adapters(shape, transposed):
    heads, skills = shape[:2]
    inventory, weights = torch.randn(shape), torch.randn(3, heads, skills)
    got = kernels.mix_adapters(inventory, weights, transposed)
    close(got, reference.mix_adapters(inventory.double(), weights.double(), transposed))
    grad = torch.randn_like(got)
    for needs in ((True, True), (True, False), (False, True)):
        mine = kernels.mix_adapters_backward(grad, inventory, weights, transposed, *needs)
        true = reference.mix_adapters_backward(
            grad.double(), inventory.double(), weights.double(), transposed, *needs
        )
        for own, exact in zip(mine, true, strict=True):
            close(own, exact)


def lora(groups, repeat, heads, skills, rank, d_in, d_out, mixtures, dtype=torch.float32):
    x = torch.randn(groups, repeat, d_in).to(dtype)
    a = torch.randn(heads, skills, d_in // heads, rank)
    b = torch.randn(heads, skills, rank, d_out // heads)
    weights = torch.rand(mixtures, heads, skills)
    rows = torch.randint(mixtures, (groups,))
    base = torch.randn(groups, repeat, d_out).to(dtype)
    return x, a, b, weights, rows, base


def check(x, a, b, weights, rows, base, scaling=0.7):
    def wide(t):
        return None if t is None else t.double()

    y, shrunk = kernels.routed_lora(x, a, b, weights, rows, base, scaling)
    exact = (wide(x), wide(a), wide(b), wide(weights), rows)
    true, true_shrunk = reference.routed_lora(*exact, wide(base), scaling)
    assert y.dtype == x.dtype
    close(y, true, x.dtype)
    close(shrunk, true_shrunk, x.dtype)
    grad = torch.randn(y.shape).to(x.dtype)
    for needs in ((True,) * 4, (False, True, False, False), (True, False, True, False)):
        needs = needs if weights is not None else (*needs[:3], False)
        mine = kernels.routed_lora_backward(
            grad, x, a, b, weights, rows, shrunk, scaling, *needs
        )  # fmt: skip
        wanted = reference.routed_lora_backward(
            wide(grad), *exact, true_shrunk, scaling, *needs
        )  # fmt: skip
        for own, value in zip(mine, wanted, strict=True):
            close(own, value, x.dtype)
    return y


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1, 1, 1, 1),
        (3, 7, 2, 3, 4, 10, 6, 2),  # one task an example
        (63, 1, 3, 2, 5, 9, 66, 4),  # packed rows
        (2, 70, 1, 2, 16, 65, 63, 5),  # more rows than a tile; mixtures without a row
    ],
)
def test_routed_lora(sizes):
    check(*lora(*sizes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats(dtype):
    check(*lora(5, 9, 2, 3, 8, 64, 32, 3, dtype))


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4, 16, 17, 64])
def test_ranks(rank, dtype):
    check(*lora(6, 50, 4, 8, rank, 256, 200, 3, dtype))
    check(*lora(300, 1, 4, 8, rank, 256, 200, 70, dtype))


def test_mixed_adapters_and_no_base():
    x, a, b, weights, rows, _ = lora(4, 5, 2, 3, 4, 10, 6, 3)
    mixed_a = reference.mix_adapters(a, weights, True)
    check(x, mixed_a, reference.mix_adapters(b, weights, False), None, rows, None)


def test_nothing():
    for groups, repeat in ((0, 3), (3, 0)):
        check(*lora(groups, repeat, 2, 3, 4, 10, 6, 2))


def test_a_nan_stays_with_its_mixture():
    x, a, b, weights, _, base = lora(4, 3, 2, 3, 4, 10, 6, 3)
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


def test_a_row_of_no_mixture_is_loud():
    x, a, b, weights, _, base = lora(4, 3, 2, 3, 4, 10, 6, 3)
    rows = torch.tensor([0, 3, -1, 2])
    y, _ = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    assert y.isnan().all(2).all(1).tolist() == [False, True, True, False]
    assert y[[0, 3]].isfinite().all()


def test_neighbours_change_no_bit():
    x, a, b, weights, rows, base = lora(9, 20, 2, 3, 4, 10, 6, 2)
    y, _ = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    part = slice(3, 7)
    alone, _ = kernels.routed_lora(x[part], a, b, weights, rows[part], base[part], 1.0)
    assert torch.equal(y[part], alone)

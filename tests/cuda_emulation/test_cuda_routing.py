"""The two ways in which CUDA applies adapters, and what its kernels promise, on the emulator.

The ops choose one way by the sizes (tests/parity); here each computes all of them.
"""

from __future__ import annotations

import pytest
import torch
from kernel_inputs import lora, wide
from launchers import routing as kernels

from oneshot.reference import routing as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAN = float("nan")


def close(got, true, dtype=torch.float32):
    """Sums are float32 or better; only what is returned in a half format is rounded to it."""
    eps = torch.finfo(dtype).eps
    scale = true.abs().max().item() if true.numel() else 1.0
    sums = 1e-12 if got.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(got.double(), true, rtol=eps + 5 * sums, atol=sums * scale)


def check(x, a, b, weights, rows, base, scaling=0.7, seed=0):
    exact = (wide(x), wide(a), wide(b), wide(weights), rows)
    true, true_shrunk = reference.routed_lora(*exact, wide(base), scaling)
    mixed = kernels._mixtures(a, b, weights)
    ways = [lambda: kernels.mixed_lora(x, *mixed, rows, base, scaling, seed)]
    if weights is not None:
        ways.append(lambda: kernels.inventory_lora(x, a, b, weights, rows, base, scaling, seed + 1))
    for way in ways:
        y, shrunk = way()
        assert y.dtype == x.dtype
        close(shrunk, true_shrunk)
        close(y, true, x.dtype)
    grad = torch.randn(y.shape).to(x.dtype)
    for needs in ((True,) * 4, (False, True, False, False), (False, False, True, True)):
        needs = needs if weights is not None else (*needs[:3], False)
        mine = kernels.routed_lora_backward(
            grad, x, a, b, weights, rows, shrunk, scaling, *needs
        )  # fmt: skip
        wanted = reference.routed_lora_backward(
            wide(grad), *exact, true_shrunk, scaling, *needs
        )  # fmt: skip
        for own, value in zip(mine, wanted, strict=True):
            close(own, value, own.dtype)


SMALL = (
    (1, 1, 1, 1, 1, 1, 1, 1),
    (3, 7, 2, 3, 4, 10, 6, 2),  # one task an example
    (20, 1, 3, 2, 5, 9, 66, 4),  # packed rows, one a block
    (270, 1, 1, 2, 3, 12, 8, 5),  # packed rows listed by mixture
    (2, 140, 1, 2, 17, 8, 516, 2),  # tiles inside an example; two blocks along the features
)


@pytest.mark.parametrize("sizes", SMALL)
def test_routed_lora(sizes):
    check(*lora(*sizes))


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
def test_dtypes(dtype, adapter):
    check(*lora(5, 9, 2, 3, 8, 16, 32, 3, dtype, adapter))
    check(*lora(2, 131, 2, 3, 3, 12, 8, 2, dtype, adapter))  # tiles


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 16, 17, 65, 300])
@pytest.mark.parametrize("rows", [(6, 1), (3, 63), (1000, 1), (300, 3)])
def test_full_sweep(rows, rank, dtype):
    adapter = torch.float64 if dtype == torch.float64 else torch.float32
    check(*lora(*rows, 4, 8, rank, 64, 200, 3, dtype, adapter), seed=rank)


@pytest.mark.gpu_free
def test_more_skills_and_mixtures_than_a_block_has_threads():
    check(*lora(530, 1, 1, 40, 2, 8, 8, 520))
    check(*lora(16, 17, 70, 3, 2, 140, 70, 1))


def test_mixed_adapters_no_base_and_views():
    x, a, b, weights, rows, _ = lora(4, 5, 2, 3, 4, 10, 6, 3)
    mixed = (reference.mix_adapters(a, weights, True), reference.mix_adapters(b, weights, False))
    check(x, *mixed, None, rows, None)
    shifted = torch.randn(4 * 5 * 8 + 1)[1:].view(4, 5, 8)  # no row starts at 16 bytes
    check(shifted, *lora(4, 5, 2, 3, 4, 8, 6, 3)[1:4], rows, None)


def test_nothing():
    for groups, repeat in ((0, 3), (3, 0)):
        check(*lora(groups, repeat, 2, 3, 4, 10, 6, 2))
    x, a, b, weights, rows, base = lora(3, 2, 2, 3, 0, 10, 6, 2)
    y, shrunk = kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    assert torch.equal(y, base)
    assert shrunk.shape == (3, 2, 0)
    check(*lora(3, 2, 2, 3, 4, 10, 0, 2))  # no feature out


@pytest.mark.parametrize("sizes", [(4, 3), (4, 90)])
def test_a_nan_stays_with_its_mixture(sizes):
    x, a, b, weights, _, base = lora(*sizes, 2, 3, 4, 10, 6, 3)
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


@pytest.mark.parametrize("repeat", [1, 70])
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_row_of_no_mixture_is_refused(wrong, repeat):
    x, a, b, weights, _, base = lora(4, repeat, 2, 3, 4, 10, 6, 3)
    rows = torch.tensor([0, 2, wrong, 1])
    with pytest.raises(RuntimeError, match="refuses its input"):
        kernels.routed_lora(x, a, b, weights, rows, base, 1.0)
    if repeat > 1:
        return
    with pytest.raises(RuntimeError, match="refuses its input"):
        kernels.routed_lora_backward(
            torch.randn(4, repeat, 6), x, a, b, weights, rows, torch.randn(4, repeat, 4), 1.0,
            False, True, False, False,
        )  # fmt: skip


@pytest.mark.parametrize("groups", [1, 255, 256, 700])
def test_rows_listed_by_mixture_leave_no_bit_to_their_order(groups):
    """Neighbours of another mixture change no bit of a row, nor of a mixture's gradient."""
    x, a, b, weights, rows, base = lora(groups, 1, 1, 2, 2, 4, 4, 3)
    mixed = (reference.mix_adapters(a, weights, True), reference.mix_adapters(b, weights, False))
    y, shrunk = kernels.mixed_lora(x, *mixed, rows, base, 1.0)
    grad = torch.randn_like(y)

    def backward(pick):
        return kernels.routed_lora_backward(
            grad[pick], x[pick], *mixed, None, rows[pick], shrunk[pick], 1.0,
            False, True, True, False,
        )  # fmt: skip

    others = torch.randperm(groups)
    order = others.argsort()
    again, _ = kernels.mixed_lora(x[others], *mixed, rows[others], base[others], 1.0, seed=1)
    assert torch.equal(again[order], y)
    stable = rows.argsort(stable=True)  # the same order inside each mixture
    for mine, same in zip(backward(stable), backward(slice(None)), strict=True):
        assert torch.equal(mine, same)

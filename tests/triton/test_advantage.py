"""Interpreted Triton kernels of the `advantage` family against the reference in float64."""

import itertools

import pytest
import torch

from oneshot.reference import advantage as reference
from oneshot.triton_kernels import advantage as kernels

NAN = float("nan")
GROUPINGS = {
    "fixed": (3, None, None),
    "ids": (0, torch.tensor([7, 1, 7, 7, 1, 2, 1, 2, -4, 7, 1, 7]), None),
    "sizes": (0, None, torch.tensor([5, 0, 1, 6])),
}


def wide(x):
    return x.double() if x is not None and x.is_floating_point() else x


def close(got, true, **tolerance):
    tolerance = tolerance or {"rtol": 2e-6, "atol": 2e-6}
    torch.testing.assert_close(got.double(), true, equal_nan=True, **tolerance)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("baseline", ["mean", "loo", "none", "opo"])
def test_group_advantages(grouping, baseline):
    rewards, lengths = torch.randn(12), torch.randint(1, 9, (12,))
    for scale, ddof, singleton in (
        ("std", 1, "raw"), ("batch_std", 0, "zero"), ("none", 1, "raw"), ("std", 1, "zero"),
    ):  # fmt: skip
        how = (baseline, scale, ddof, 1e-4, singleton, "propagate")
        got = kernels.group_advantages(rewards, None, lengths, *GROUPINGS[grouping], *how)
        assert got.dtype == torch.float32
        close(got, reference.group_advantages(
            rewards.double(), None, lengths, *GROUPINGS[grouping], *how
        ))  # fmt: skip


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("nan", ["propagate", "ignore"])
def test_token_rewards_with_garbage_and_missing_rewards(grouping, nan):
    mask = torch.rand(12, 7) < 0.6
    rewards = torch.where(mask, torch.randn(12, 7), NAN)
    mask[4], rewards[4, 2] = True, NAN
    for scale in ("std", "batch_std"):
        how = ("opo", scale, 1, 1e-6, "raw", nan)
        got = kernels.group_advantages(rewards, mask, None, *GROUPINGS[grouping], *how)
        true = reference.group_advantages(
            rewards.double(), mask, None, *GROUPINGS[grouping], *how
        )  # fmt: skip
        close(got, true)


@pytest.mark.parametrize(("rows", "group"), [(0, 1), (1, 1), (7, 7), (63, 3), (1000, 8)])
def test_sizes_of_batches(rows, group):
    rewards = torch.randint(2, (rows,)).float()
    how = (None, None, group, None, None, "mean", "std", 1, 1e-6, "raw", "propagate")
    close(kernels.group_advantages(rewards, *how), reference.group_advantages(
        rewards.double(), *how
    ))  # fmt: skip


def test_equal_rewards_give_exactly_zero_and_wrong_sizes_nan():
    how = ("mean", "std", 1, 1e-6, "raw", "propagate")
    got = kernels.group_advantages(torch.full((8,), 0.1), None, None, 8, None, None, *how)
    assert (got == 0).all()
    for sizes in ([3, 3], [9, -1], []):
        wrong = torch.tensor(sizes, dtype=torch.int64)
        got = kernels.group_advantages(torch.randn(8), None, None, 0, None, wrong, *how)
        assert got.isnan().all()


def sequences(lengths, packed, masked=True):
    width = max(lengths)
    inside = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = inside & (torch.rand(len(lengths), width) < 0.7) if masked else inside
    rewards = torch.where(mask, torch.randn(mask.shape), NAN)
    values = torch.where(mask, torch.randn(mask.shape), NAN)
    bootstrap = torch.randn(len(lengths))
    if not packed:
        return rewards, values, mask, bootstrap, None
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    return rewards[inside], values[inside], mask[inside], bootstrap, cu_seqlens


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lengths", [[1], [7, 0, 5], [63, 2]])
def test_gae(packed, lengths):
    inputs = sequences(lengths, packed)
    for gamma, lam in ((0.9, 0.95), (1.0, 1.0), (1.0, 0.0)):
        got = kernels.gae(*inputs, gamma, lam)
        true = reference.gae(*map(wide, inputs), gamma, lam)
        for mine, exact in zip(got, true, strict=True):
            close(mine, exact, rtol=1e-5, atol=1e-5)


def test_gae_without_mask_or_bootstrap_over_several_blocks():
    rewards, values = torch.randn(1, 1100), torch.randn(1, 1101)[:, :-1]
    got = kernels.gae(rewards, values, None, None, None, 0.99, 0.95)
    true = reference.gae(rewards.double(), values.double(), None, None, None, 0.99, 0.95)
    for mine, exact in zip(got, true, strict=True):
        close(mine, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu_free
def test_gae_long_and_mostly_masked():
    inputs = list(sequences([3000, 1025, 512, 513], False))
    inputs[2][0, 300:2500] = False  # whole blocks hand on what comes after them
    inputs[2][1, 1024] = False
    got = kernels.gae(*inputs, 0.99, 0.97)
    true = reference.gae(*map(wide, inputs), 0.99, 0.97)
    for mine, exact in zip(got, true, strict=True):
        close(mine, exact, rtol=1e-5, atol=2e-5)


def test_gae_of_absurd_cu_seqlens_is_loud():
    x = torch.randn(8)
    advantages, _ = kernels.gae(x, x, None, None, torch.tensor([0, 4, 9]), 1.0, 1.0)
    assert advantages.isnan().tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize("count", [0, 1, 7, 63, 1000, 5000])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten(count, shift_mean):
    values = torch.randn(count) * 1e-3 + 100  # a one-pass variance would lose every digit
    mask = torch.rand(count) < 0.7
    values[~mask] = NAN
    for used in (mask, None):
        x = values if used is not None else values.nan_to_num(100.0)
        got = kernels.whiten(x, used, shift_mean, 1e-8)
        close(got, reference.whiten(x.double(), used, shift_mean, 1e-8), rtol=1e-5, atol=1e-5)

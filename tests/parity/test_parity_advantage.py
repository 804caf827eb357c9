"""group_advantages, gae and whiten on every backend."""

import itertools

import pytest
import torch
from parity import FULL, NAN, bounds, check, padding, ragged

REAL = (torch.float32, torch.float64)
GROUPINGS = {
    "fixed": (3, None, None),
    "ids": (0, torch.tensor([7, 1, 7, 7, 1, 2, 1, 2, -4, 7, 1, 10**12]), None),
    "sizes": (0, None, torch.tensor([5, 0, 1, 6])),
}
RULES = [
    (baseline, scale, ddof, 1e-4, singleton, nan)
    for baseline, (scale, ddof, singleton), nan in itertools.product(
        ("mean", "loo", "none", "opo"),
        (("std", 1, "raw"), ("batch_std", 0, "zero"), ("none", 1, "raw"), ("std", 0, "zero")),
        ("propagate", "ignore"),
    )
]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("rule", [*RULES[::5], *(pytest.param(r, marks=FULL) for r in RULES)])
def test_group_advantages(rule, grouping, dtype):
    rewards, lengths = torch.randn(12, dtype=dtype), torch.randint(1, 9, (12,))
    check("group_advantages", rewards, None, lengths, *GROUPINGS[grouping], *rule)
    rewards[3] = NAN
    check("group_advantages", rewards, None, lengths, *GROUPINGS[grouping], *rule)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("nan", ["propagate", "ignore"])
def test_token_rewards(grouping, nan):
    mask = torch.rand(12, 7) < 0.6
    rewards = padding(mask, torch.randn(12, 7))
    mask[4], rewards[4, 2] = True, NAN
    mask[5] = False
    rule = ("opo", "std", 1, 1e-6, "raw", nan)
    check("group_advantages", rewards, mask, None, *GROUPINGS[grouping], *rule)


@pytest.mark.parametrize(
    ("rows", "group"),
    [(0, 1), (1, 1), (7, 7), (63, 3), (1000, 8), pytest.param(260, 130, marks=FULL)],
)
def test_sizes_of_batches(rows, group):
    rule = ("mean", "std", 1, 1e-6, "raw", "propagate")
    rewards = torch.randint(2, (rows,)).float()
    check("group_advantages", rewards, None, None, group, None, None, *rule)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "lengths", [[1], [7, 0, 5], [63, 2], pytest.param([1000, 64, 65, 1], marks=FULL)]
)
def test_gae(lengths, packed, dtype):
    inside, mask = ragged(lengths)
    rewards, values = (padding(mask, torch.randn(mask.shape, dtype=dtype)) for _ in range(2))
    bootstrap, ends = torch.randn(len(lengths), dtype=dtype), None
    if packed:
        rewards, values, mask = rewards[inside], values[inside], mask[inside]
        ends = bounds(lengths)
    for gamma, lam in ((0.9, 0.95), (1.0, 1.0), (1.0, 0.0)):
        check("gae", rewards, values, mask, bootstrap, ends, gamma, lam, rtol=2e-5, atol=2e-5)


def test_gae_of_views_without_mask_or_bootstrap():
    rewards, values = torch.randn(2, 1100), torch.randn(2, 1101)
    check("gae", rewards, values[:, :-1], None, None, None, 0.99, 0.95, rtol=2e-5, atol=2e-5)
    last = values[:, -1]
    check("gae", rewards, values[:, :-1], None, last, None, 0.99, 0.95, rtol=2e-5, atol=2e-5)


@FULL
def test_gae_of_long_and_mostly_masked_sequences():
    inside, _ = ragged([3000, 1025, 512, 513])
    inside[0, 300:2500] = False  # whole blocks hand on what comes after them
    inside[1, 1024] = False
    rewards, values = (padding(inside, torch.randn(inside.shape)) for _ in range(2))
    check("gae", rewards, values, inside, None, None, 0.99, 0.97, rtol=2e-5, atol=3e-5)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 63, 1000, 9000])
def test_whiten(count, shift_mean, dtype):
    # A one-pass variance would lose every digit.
    values, mask = torch.randn(count, dtype=dtype) * 1e-3 + 100, torch.rand(count) < 0.6
    tolerance = {"rtol": 1e-5, "atol": 1e-5, "exact": 1e-8}
    check("whiten", values, None, shift_mean, 1e-8, **tolerance)
    check("whiten", padding(mask, values), mask, shift_mean, 1e-8, **tolerance)

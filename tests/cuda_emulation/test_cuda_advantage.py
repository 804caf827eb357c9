"""What only the CUDA kernels of `advantage` promise, on the emulator; the rest: tests/parity."""

from __future__ import annotations

import itertools

import pytest
import torch
from launchers.advantage import gae, group_advantages, whiten

import oneshot.ops  # noqa: F401  (registers the ops of the CPU)
from oneshot._load import native
from oneshot.reference import advantage as reference

PLAIN = ("mean", "std", 1, 1e-6, "raw", "propagate")


def test_equal_rewards_give_exactly_zero() -> None:
    got = group_advantages(torch.full((24,), 0.1), None, None, 8, None, None, *PLAIN)
    assert torch.equal(got, torch.zeros(24))


@pytest.mark.parametrize("sizes", [[3, 4], [3, 6], [-1, 9], [2**62, 8], [8, 2**63 - 1]])
def test_group_sizes_that_do_not_cover_the_rows_are_refused(sizes: list[int]) -> None:
    with pytest.raises(RuntimeError, match="refuses its input"):
        group_advantages(torch.randn(8), None, None, 0, None, torch.tensor(sizes), *PLAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (7, 63), (9, 64), (3, 130), (17, 65)])
def test_gae_gives_the_bits_of_the_sequential_definition(batch, steps, dtype) -> None:
    values = torch.randn(batch, steps + 1, dtype=dtype)
    rewards, mask = torch.randn(batch, steps, dtype=dtype), torch.rand(batch, steps) < 0.7
    rewards[~mask] = float("nan")
    values[:, :-1][~mask] = float("inf")
    # Views with a stride: the last column is the bootstrap value.
    arguments = (rewards, values[:, :-1], mask, values[:, -1], None, 0.99, 0.9)
    if dtype == torch.float64:  # in float32 the reference rounds gamma * lam in float64
        for got, want in zip(gae(*arguments), reference.gae(*arguments), strict=True):
            assert torch.equal(got, want)
    if native()[0]:
        cpu = torch.ops.oneshot.gae(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(gae(*arguments, seed=1), cpu, strict=True))


def test_gae_packed_is_padded_bit_by_bit() -> None:
    lengths = [0, 5, 64, 1, 0, 100, 63, 2, 7, 65]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    tokens, longest = int(bounds[-1]), max(lengths)
    rewards, values, bootstrap = torch.randn(tokens), torch.randn(tokens), torch.randn(len(lengths))
    packed = gae(rewards, values, None, bootstrap, bounds, 0.97, 0.8, seed=1)
    wide = [torch.full((len(lengths), longest), float("nan")) for _ in range(2)]
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for i, n in enumerate(lengths):
        mask[i, :n] = True
        wide[0][i, :n] = rewards[bounds[i] : bounds[i + 1]]
        wide[1][i, :n] = values[bounds[i] : bounds[i + 1]]
    padded = gae(*wide, mask, bootstrap, None, 0.97, 0.8, seed=2)
    for a, b in zip(packed, padded, strict=True):
        assert torch.equal(a, b[mask])


@pytest.mark.parametrize("bounds", [[1, 8], [0, 7], [0, 5, 3, 8], [0, 9, 8], [-1, 8]])
def test_bounds_that_do_not_rise_to_the_tokens_are_refused(bounds: list[int]) -> None:
    x = torch.randn(8)
    with pytest.raises(RuntimeError, match="refuses its input"):
        gae(x, x, None, None, torch.tensor(bounds), 1.0, 1.0)


def test_whiten_with_nothing_kept() -> None:
    values, nothing = torch.randn(100, dtype=torch.float64), torch.zeros(100, dtype=torch.bool)
    assert torch.equal(whiten(values, nothing, True, 1e-8), torch.zeros_like(values))

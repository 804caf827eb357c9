"""The CUDA kernels of `advantage` on the emulator, against the reference in float64."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch
from emulation import Device, kernels

import oneshot.ops  # noqa: F401  (registers the ops of the CPU)
from oneshot._load import native
from oneshot.reference import advantage as reference

BASELINES, SCALES = ("mean", "loo", "opo", "none"), ("std", "batch_std", "none")


def integers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


def group_advantages(
    rewards: torch.Tensor,
    mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    size: int = 0,
    ids: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
    words: tuple[str, str, int, str, str] = ("mean", "std", 1, "raw", "propagate"),
    seed: int = 0,
) -> torch.Tensor:
    device, library = Device(kernels(), seed), kernels()
    out = device.empty(rewards.shape, rewards.dtype)
    rows, steps = rewards.shape[0], rewards.shape[1] if rewards.dim() == 2 else 1
    codes = (ctypes.c_int * 5)(
        BASELINES.index(words[0]), SCALES.index(words[1]), words[2],
        ("raw", "zero").index(words[3]), ("propagate", "ignore").index(words[4]),
    )  # fmt: skip
    library.emu_group_workspace.restype = ctypes.c_int64
    workspace = device.scratch(library.emu_group_workspace(ctypes.c_int64(rows)))
    device.check(
        library.emu_group_advantages(
            int(rewards.dtype == torch.float64), *map(ctypes.c_void_p, (device.put(rewards),
            device.put(mask), out)), integers(rows, steps), ctypes.c_void_p(device.put(lengths)),
            ctypes.c_int64(size), ctypes.c_void_p(device.put(ids)),
            ctypes.c_void_p(device.put(sizes)),
            ctypes.c_int64(0 if sizes is None else sizes.numel()), codes, ctypes.c_double(1e-6),
            ctypes.c_void_p(workspace),
        )
    )  # fmt: skip
    return device.get(out)


def expected(rewards, mask=None, lengths=None, size=0, ids=None, sizes=None,
             words=("mean", "std", 1, "raw", "propagate")):  # fmt: skip
    return reference.group_advantages(
        rewards.double(), mask, lengths, size, ids, sizes,
        words[0], words[1], words[2], 1e-6, words[3], words[4],
    )  # fmt: skip


RULES = list(itertools.product(BASELINES, SCALES, (0, 1), ("raw", "zero"), ("propagate", "ignore")))


@pytest.mark.parametrize("words", RULES[::7])
def test_group_advantages_follow_every_rule(words: tuple[str, str, int, str, str]) -> None:
    rewards = torch.randn(63)
    rewards[[3, 20]] = float("nan")
    lengths = torch.randint(1, 9, (63,))
    sizes = torch.tensor([1, 7, 0, 40, 2, 13])
    got = group_advantages(rewards, lengths=lengths, sizes=sizes, words=words)
    want = expected(rewards, lengths=lengths, sizes=sizes, words=words)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.gpu_free
@pytest.mark.parametrize("words", RULES)
def test_group_advantages_full_sweep(words: tuple[str, str, int, str, str]) -> None:
    for seed, rows in enumerate((1, 7, 63)):
        rewards = torch.randn(rows, 5, dtype=torch.float64)
        mask = torch.rand(rows, 5) < 0.6
        rewards[~mask] = float("nan")
        ids = torch.randint(-3, 1 + rows // 6, (rows,))
        got = group_advantages(rewards, mask, ids=ids, words=words, seed=seed)
        want = expected(rewards, mask, ids=ids, words=words)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (8, 8), (1000, 8), (260, 130)])
def test_groups_of_one_size(rows: int, size: int) -> None:
    rewards = torch.randn(rows)
    got = group_advantages(rewards, size=size)
    torch.testing.assert_close(got.double(), expected(rewards, size=size), rtol=1e-6, atol=1e-6)


def test_equal_rewards_give_exactly_zero() -> None:
    assert torch.equal(group_advantages(torch.full((24,), 0.1), size=8), torch.zeros(24))


def test_token_rewards_with_garbage_in_masked_places() -> None:
    rewards, mask = torch.randn(20, 33), torch.rand(20, 33) < 0.5
    rewards[~mask] = float("nan")
    mask[4] = False
    ids = torch.randint(0, 5, (20,)) * 10**12
    got = group_advantages(rewards, mask, ids=ids, seed=3)
    torch.testing.assert_close(got.double(), expected(rewards, mask, ids=ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [[3, 4], [3, 6], [-1, 9], [2**62, 8], [8, 2**63 - 1]])
def test_group_sizes_that_do_not_cover_the_rows_are_refused(sizes: list[int]) -> None:
    with pytest.raises(RuntimeError, match="refuses its input"):
        group_advantages(torch.randn(8), sizes=torch.tensor(sizes))


def gae(rewards, values, mask, bootstrap, cu_seqlens, gamma, lam, seed=0):
    device, library = Device(kernels(), seed), kernels()
    advantages = device.empty(rewards.shape, rewards.dtype)
    returns = device.empty(rewards.shape, rewards.dtype)
    packed = cu_seqlens is not None
    numbers = integers(
        cu_seqlens.numel() - 1 if packed else rewards.shape[0],
        0 if packed else rewards.shape[1],
        0 if packed else rewards.stride(0),
        0 if packed else values.stride(0),
        0 if packed or mask is None else mask.stride(0),
        0 if bootstrap is None else bootstrap.stride(0),
        rewards.numel(),
    )
    pointers = [device.put(t) for t in (rewards, values, mask, bootstrap, cu_seqlens)]
    device.check(
        library.emu_gae(
            int(rewards.dtype == torch.float64),
            *map(ctypes.c_void_p, (*pointers, advantages, returns)),
            numbers, ctypes.c_double(gamma), ctypes.c_double(lam),
        )
    )  # fmt: skip
    return device.get(advantages), device.get(returns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (7, 63), (9, 64), (3, 130), (17, 65)])
def test_gae_gives_the_bits_of_the_sequential_definition(batch, steps, dtype) -> None:
    values = torch.randn(batch, steps + 1, dtype=dtype)
    rewards, mask = torch.randn(batch, steps, dtype=dtype), torch.rand(batch, steps) < 0.7
    rewards[~mask] = float("nan")
    values[:, :-1][~mask] = float("inf")
    # Views with a stride: the last column is the bootstrap value.
    arguments = (rewards, values[:, :-1], mask, values[:, -1], None, 0.99, 0.9)
    for got, want in zip(gae(*arguments), reference.gae(*arguments), strict=True):
        if dtype == torch.float64:
            assert torch.equal(got, want)
        else:  # the reference rounds gamma * lam in float64
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
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
    want = reference.gae(rewards, values, None, bootstrap, bounds, 0.97, 0.8)
    for a, b, c in zip(packed, padded, want, strict=True):
        assert torch.equal(a, b[mask])
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bounds", [[1, 8], [0, 7], [0, 5, 3, 8], [0, 9, 8], [-1, 8]])
def test_bounds_that_do_not_rise_to_the_tokens_are_refused(bounds: list[int]) -> None:
    x = torch.randn(8)
    with pytest.raises(RuntimeError, match="refuses its input"):
        gae(x, x, None, None, torch.tensor(bounds), 1.0, 1.0)


def whiten(values, mask, shift_mean, eps=1e-8, seed=0):
    device, library = Device(kernels(), seed), kernels()
    library.emu_whiten_workspace.restype = ctypes.c_int64
    workspace = device.scratch(library.emu_whiten_workspace(ctypes.c_int64(values.numel())))
    out = device.empty(values.shape, values.dtype)
    device.check(
        library.emu_whiten(
            int(values.dtype == torch.float64),
            *map(ctypes.c_void_p, (device.put(values), device.put(mask), out)),
            ctypes.c_int64(values.numel()), ctypes.c_bool(shift_mean), ctypes.c_double(eps),
            ctypes.c_void_p(workspace),
        )
    )  # fmt: skip
    return device.get(out)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("count", [1, 7, 63, 1000, 9000])
def test_whiten(count: int, shift_mean: bool) -> None:
    values, mask = torch.randn(count) * 1e-3 + 5, torch.rand(count) < 0.5
    mask[0] = True
    values[~mask] = float("nan")
    got = whiten(values, mask, shift_mean, seed=count)
    want = reference.whiten(values.double(), mask, shift_mean, 1e-8)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert (got[~mask] == 0).all()


def test_whiten_without_mask_and_with_nothing_kept() -> None:
    values = torch.randn(100, dtype=torch.float64)
    torch.testing.assert_close(
        whiten(values, None, True), reference.whiten(values, None, True, 1e-8)
    )
    nothing = torch.zeros(100, dtype=torch.bool)
    assert torch.equal(whiten(values, nothing, True), torch.zeros_like(values))

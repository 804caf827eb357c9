"""`gae` against the sum over errors, closed forms and the plain sequential loop."""

import pytest
import torch
from advantage_inputs import garbage, random_mask, same_at_any_thread_count

from oneshot import ops
from oneshot.reference import advantage as reference


def gae_oracle(rewards, values, mask, gamma, lam, last):
    """Sum over future errors, equation 16 of arXiv 1506.02438, on the unmasked steps alone."""
    rewards, values, last = rewards.double(), values.double(), last.double()
    advantages = torch.zeros_like(rewards)
    for b in range(rewards.shape[0]):
        steps = torch.nonzero(mask[b]).flatten()
        state = torch.cat([values[b, steps], last[b : b + 1]])
        delta = rewards[b, steps] + gamma * state[1:] - state[:-1]
        for i, t in enumerate(steps.tolist()):
            decay = (gamma * lam) ** torch.arange(len(steps) - i, dtype=torch.float64)
            advantages[b, t] = (decay * delta[i:]).sum()
    return advantages, torch.where(mask, advantages + values, 0)


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (7, 63), (17, 7), (33, 100), (3, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_matches_the_sum_over_errors(rows, steps, dtype):
    mask = random_mask(rows, steps)
    rewards, values = torch.randn(rows, steps, dtype=dtype), torch.randn(rows, steps, dtype=dtype)
    last = torch.randn(rows, dtype=dtype)
    expected = gae_oracle(rewards, values, mask, 0.99, 0.95, last)
    dirty_r, dirty_v = garbage(mask, rewards), garbage(mask, values)
    appended = torch.cat([dirty_v, last[:, None]], dim=1)
    for out in (
        ops.gae(dirty_r, dirty_v, mask, 0.99, 0.95, bootstrap=last),
        ops.gae(dirty_r, appended, mask, 0.99, 0.95),
    ):
        for ours, exact in zip(out, expected, strict=True):
            tolerance = 2e-5 if dtype == torch.float32 else 1e-11
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
            assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("rows", [1, 7, 63, 40])
@pytest.mark.parametrize("steps", [1, 7, 8, 16, 63, 250])
def test_gae_is_the_sequential_loop_bitwise(rows, steps):
    mask = random_mask(rows, steps)
    rewards, values = garbage(mask, torch.randn(rows, steps)), torch.randn(rows, steps)
    loop = reference.gae(rewards, values, mask, None, None, 0.9, 0.8)
    ours = ops.gae(rewards, values, mask, 0.9, 0.8)
    assert torch.equal(ours[0], loop[0])
    assert torch.equal(ours[1], loop[1])


def test_gae_closed_forms():
    rewards, values = torch.randn(9, 50).double(), torch.randn(9, 51).double()
    one_step = rewards + 0.9 * values[:, 1:] - values[:, :-1]
    torch.testing.assert_close(ops.gae(rewards, values, None, 0.9, 0.0)[0], one_step)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = ops.gae(rewards, values[:, :-1])
    torch.testing.assert_close(advantages, to_go - values[:, :-1])
    torch.testing.assert_close(returns, to_go)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_padded_equals_packed_bitwise(dtype):
    lengths = torch.tensor([5, 0, 63, 1, 16, 200, 7, 31, 32, 33, 90, 2, 8, 64, 15, 17, 100, 3])
    steps = int(lengths.max()) + 5
    padding = torch.arange(steps) < lengths[:, None]
    mask = padding & random_mask(len(lengths), steps)
    rewards = garbage(mask, torch.randn(len(lengths), steps, dtype=dtype))
    values = garbage(mask, torch.randn(len(lengths), steps, dtype=dtype))
    last = torch.randn(len(lengths), dtype=dtype)
    padded = ops.gae(rewards, values, mask, 0.99, 0.95, bootstrap=last)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    packed = ops.gae(rewards[padding], values[padding], mask[padding], 0.99, 0.95,
                     bootstrap=last, cu_seqlens=offsets)  # fmt: skip
    for a, b in zip(padded, packed, strict=True):
        assert torch.equal(a[padding], b)
        assert (a[~padding] == 0).all()
    alone = ops.gae(rewards[5:6], values[5:6], mask[5:6], 0.99, 0.95, bootstrap=last[5:6])
    assert torch.equal(alone[0], padded[0][5:6])


def test_gae_threads_change_no_bit():
    rewards, values, mask = torch.randn(300, 1000), torch.randn(300, 1000), random_mask(300, 1000)
    assert same_at_any_thread_count(lambda: ops.gae(rewards, values, mask, 0.99, 0.95))


def test_gae_reads_strided_and_permuted_input():
    rewards, values = torch.randn(2, 40, 66), torch.randn(66, 40)
    mask = random_mask(40, 99)
    views = (rewards[1, :, ::2], values.t()[:, 1:34], mask[:, 3:36])
    ours = ops.gae(*views, 0.9, 0.8, bootstrap=values[7])
    dense = ops.gae(*(v.contiguous() for v in views), 0.9, 0.8, bootstrap=values[7].clone())
    assert torch.equal(ours[0], dense[0])
    assert torch.equal(ours[1], dense[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": torch.ones(2, 5)}, ValueError, r"values must have the shape.*\[2, 3\].*T \+ 1"),
        ({"values": torch.ones(2, 3).double()}, TypeError, "values must have the dtype of rew"),
        (
            {"rewards": torch.ones(3)},
            ValueError,
            r"rewards must have the shape \[B, T\], got \[3\]",
        ),
        ({"mask": torch.ones(2, 4).bool()}, ValueError, "mask must have the shape of rewards"),
        ({"mask": torch.full((2, 3), 0.3)}, ValueError, "mask must be bool, .* got 0.3"),
        ({"bootstrap": torch.ones(3)}, ValueError, r"bootstrap must have the shape \[2\]"),
        ({"values": torch.ones(2, 4), "bootstrap": torch.ones(2)}, ValueError, "bootstrap must be"),
        ({"rewards": torch.ones(2, 3).long()}, TypeError, "rewards must be float32"),
    ],
)
def test_gae_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        ops.gae(**{"rewards": torch.ones(2, 3), "values": torch.ones(2, 3), **change})


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 2, 4], [0, -1, 4], [0]])
def test_gae_rejects_offsets_that_do_not_cover_the_input(offsets):
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to .* 4"):
        ops.gae(torch.ones(4), torch.ones(4), cu_seqlens=torch.tensor(offsets))

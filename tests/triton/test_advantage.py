"""What only the Triton kernels of `advantage` promise; the rest is in tests/parity."""

import torch

from oneshot.triton_kernels import advantage as kernels


def test_equal_rewards_give_exactly_zero_and_wrong_sizes_nan():
    how = ("mean", "std", 1, 1e-6, "raw", "propagate")
    got = kernels.group_advantages(torch.full((8,), 0.1), None, None, 8, None, None, *how)
    assert (got == 0).all()
    for sizes in ([3, 3], [9, -1], []):
        wrong = torch.tensor(sizes, dtype=torch.int64)
        got = kernels.group_advantages(torch.randn(8), None, None, 0, None, wrong, *how)
        assert got.isnan().all()


def test_gae_of_absurd_cu_seqlens_is_loud():
    x = torch.randn(8)
    advantages, _ = kernels.gae(x, x, None, None, torch.tensor([0, 4, 9]), 1.0, 1.0)
    assert advantages.isnan().tolist() == [False] * 4 + [True] * 4

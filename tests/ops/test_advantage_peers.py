"""The numbers of verl and TRL, where they are installed (extras `verl` and `trl`)."""

import pytest
import torch
from advantage_inputs import random_mask

from oneshot import ops


@pytest.fixture(scope="module")
def verl():
    return pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")


@pytest.fixture(scope="module")
def trl_utils():
    return pytest.importorskip("trl.trainer.utils", reason="TRL is not installed")


@pytest.fixture
def batch():
    """24 responses in groups of 1, 2, 5, 16 at shuffled rows; reward on the last token."""
    mask = torch.arange(40) < torch.randint(1, 41, (24, 1))
    rewards = torch.zeros(24, 40)
    rewards[torch.arange(24), mask.sum(1) - 1] = torch.randn(24)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 2, 5, 16]))
    return rewards, mask, ids[torch.randperm(24)]


@pytest.mark.parametrize(
    ("theirs", "rule"),
    [
        ("compute_grpo_outcome_advantage", {}),
        ("compute_rloo_outcome_advantage", {"baseline": "loo", "scale": "none"}),
        ("compute_opo_outcome_advantage", {"baseline": "opo", "scale": "none"}),
    ],
)
def test_group_advantages_of_verl(verl, batch, theirs, rule):
    rewards, mask, ids = batch
    expected, _ = getattr(verl, theirs)(rewards, mask.float(), ids.numpy())
    ours = ops.group_advantages(rewards, group_ids=ids, mask=mask, **rule)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_dr_grpo_of_verl(verl, batch):
    rewards, mask, ids = batch
    expected, _ = verl.compute_grpo_outcome_advantage(
        rewards, mask.float(), ids.numpy(), norm_adv_by_std_in_grpo=False
    )
    ours = ops.group_advantages(rewards, group_ids=ids, mask=mask, scale="none")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_gae_and_whiten_of_verl(verl):
    rewards, values, mask = torch.randn(8, 63), torch.randn(8, 63), random_mask(8, 63)
    expected, expected_returns = verl.compute_gae_advantage_return(
        rewards, values, mask.float(), 0.99, 0.95
    )
    advantages, returns = ops.gae(rewards, values, mask, 0.99, 0.95)
    # Ours are 0 in masked places; verl leaves carried values there.
    assert torch.equal(returns[mask], expected_returns[mask])
    ours = ops.whiten(advantages, mask)
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "theirs"), [("std", "group"), ("batch_std", "batch")])
def test_group_advantages_of_trl(trl_utils, scale, theirs):
    """GRPOTrainer computes them inline; this is its formula, with its nanstd and a None reward."""
    rewards = torch.randn(32)
    rewards[5] = torch.nan
    grouped = rewards.view(-1, 8)
    std = trl_utils.nanstd(grouped, dim=1) if theirs == "group" else trl_utils.nanstd(rewards)
    std = std.repeat_interleave(8) if theirs == "group" else std
    centered = rewards - grouped.nanmean(dim=1).repeat_interleave(8)
    expected = torch.nan_to_num(centered / (std + 1e-4), nan=0.0)
    ours = ops.group_advantages(rewards, 8, scale=scale, eps=1e-4, singleton="zero", nan="ignore")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

"""Objectives and presets against their published formulas, written out here, with autograd."""

import math

import pytest
import torch
from policy_loss_batch import draw_batch, ours, same

from oneshot import policy_presets
from oneshot.policy_options import PolicyLossOptions


@pytest.fixture
def batch():
    return draw_batch()


def in_double(batch):
    """The batch in float64 and its counted tokens per sequence, at least 1."""
    for name in ("new", "old", "ref", "entropy", "advantage", "weights"):
        setattr(batch, name, getattr(batch, name).double())
    return batch, batch.mask.sum(1).clamp(min=1)


def sequence_mean(x, mask):
    """Mean over the sequences that have a token of the mean over their tokens."""
    rows = torch.where(mask, x, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return rows.sum() / mask.any(1).sum()


def test_sapo_formula(batch):
    """arXiv 2511.20347: f(r) = 4 / c * sigmoid(c (r - 1)), c by the sign of the advantage."""
    batch, _ = in_double(batch)
    new = batch.new.clone().requires_grad_()
    advantage = batch.advantage[:, None]
    ratio = (new - batch.old).exp()
    c = torch.where(advantage > 0, 1.5, 2.5)
    loss = sequence_mean(-advantage * 4 / c * torch.sigmoid(c * (ratio - 1)), batch.mask)
    loss.backward()
    options = PolicyLossOptions(
        objective="sapo", sapo_temperature_pos=1.5, sapo_temperature_neg=2.5
    )
    same(ours(batch, options), (loss, new, None), rtol=1e-12, atol=1e-14)


def test_vespo_formula(batch):
    """arXiv 2602.10693: phi(w) = e^l w^k e^(-l w), w the product over the sequence, no gradient."""
    batch, _ = in_double(batch)
    new = batch.new.clone().requires_grad_()
    advantage = batch.advantage[:, None]
    w = torch.where(batch.mask, new - batch.old, 0.0).sum(1, keepdim=True).exp()
    positive = (advantage >= 0).double()
    k, rate = 3 - positive, 2 + positive
    phi = (rate.exp() * w**k * (-rate * w).exp()).detach()
    loss = token_mean(-phi * advantage * new, batch.mask)
    loss.backward()
    options = PolicyLossOptions(objective="vespo")
    same(ours(batch, options), (loss, new, None), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.4, 0.1])
def test_gmpo_formula(batch, epsilon):
    """arXiv 2507.20673: geometric mean of the ratios that are clipped token by token."""
    batch, counts = in_double(batch)
    new = batch.new.clone().requires_grad_()
    sign = batch.advantage.sign()[:, None]
    x = new - batch.old
    held = sign * torch.minimum(sign * x, sign * x.clamp(-epsilon, epsilon))
    ratio = (torch.where(batch.mask, held, 0.0).sum(1) / counts).exp()
    rows = torch.where(batch.mask.any(1), -batch.advantage * ratio, 0.0)
    loss = rows.sum() / batch.mask.any(1).sum()
    loss.backward()
    bounds = {"clip_low": 1 - math.exp(-epsilon), "clip_high": math.exp(epsilon) - 1}
    actual = ours(batch, PolicyLossOptions(objective="gmpo", **bounds))
    same(actual, (loss, new, None), rtol=1e-11, atol=1e-13)
    if epsilon == 0.4:
        assert torch.equal(ours(batch, PolicyLossOptions(objective="gmpo"))[1], actual[1])
    clipped = batch.mask & ((sign * x) > epsilon)
    figures = actual[0].metrics_dict()
    share = figures["clip_fraction_low"] + figures["clip_fraction_high"]
    assert share == pytest.approx(float(clipped.sum() / batch.mask.sum()))
    assert (actual[1][clipped] == 0).all()


def test_product_of_the_sequence_formula(batch):
    """Importance sampling of whole responses: PPO's clip on the product of the ratios."""
    batch, _ = in_double(batch)
    new = batch.new.clone().requires_grad_()
    w = torch.where(batch.mask, new - batch.old, 0.0).sum(1).exp()
    gain = torch.minimum(w * batch.advantage, w.clamp(0.5, 1.5) * batch.advantage)
    loss = -torch.where(batch.mask.any(1), gain, 0.0).sum() / batch.mask.any(1).sum()
    loss.backward()
    options = PolicyLossOptions(
        objective="grpo", ratio="sequence-product", clip_low=0.5, clip_high=0.5
    )
    same(ours(batch, options), (loss, new, None), rtol=1e-11, atol=1e-13)


# ------------------------------------------------------------------------------------------------
# OpenRLHF and the paper: formulas written out here, with autograd


def token_mean(x, mask):
    return torch.where(mask, x, 0.0).sum() / mask.sum()


@pytest.mark.parametrize("dual_clip", [None, 1.2])
@pytest.mark.parametrize(("kind", "token_level"), [("ppo", True), ("ppo", False), ("gspo", True)])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_openrlhf_formulas(batch, dual_clip, kind, token_level, estimator):
    new = batch.new.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()
    mask, counts = batch.mask, batch.mask.sum(1).clamp(min=1)
    gap = new - batch.old
    if kind == "ppo":
        ratio = gap.clamp(-20, 20).exp()
    else:
        ratio = ((gap * mask).sum(1) / counts).exp()[:, None] * mask
    advantage = batch.advantage[:, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
    if token_level and kind == "ppo":
        policy = token_mean(-gain, mask)
    else:
        rows = (torch.where(mask, -gain, 0.0)).sum(1) / counts
        policy = rows.sum() / (mask.sum(1) > 0).sum()
    d = new - batch.ref
    kl = {"k1": d, "k2": d * d / 2, "k3": (-d).exp() - 1 + d}[estimator].clamp(-10, 10)
    loss = policy + 0.2 * token_mean(kl, mask) - 0.03 * token_mean(entropy, mask)
    loss.backward()
    preset = policy_presets.openrlhf(
        policy_loss_type=kind, clip_eps_high=0.3, dual_clip=dual_clip,
        token_level_loss=token_level, use_kl_loss=True, kl_coef=0.2, kl_estimator=estimator,
        entropy_loss_coef=0.03,
    )  # fmt: skip
    same(ours(batch, preset, ref=True, entropy=True), (loss, new, entropy))


def test_paper_formulas(batch):
    """Wang et al. 2025, verl snapshot: facts of the released loss, one line each."""
    new = batch.new.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()
    ratio = (new - batch.old).exp()
    advantage = batch.advantage[:, None]
    policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
    d = batch.ref - new
    kl = (d.exp() - d - 1).clamp(-10, 10)
    mean = [token_mean(x, batch.mask) for x in (policy, entropy, kl)]
    loss = mean[0] - 0.001 * mean[1] + 0.001 * mean[2]
    loss.backward()
    same(ours(batch, policy_presets.paper(), ref=True, entropy=True), (loss, new, entropy))


def test_presets_refuse_what_they_do_not_cover():
    with pytest.raises(ValueError, match="loss_type must be one of"):
        policy_presets.trl(loss_type="opsm")
    with pytest.raises(ValueError, match=r"vespo.* needs importance_sampling_level='token'"):
        policy_presets.trl(loss_type="vespo", importance_sampling_level="sequence")
    with pytest.raises(ValueError, match="needs max_completion_length"):
        policy_presets.liger(loss_type="dr_grpo")
    with pytest.raises(ValueError, match="loss_mode must be one of"):
        policy_presets.verl(loss_mode="kl_cov")
    with pytest.raises(ValueError, match="needs batch_num_tokens"):
        policy_presets.verl(dp_size=2)
    assert policy_presets.trl(loss_type="cispo").clip_low == math.inf

"""Presets against the installed libraries: loss and gradient, on the same random batch.

Each library is optional; its tests are skipped, with the reason, where it cannot be imported.
"""

import collections
import itertools
import math
import types

import pytest
import torch

from oneshot import ops, policy_presets
from oneshot.policy_options import PolicyLossOptions

ROWS, WIDTH = 6, 33


@pytest.fixture
def batch():
    """Ragged batch with one empty sequence; masked places hold 0, which every peer survives."""
    mask = torch.arange(WIDTH)[None] < torch.tensor([33, 1, 20, 0, 7, 32])[:, None]
    mask[4, 2] = False  # a hole, as a tool call leaves

    def draw(scale, shift=0.0):
        return torch.where(mask, scale * torch.randn(ROWS, WIDTH) + shift, 0.0)

    old = -draw(1.0).abs()
    return types.SimpleNamespace(
        mask=mask,
        new=(old + draw(0.3)),
        old=old,
        ref=old + draw(0.4),
        entropy=draw(1.0).abs(),
        advantage=torch.randn(ROWS),
        weights=torch.where(mask, torch.rand(ROWS, WIDTH) + 0.5, 1.0),
    )


def ours(batch, preset, *, per_token=False, weights=False, ref=False, entropy=False):
    new = batch.new.clone().requires_grad_()
    h = batch.entropy.clone().requires_grad_()
    advantages = batch.advantage[:, None].expand(ROWS, WIDTH) if per_token else batch.advantage
    out = ops.policy_loss(
        new,
        batch.old,
        advantages,
        batch.mask,
        ref_logprobs=batch.ref if ref else None,
        entropy=h if entropy else None,
        importance_weights=batch.weights if weights else None,
        options=preset,
    )
    out.loss.backward()
    return out, new.grad, h.grad


def same(actual, expected, **tolerance):
    tolerance = tolerance or {"rtol": 2e-5, "atol": 2e-6}
    out, by_new, by_entropy = actual
    loss, new, entropy = expected
    torch.testing.assert_close(out.loss.detach(), loss.detach().to(out.loss.dtype), **tolerance)
    torch.testing.assert_close(by_new, new.grad, **tolerance)
    if entropy is not None and entropy.grad is not None:
        torch.testing.assert_close(by_entropy, entropy.grad, **tolerance)


# ------------------------------------------------------------------------------------------------
# TRL


def trl_loss(batch, new, entropy, *, weights, items, **config):
    """One call of GRPOTrainer._compute_loss on given log-probabilities, without a model."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    low = config["epsilon"]
    fake = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, entropy, None),
        accelerator=types.SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, **k: x, sync_gradients=True
        ),
        args=types.SimpleNamespace(
            use_bias_correction_kl=config["use_bias_correction_kl"],
            delta=config["delta"],
            steps_per_generation=1,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
        aux_loss_enabled=False,
        beta=config["beta"],
        current_gradient_accumulation_steps=1,
        entropy_coef=config["entropy_coef"],
        _entropy_bonus_enabled=config["entropy_coef"] != 0,
        epsilon_low=low,
        epsilon_high=config["epsilon_high"] if config["epsilon_high"] is not None else low,
        importance_sampling_level=config["importance_sampling_level"],
        loss_type=config["loss_type"],
        max_completion_length=config["max_completion_length"],
        model=types.SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=weights,
        vllm_importance_sampling_correction=weights,
        get_gamma_weights=grpo.GRPOTrainer.get_gamma_weights,
        _metrics={"train": collections.defaultdict(list)},
    )
    ids = torch.zeros(ROWS, 1, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.int64),
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantage,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.ref,
        "num_items_in_batch": items,
    }
    if weights:
        inputs["importance_sampling_ratio"] = batch.weights
    return grpo.GRPOTrainer._compute_loss(fake, fake.model, inputs)


LEVELS = [
    *itertools.product(
        ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"), ("token", "sequence")
    ),
    ("vespo", "token"),
]


@pytest.mark.parametrize(("loss_type", "level"), LEVELS)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"beta": 0.1, "entropy_coef": 0.03},
        {"beta": 0.1, "use_bias_correction_kl": False, "weights": True},
        {"delta": 1.5, "epsilon_high": 0.1, "weights": True},
    ],
    ids=["default", "kl_entropy", "plain_kl_weights", "delta"],
)
def test_trl(batch, loss_type, level, extra):
    config = {
        "loss_type": loss_type,
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "beta": 0.0,
        "importance_sampling_level": level,
        "use_bias_correction_kl": True,
        "entropy_coef": 0.0,
        "max_completion_length": 50,
        **extra,
    }
    weights = config.pop("weights", False)
    if loss_type == "cispo":
        config["epsilon_high"] = 1.1  # a bound of the ratio itself
    if loss_type == "vespo":
        config["use_bias_correction_kl"] = False  # TRL's would be by the ratio of the token
    new = batch.new.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()
    items = torch.tensor(batch.mask.sum().item() + 17)
    loss = trl_loss(batch, new, entropy, weights=weights, items=items, **config)
    loss.backward()
    length = {"max_completion_length": 50} if loss_type == "dr_grpo" else {}
    config.pop("max_completion_length")
    preset = policy_presets.trl(**config, **length, num_items_in_batch=items)
    with_ref = config["beta"] != 0
    if loss_type == "vespo" and weights:  # they are part of its ratio
        batch.old, weights = batch.old - batch.weights.log(), False
    actual = ours(batch, preset, weights=weights, ref=with_ref, entropy=True)
    same(actual, (loss, new, entropy if config["entropy_coef"] else None))


# ------------------------------------------------------------------------------------------------
# Liger


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [
        *[(name, "token") for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")],
        *[(name, "sequence") for name in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")],
    ],
)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"use_bias_correction_kl": True, "delta": 1.5, "epsilon_high": 0.1, "weights": True},
        {"beta": 0.0, "num_items_in_batch": 123},
    ],
    ids=["default", "everything", "no_kl"],
)
def test_liger(batch, loss_type, level, extra):
    liger = pytest.importorskip(
        "liger_kernel.chunked_loss.grpo_loss", reason="Liger-Kernel is not installed"
    )
    config = {"loss_type": loss_type, "importance_sampling_level": level, **extra}
    weights = config.pop("weights", False)
    if loss_type == "cispo":
        config["epsilon_high"] = 1.1
    if loss_type == "dr_grpo":
        config["max_completion_length"] = 50
    if loss_type == "luspo" and (weights or config.get("beta", 0.04) != 0):
        # per-token factors make Liger average luspo over the width as well: TRL and we do not
        config["beta"], weights = 0.0, False
    new = batch.new.clone().requires_grad_()
    mask = batch.mask.float()
    loss, metrics = liger.LigerFusedLinearGRPOFunction.ppo_loss_fn(
        new, mask, batch.advantage, mask, ref_per_token_logps=batch.ref,
        old_per_token_logps=batch.old, vllm_is_ratio=batch.weights if weights else None, **config,
    )  # fmt: skip
    loss.backward()
    preset = policy_presets.liger(**config)
    with_ref = config.get("beta", 0.04) != 0
    actual = ours(batch, preset, weights=weights, ref=with_ref)
    same(actual, (loss, new, None))
    figures = actual[0].metrics_dict()
    if with_ref:
        assert figures["kl"] == pytest.approx(metrics[0].item(), rel=1e-4)
    if loss_type != "cispo":  # Liger counts a clipped weight only for positive advantages there
        clipped = figures["clip_fraction_low"] + figures["clip_fraction_high"]
        assert clipped == pytest.approx(metrics[-1].item(), abs=1e-6)


# ------------------------------------------------------------------------------------------------
# verl


def verl_modules():
    pytest.importorskip("verl", reason="verl is not installed")
    algos = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl does not import")
    return algos, pytest.importorskip("verl.workers.config")


def verl_loss(batch, new, entropy, *, weights, global_info, **config):
    """verl's actor loss (workers.utils.losses.ppo_loss) on padded tensors."""
    algos, configs = verl_modules()
    loss_mode = config.pop("loss_mode", "vanilla")
    actor = configs.ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1,
        policy_loss=configs.PolicyLossConfig(loss_mode=loss_mode),
        optim=configs.OptimizerConfig(lr=1e-6), **config,
    )  # fmt: skip
    actor.global_batch_info.update(global_info, loss_scale_factor=actor.loss_scale_factor)
    mode = actor.loss_agg_mode
    loss, metrics = algos.get_policy_loss_fn(loss_mode)(
        old_log_prob=batch.old, log_prob=new,
        advantages=batch.advantage[:, None].expand(ROWS, WIDTH), response_mask=batch.mask,
        loss_agg_mode=mode, config=actor, rollout_is_weights=batch.weights if weights else None,
    )  # fmt: skip
    info = actor.global_batch_info
    loss = loss - actor.entropy_coeff * algos.agg_loss(entropy, batch.mask, mode, **info)
    if actor.use_kl_loss:
        kl = algos.kl_penalty(new, batch.ref, actor.kl_loss_type)
        loss = loss + actor.kl_loss_coef * algos.agg_loss(kl, batch.mask, mode, **info)
    return loss, metrics


@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "cispo", "gpg"])
@pytest.mark.parametrize(
    "mode",
    [
        "token-mean",
        "token-sum",
        "seq-mean-token-sum",
        "seq-mean-token-mean",
        "seq-mean-token-sum-norm",
    ],
)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 1.2, "weights": True,
         "use_kl_loss": True, "kl_loss_coef": 0.2, "entropy_coeff": 0.05},
        {"loss_scale_factor": 77, "global": True},
    ],
    ids=["default", "everything", "global"],
)  # fmt: skip
def test_verl(batch, loss_mode, mode, extra):
    config = {"loss_mode": loss_mode, "loss_agg_mode": mode, **extra}
    weights, spread = config.pop("weights", False), config.pop("global", False)
    info = {"dp_size": 2, "batch_num_tokens": 300, "global_batch_size": 11} if spread else {}
    new = batch.new.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()
    loss, metrics = verl_loss(batch, new, entropy, weights=weights, global_info=info, **config)
    loss.backward()
    actual = ours(
        batch, policy_presets.verl(**config, **info), per_token=True, weights=weights,
        ref=config.get("use_kl_loss", False), entropy=True,
    )  # fmt: skip
    same(actual, (loss, new, entropy))
    figures = actual[0].metrics_dict()
    if metrics:
        assert figures["old_policy_kl"] == pytest.approx(metrics["actor/ppo_kl"], rel=1e-4)
        clipped = figures["clip_fraction_low"] + figures["clip_fraction_high"]
        assert clipped == pytest.approx(metrics["actor/pg_clipfrac"], abs=1e-6)
        dual = metrics["actor/pg_clipfrac_lower"]
        assert figures["dual_clip_fraction"] == pytest.approx(dual, abs=1e-6)


@pytest.mark.parametrize(
    "kind",
    ["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "k1+", "abs+", "k3+", "low_var_kl+"],
)
def test_verl_kl_estimators(batch, kind):
    batch.ref = torch.where(batch.mask, batch.ref * 4, 0.0)  # far enough that the clamps act
    batch.ref[0, :2] = torch.tensor([30.0, -30.0])
    config = {"use_kl_loss": True, "kl_loss_coef": 0.7, "kl_loss_type": kind}
    new = batch.new.clone().requires_grad_()
    loss, _ = verl_loss(batch, new, batch.entropy, weights=False, global_info={}, **config)
    loss.backward()
    same(ours(batch, policy_presets.verl(**config), per_token=True, ref=True), (loss, new, None))


def test_verl_clips_the_log_ratio(batch):
    batch.new[0, :3] = batch.old[0, :3] + torch.tensor([25.0, -25.0, 2.0])
    batch.new[2, :20] = batch.old[2, :20] + 12.0
    for loss_mode in ("vanilla", "gspo", "cispo"):
        config = {"loss_mode": loss_mode, "clip_ratio_low": 0.9, "clip_ratio_high": 1e9}
        new = batch.new.clone().requires_grad_()
        loss, _ = verl_loss(batch, new, batch.entropy, weights=False, global_info={}, **config)
        loss.backward()
        actual = ours(batch, policy_presets.verl(**config), per_token=True)
        same(actual, (loss, new, None), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
def test_verl_value_loss(batch, mode):
    algos, _ = verl_modules()
    values = batch.new.clone().requires_grad_()
    want, share = algos.compute_value_loss(
        values, batch.ref, batch.old, batch.mask, 0.2, loss_agg_mode=mode
    )
    want.backward()
    mine = batch.new.clone().requires_grad_()
    out = ops.value_loss(mine, batch.old, batch.ref, batch.mask, clip=0.2, aggregate=mode)
    out.loss.backward()
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(mine.grad, values.grad)
    assert out.metrics_dict()["clip_fraction"] == pytest.approx(float(share), abs=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("threshold", [1.1, "0.8_1.25"])
@pytest.mark.parametrize("normalize", [False, True])
def test_verl_importance_weights(batch, level, threshold, normalize):
    verl_modules()
    helper = pytest.importorskip("verl.trainer.ppo.rollout_corr_helper")
    keep = batch.mask.any(1)  # verl's figures count an empty sequence as weight 0
    new, old, mask = batch.new[keep], batch.old[keep], batch.mask[keep]
    want, metrics = helper.compute_rollout_correction_weights(
        new - old, mask, level, threshold, rollout_is_batch_normalize=normalize
    )
    masked = isinstance(threshold, str)
    low, high = (0.8, 1.25) if masked else (0.0, threshold)
    out = ops.importance_weights(
        new, old, mask, level=level, mode="mask" if masked else "truncate", low=low, high=high,
        normalize=normalize,
    )  # fmt: skip
    weights = out.weights if level == "token" else out.weights[:, None] * mask
    torch.testing.assert_close(weights, want, rtol=2e-5, atol=1e-6)
    figures = out.metrics_dict()
    assert figures["mean"] == pytest.approx(metrics["rollout_is_mean"], rel=1e-5)
    size = metrics["rollout_is_eff_sample_size"]
    assert figures["effective_sample_size"] == pytest.approx(size, rel=1e-5)
    if normalize:
        factor = metrics["rollout_is_batch_norm_factor"]
        assert figures["normalizer"] == pytest.approx(factor, rel=1e-5)


# ------------------------------------------------------------------------------------------------
# The objectives without a hard clip, by their papers' formulas in float64, with autograd


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

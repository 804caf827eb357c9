"""Presets against the installed libraries: loss and gradient, on the same random batch.

Each library is optional; its tests are skipped, with the reason, where it cannot be imported.
"""

import collections
import itertools
import types

import pytest
import torch
from policy_loss_batch import ROWS, WIDTH, draw_batch, ours, same

from oneshot import ops, policy_presets


@pytest.fixture
def batch():
    return draw_batch()


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

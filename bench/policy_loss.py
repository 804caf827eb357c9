"""Benchmarks of the `policy_loss` family."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from oneshot import ops
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.policy_options import Aggregate, KernelOptions, RatioLevel
from oneshot.reference import policy_loss as reference
from oneshot.reference import value_loss as value_reference

Loss = tuple[torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """One configuration of the loss, spelled once for all providers."""

    name: str
    objective: str
    clip_low: float
    clip_high: float
    sequence: bool = False  # ratio of whole sequences, mean over sequences
    kl_coef: float = 0.0
    entropy_coef: float = 0.0


PPO = Setting("ppo", "ppo", 0.2, 0.2)
DAPO = Setting("dapo-kl-entropy", "dapo", 0.2, 0.28, kl_coef=0.05, entropy_coef=0.01)
GSPO = Setting("gspo", "gspo", 0.05, 0.05, sequence=True)


def _inputs(setting: Setting, rows: int, steps: int) -> Inputs:
    logprobs = -3 * torch.rand(rows, steps)
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
    old = logprobs + 0.2 * torch.randn(rows, steps)
    # Whether a ratio at the border of the clip range is clipped is decided by its rounding: of four
    # million tokens some would be, and float64, the judge, would say otherwise of everyone.
    ratio = (logprobs.double() - old.double()).exp()
    for border in (1 - setting.clip_low, 1 + setting.clip_high):
        old = torch.where((ratio - border).abs() < 1e-5, logprobs, old)
    found = {
        "logprobs": logprobs,
        "old": old,
        "advantages": torch.randn(rows) + 0.5,
        "mask": mask,
        "mask_float": mask.float(),  # verl's
        "cotangents": (torch.ones(()),),
    }
    if setting.kl_coef:
        found["ref"] = logprobs + 0.2 * torch.randn(rows, steps)
        found["entropy"] = 2 * torch.rand(rows, steps)
    return found


def _ours(setting: Setting) -> Call:
    def call(inputs: Inputs) -> Loss:
        found = ops.policy_loss(
            inputs["logprobs"],
            inputs["old"],
            inputs["advantages"],
            inputs["mask"],
            ref_logprobs=inputs.get("ref"),
            entropy=inputs.get("entropy"),
            objective=setting.objective,
            clip_low=setting.clip_low,
            clip_high=setting.clip_high,
            kl_coef=setting.kl_coef,
            entropy_coef=setting.entropy_coef,
        )
        return (found.loss,)

    return call


def _reference(setting: Setting) -> Call:
    aggregate = "SEQ_MEAN_TOKEN_MEAN" if setting.sequence else "TOKEN_MEAN"
    options = KernelOptions(
        ratio=RatioLevel.SEQUENCE if setting.sequence else RatioLevel.TOKEN,
        clip_min=1 - setting.clip_low,
        clip_max=1 + setting.clip_high,
        kl_coef=setting.kl_coef,
        entropy_coef=setting.entropy_coef,
        aggregate=Aggregate[aggregate],
    )

    def call(inputs: Inputs) -> Loss:
        loss, _, _ = reference.policy_loss(
            inputs["logprobs"],
            inputs["old"],
            inputs["advantages"],
            inputs["mask"],
            inputs.get("ref"),
            inputs.get("entropy"),
            None,
            None,
            None,
            options.packed(),
            options.max_length,
        )
        return (loss,)

    return call


def _formula(setting: Setting) -> Call:
    """The loss alone, as one writes it in a trainer; no metrics."""

    def call(inputs: Inputs) -> Loss:
        logprobs, mask = inputs["logprobs"], inputs["mask"]
        advantages = inputs["advantages"].unsqueeze(1)
        log_ratio = logprobs - inputs["old"]
        if setting.sequence:
            lengths = mask.sum(1, keepdim=True)
            log_ratio = torch.where(mask, log_ratio, 0).sum(1, keepdim=True) / lengths
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - setting.clip_low, 1 + setting.clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        if setting.sequence:
            return (loss.mean(),)
        if setting.kl_coef:
            distance = inputs["ref"] - logprobs
            loss = loss + setting.kl_coef * (distance.exp() - 1 - distance)
            loss = loss - setting.entropy_coef * inputs["entropy"]
        return (torch.where(mask, loss, 0).sum() / mask.sum(),)

    return call


def _verl(setting: Setting) -> Call:
    from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, kl_penalty
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=setting.clip_low,
        clip_ratio_high=setting.clip_high,
        clip_ratio_c=1e9,  # no dual clip
    )

    def call(inputs: Inputs) -> Loss:
        mask, logprobs = inputs["mask_float"], inputs["logprobs"]
        advantages = inputs["advantages"].unsqueeze(1).expand_as(logprobs)
        loss, _ = compute_policy_loss_vanilla(
            inputs["old"], logprobs, advantages, mask, "token-mean", config
        )
        if setting.kl_coef:
            distance = kl_penalty(logprobs, inputs["ref"], "low_var_kl")
            loss = loss + setting.kl_coef * agg_loss(distance, mask, "token-mean")
            bonus = agg_loss(inputs["entropy"], mask, "token-mean")
            loss = loss - setting.entropy_coef * bonus
        return (loss,)

    return call


def _liger(setting: Setting) -> Call:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def call(inputs: Inputs) -> Loss:
        mask = inputs["mask_float"]
        loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            inputs["logprobs"],
            mask,
            inputs["advantages"],
            mask,
            ref_per_token_logps=inputs.get("ref"),
            old_per_token_logps=inputs["old"],
            epsilon_low=setting.clip_low,
            epsilon_high=setting.clip_high,
            beta=setting.kl_coef,
            loss_type="grpo" if setting.sequence else "bnpo",
            importance_sampling_level="sequence" if setting.sequence else "token",
        )
        if setting.entropy_coef:  # Liger has no entropy bonus
            bonus = (inputs["entropy"] * mask).sum() / mask.sum()
            loss = loss - setting.entropy_coef * bonus
        return (loss,)

    return call


def operation(setting: Setting, rows: int, steps: int, *, quick: bool) -> Operation:
    """policy_loss of ragged rows, with its gradients."""
    extra = bool(setting.kl_coef)
    providers = [
        Provider("oneshot", "ours", plain(_ours(setting))),
        Provider("reference", "reference", plain(_reference(setting))),
        Provider("torch", "peer", plain(_formula(setting))),
        Provider("torch.compile", "peer", compiled(_formula(setting))),
        Provider("Liger ppo_loss_fn", "peer", lambda: _liger(setting)),
    ]
    if not setting.sequence:  # verl's GSPO has another gradient
        providers.append(Provider("verl vanilla", "peer", lambda: _verl(setting)))
    providers.append(
        floor(
            "read inputs + write gradients",
            read=("old", "mask", "ref") if extra else ("old", "mask"),
            copy=("logprobs", "entropy") if extra else ("logprobs",),
        )
    )
    return Operation(
        family="policy_loss",
        kernel="policy_loss",
        variant=setting.name,
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward+backward",
        make=lambda: _inputs(setting, rows, steps),
        oracle=_reference(setting),
        providers=tuple(providers),
        differentiate=("logprobs", "entropy") if extra else ("logprobs",),
        quick=quick,
    )


# value_loss


def _value_formula(inputs: Inputs) -> Loss:
    values, old, returns = inputs["values"], inputs["old"], inputs["returns"]
    clipped = old + (values - old).clamp(-0.5, 0.5)
    error = torch.maximum((values - returns).square(), (clipped - returns).square())
    mask = inputs["mask"]
    return (0.5 * torch.where(mask, error, 0).sum() / mask.sum(),)


def _value_reference(inputs: Inputs) -> Loss:
    loss, _, _ = value_reference.value_loss(
        inputs["values"], inputs["old"], inputs["returns"], inputs["mask"], None, None,
        0.5, Aggregate.TOKEN_MEAN, False, 1,
    )  # fmt: skip
    return (loss,)


def _value_ours(inputs: Inputs) -> Loss:
    found = ops.value_loss(
        inputs["values"], inputs["old"], inputs["returns"], inputs["mask"], clip=0.5
    )
    return (found.loss,)


def _value_verl() -> Call:
    from verl.trainer.ppo.core_algos import compute_value_loss

    return lambda inputs: (
        compute_value_loss(
            inputs["values"], inputs["returns"], inputs["old"], inputs["mask_float"], 0.5
        )[0],
    )


def value_operation(rows: int, steps: int) -> Operation:
    """value_loss of ragged rows, with its gradient."""

    def make() -> Inputs:
        mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
        old = torch.randn(rows, steps)
        return {
            "values": old + 0.5 * torch.randn(rows, steps),
            "old": old,
            "returns": torch.randn(rows, steps),
            "mask": mask,
            "mask_float": mask.float(),
            "cotangents": (torch.ones(()),),
        }

    return Operation(
        family="policy_loss",
        kernel="value_loss",
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward+backward",
        make=make,
        oracle=_value_reference,
        providers=(
            Provider("oneshot", "ours", plain(_value_ours)),
            Provider("reference", "reference", plain(_value_reference)),
            Provider("torch", "peer", plain(_value_formula)),
            Provider("torch.compile", "peer", compiled(_value_formula)),
            Provider("verl", "peer", _value_verl),
            floor(
                "read inputs + write gradient", read=("old", "returns", "mask"), copy=("values",)
            ),
        ),
        differentiate=("values",),
        quick=False,
    )


OPERATIONS = [
    operation(PPO, 8, 64, quick=True),
    operation(PPO, 1024, 4096, quick=True),
    operation(DAPO, 1024, 4096, quick=False),
    operation(GSPO, 1024, 4096, quick=False),
    value_operation(1024, 4096),
]

"""Benchmarks of the `advantage` family."""

from __future__ import annotations

import torch

from oneshot import ops
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.reference import advantage as reference

Pair = tuple[torch.Tensor, torch.Tensor]
GAMMA, LAM = 0.99, 0.95


def _ragged(rows: int, steps: int) -> Inputs:
    """A mask with a random length in every row, as bool and (for verl) as float32."""
    mask = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))
    return {"mask": mask, "mask_float": mask.float()}


# group_advantages: one reward a response, groups of equal size


def _group_formula(inputs: Inputs) -> tuple[torch.Tensor]:
    grouped = inputs["rewards"].view(-1, inputs["size"])
    centered = grouped - grouped.mean(1, keepdim=True)
    return ((centered / (grouped.std(1, keepdim=True) + 1e-6)).view(-1),)


def _group_reference(inputs: Inputs) -> tuple[torch.Tensor]:
    return (
        reference.group_advantages(
            inputs["rewards"], None, None, inputs["size"], None, None,
            "mean", "std", 1, 1e-6, "raw", "propagate",
        ),
    )  # fmt: skip


def _group_verl(name: str) -> Call:
    from verl.trainer.ppo import core_algos

    estimator = getattr(core_algos, name)

    def call(inputs: Inputs) -> tuple[torch.Tensor]:
        rewards = inputs["rewards"].unsqueeze(1)  # verl takes [N, T] and returns that
        return (estimator(rewards, inputs["ones"], inputs["index"])[0].squeeze(1),)

    return call


def group_operation(prompts: int, size: int, *, quick: bool) -> Operation:
    """group_advantages of `prompts` groups of `size` responses."""

    def make() -> Inputs:
        rows = prompts * size
        return {
            "rewards": torch.rand(rows),
            "size": size,
            "ids": torch.arange(prompts).repeat_interleave(size),
            "index": torch.arange(prompts).repeat_interleave(size).numpy(),
            "ones": torch.ones(rows, 1),
        }

    return Operation(
        family="advantage",
        kernel="group_advantages",
        shape=f"{prompts}x{size}",
        dtype="float32",
        mode="forward",
        quick=quick,
        make=make,
        oracle=_group_reference,
        providers=(
            Provider(
                "oneshot", "ours", plain(lambda x: (ops.group_advantages(x["rewards"], x["size"]),))
            ),
            Provider(
                "oneshot by ids",
                "ours",
                plain(lambda x: (ops.group_advantages(x["rewards"], group_ids=x["ids"]),)),
            ),
            Provider("reference", "reference", plain(_group_reference)),
            Provider("torch", "peer", plain(_group_formula)),
            Provider("torch.compile", "peer", compiled(_group_formula)),
            Provider("verl grpo", "peer", lambda: _group_verl("compute_grpo_outcome_advantage")),
            Provider(
                "verl grpo_vectorized",
                "peer",
                lambda: _group_verl("compute_grpo_vectorized_outcome_advantage"),
            ),
            floor("copy rewards", copy=("rewards",)),
        ),
    )


# gae: [B, T] with ragged lengths


def _gae_inputs(rows: int, steps: int) -> Inputs:
    return {
        "rewards": torch.randn(rows, steps),
        "values": torch.randn(rows, steps),
        **_ragged(rows, steps),
    }


def _gae_ours(inputs: Inputs) -> Pair:
    return ops.gae(inputs["rewards"], inputs["values"], inputs["mask"], GAMMA, LAM)


def _gae_reference(inputs: Inputs) -> Pair:
    return reference.gae(
        inputs["rewards"], inputs["values"], inputs["mask"], None, None, GAMMA, LAM
    )


def _gae_chunked(inputs: Inputs, chunk: int = 64) -> Pair:
    """Reverse scan as a small triangular product in each chunk; for right-padded rows."""
    mask, decay = inputs["mask_float"], GAMMA * LAM
    values = inputs["values"] * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = (inputs["rewards"] + GAMMA * following - values) * mask
    rows, steps = delta.shape
    place = torch.arange(chunk, device=delta.device)
    power = place.unsqueeze(1) - place  # [later, earlier]
    triangle = torch.where(power >= 0, decay ** power.clamp(min=0).float(), 0)
    local = (delta.view(-1, chunk) @ triangle).view(rows, steps // chunk, chunk)
    fade = decay ** (chunk - place).float()
    carry = delta.new_zeros(rows, 1)
    for index in reversed(range(steps // chunk)):
        local[:, index] += carry * fade
        carry = local[:, index, :1]
    advantages = local.view(rows, steps) * mask
    return advantages, advantages + values


def _gae_verl() -> Call:
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    def call(inputs: Inputs) -> Pair:
        mask = inputs["mask_float"]
        advantages, returns = compute_gae_advantage_return(
            inputs["rewards"], inputs["values"], mask, GAMMA, LAM
        )
        return advantages * mask, returns * mask  # verl leaves numbers in masked places

    return call


def gae_operation(rows: int, steps: int, *, quick: bool) -> Operation:
    """Gae of ragged rows."""
    return Operation(
        family="advantage",
        kernel="gae",
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward",
        make=lambda: _gae_inputs(rows, steps),
        oracle=_gae_reference,
        providers=(
            Provider("oneshot", "ours", plain(_gae_ours)),
            Provider("reference", "reference", plain(_gae_reference)),
            Provider("torch chunked scan", "peer", plain(_gae_chunked)),
            floor("read mask, copy inputs", read=("mask",), copy=("rewards", "values")),
        ),
        quick=quick,
    )


def _whitened(gae: Call) -> Call:
    """What verl's function returns: the advantages whitened over all tokens."""

    def call(inputs: Inputs) -> Pair:
        advantages, returns = gae(inputs)
        return reference.whiten(advantages, inputs["mask"], True, 1e-8), returns

    return call


def _gae_and_whiten(rows: int, steps: int, *, quick: bool) -> Operation:
    def ours(inputs: Inputs) -> Pair:
        advantages, returns = _gae_ours(inputs)
        return ops.whiten(advantages, inputs["mask"]), returns

    return Operation(
        family="advantage",
        kernel="gae",
        variant="whitened",
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward",
        make=lambda: _gae_inputs(rows, steps),
        oracle=_whitened(_gae_reference),
        providers=(
            Provider("oneshot", "ours", plain(ours)),
            Provider("reference", "reference", plain(_whitened(_gae_reference))),
            Provider("verl gae", "peer", _gae_verl),
            floor("read mask, copy inputs", read=("mask",), copy=("rewards", "values")),
        ),
        quick=quick,
    )


# whiten: all unmasked values together


def _whiten_formula(inputs: Inputs) -> tuple[torch.Tensor]:
    values, mask = inputs["values"], inputs["mask"]
    count = mask.sum()
    mean = torch.where(mask, values, 0).sum() / count
    deviation = torch.where(mask, values - mean, 0)
    return (deviation * torch.rsqrt(deviation.square().sum() / (count - 1) + 1e-8),)


def _whiten_reference(inputs: Inputs) -> tuple[torch.Tensor]:
    return (reference.whiten(inputs["values"], inputs["mask"], True, 1e-8),)


def _whiten_verl() -> Call:
    from verl.utils.torch_functional import masked_whiten

    def call(inputs: Inputs) -> tuple[torch.Tensor]:
        mask = inputs["mask_float"]
        return (masked_whiten(inputs["values"], mask) * mask,)

    return call


def whiten_operation(rows: int, steps: int) -> Operation:
    """Whiten over all unmasked values of ragged rows."""
    return Operation(
        family="advantage",
        kernel="whiten",
        shape=f"{rows}x{steps}",
        dtype="float32",
        mode="forward",
        make=lambda: {"values": torch.randn(rows, steps) * 3 + 1, **_ragged(rows, steps)},
        oracle=_whiten_reference,
        providers=(
            Provider("oneshot", "ours", plain(lambda x: (ops.whiten(x["values"], x["mask"]),))),
            Provider("reference", "reference", plain(_whiten_reference)),
            Provider("torch", "peer", plain(_whiten_formula)),
            Provider("torch.compile", "peer", compiled(_whiten_formula)),
            Provider("verl masked_whiten", "peer", _whiten_verl),
            floor("read mask, copy values", read=("mask",), copy=("values",)),
        ),
    )


OPERATIONS = [
    group_operation(128, 8, quick=True),
    group_operation(4096, 16, quick=False),
    gae_operation(64, 1024, quick=True),
    gae_operation(1024, 4096, quick=False),
    _gae_and_whiten(64, 1024, quick=True),
    _gae_and_whiten(1024, 4096, quick=False),
    whiten_operation(8, 16),
    whiten_operation(1024, 4096),
]

"""Options of the policy loss: said once, and the generated header agrees."""

import dataclasses
import importlib.util
import inspect
import math
from pathlib import Path
from typing import get_args

import pytest
import torch

from oneshot import ops, policy_options, policy_presets
from oneshot.ops.policy_loss import kl_estimates
from oneshot.policy_options import DEFAULTS, KernelOptions, PolicyLossOptions

ROOT = Path(__file__).resolve().parents[2]


def test_the_c_header_is_generated_from_the_options():
    script = ROOT / "csrc/policy_loss/options.py"
    spec = importlib.util.spec_from_file_location("header_of_policy_options", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.HEADER.read_text(encoding="utf-8") == module.header(), f"run {script.name}"


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (policy_options.ObjectiveName, policy_options.OBJECTIVES),
        (policy_options.RatioName, policy_options.RATIOS),
        (policy_options.KlName, policy_options.KL_ESTIMATORS),
        (policy_options.AggregateName, policy_options.AGGREGATES),
    ],
)
def test_every_choice_has_a_name(names, table):
    assert get_args(names) == tuple(table)


def test_every_option_is_explained():
    source = inspect.getsource(PolicyLossOptions)
    for field in dataclasses.fields(PolicyLossOptions):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1]
        assert after.lstrip().startswith('"""'), field.name


def test_the_op_shows_every_option_with_its_default():
    parameters = inspect.signature(ops.policy_loss).parameters
    assert {n: p.default for n, p in parameters.items() if n in DEFAULTS} == DEFAULTS
    with pytest.raises(TypeError, match="no option 'clip_hihg'; it has objective, ratio"):
        ops.policy_loss(torch.zeros(1, 2), None, torch.zeros(1), clip_hihg=1)


def test_options_and_single_changes():
    x, old, a = torch.randn(2, 5), torch.randn(2, 5), torch.randn(2)
    chosen = PolicyLossOptions(objective="dapo", dual_clip=3.0)
    by_name = ops.policy_loss(x, old, a, objective="dapo", dual_clip=3.0, clip_high=0.5)
    torch.testing.assert_close(
        ops.policy_loss(x, old, a, options=chosen, clip_high=0.5), by_name, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="clip_high must be at least -1"):
        ops.policy_loss(x, old, a, options=chosen, clip_high=-2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "pppo"}, "objective must be one of ppo"),
        ({"kl": "k4"}, "kl must be one of none"),
        ({"delta": 0.5}, "delta must be at least 1"),
        ({"aggregate": "token-mean", "max_length": 3}, "max_length belongs to"),
        ({"kl_aggregate": "seq-mean-token-sum-norm"}, "kl_aggregate=.* needs aggregate="),
    ],
)
def test_options_are_checked_when_they_are_made(change, message):
    with pytest.raises(ValueError, match=message):
        PolicyLossOptions(**change)


def test_what_the_objective_leaves_open_is_its_own():
    resolved = PolicyLossOptions(objective="gspo", clip_low=0.1).resolved()
    assert (resolved.ratio, resolved.clip_low, resolved.clip_high, resolved.aggregate) == (
        "sequence", 0.1, 4e-4, "seq-mean-token-mean",
    )  # fmt: skip


def test_numbers_of_the_kernels_by_name():
    options = KernelOptions(kl=policy_options.KlEstimator.K1_PLUS, kl_coef=0.5, max_length=7)
    packed = options.packed()
    assert all(type(x) is float for x in packed)
    assert KernelOptions.option(packed, "kl_coef") == 0.5
    assert KernelOptions.unpacked(packed, 7) == options
    with pytest.raises(ValueError, match=r"options must be .* numbers"):
        KernelOptions.unpacked(packed[1:])
    with pytest.raises(ValueError, match="is not a valid"):
        KernelOptions.unpacked([99.0, *packed[1:]])


@pytest.mark.parametrize("name", policy_presets.PRESETS)
def test_presets_are_options(name):
    preset = policy_presets.PRESETS[name]
    assert isinstance(preset, PolicyLossOptions)
    x = torch.randn(2, 4)
    ref = None if preset.kl == "none" else x + 0.1
    out = ops.policy_loss(
        x, x, torch.ones(2), options=preset, ref_logprobs=ref, entropy=torch.ones(2, 4)
    )
    assert out.loss.isfinite()


@pytest.mark.parametrize("d", [1e-4, -1e-3, 0.3, -2.0, 5.0])
def test_kl_estimates_keep_their_digits(d):
    new, ref = torch.tensor([0.0]), torch.tensor([-d])
    exact = float(-ref.double())
    series = sum((-exact) ** k / math.factorial(k) for k in range(2, 40))
    wanted = {"k1": exact, "k2": exact**2 / 2, "k3": series, "abs": abs(exact), "k3+": series}
    for kl, value in wanted.items():
        assert kl_estimates(new, ref, kl).item() == pytest.approx(value, rel=1e-6), kl
    with pytest.raises(ValueError, match="kl must be one of k1"):
        kl_estimates(new, ref, "none")

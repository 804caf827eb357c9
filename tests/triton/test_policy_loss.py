"""Interpreted Triton kernels of the `policy_loss` family against the reference in float64."""

import itertools
import math

import pytest
import torch

from oneshot.reference import policy_loss as reference
from oneshot.reference.policy_loss import PolicyOptions
from oneshot.triton_kernels import policy_loss as kernels

INF, NAN = math.inf, math.nan
PLAIN = PolicyOptions(
    0, 0, 0.8, 1.2, INF, INF, -INF, INF, 3, False, INF, INF, 1.0, 1e-2, 1e-2, 0, -1, -1, False, 7
)  # fmt: skip
CASES = {
    "ppo": {},
    "dual": {"dual_clip": 1.5, "delta": 2.0, "aggregate": 2},
    "gspo": {"ratio": 1, "clip_min": 0.9, "clip_max": 1.1, "aggregate": 2, "kl": 1},
    "gspo_token": {"ratio": 2, "log_ratio_min": -0.2, "log_ratio_max": 0.3, "aggregate": 3},
    "cispo": {"surrogate": 1, "clip_min": -INF, "clip_max": 1.3, "kl": 2, "kl_aggregate": 3},
    "reinforce": {"surrogate": 2, "kl": 4, "entropy_aggregate": 1, "aggregate": 4},
    "weighted_kl": {"kl_importance_weighted": True, "kl_log_ratio_clamp": 0.5, "kl_clamp": 0.1},
    "k1_plus": {"kl": 5, "count_empty": True, "aggregate": 2, "policy_coef": 0.0},
    "k3_plus": {"kl": 6, "ratio": 1, "kl_importance_weighted": True},
    "abs_plus": {"kl": 7, "kl_coef": 0.0, "aggregate": 1},
}


def wide(x):
    return x.double() if x is not None and x.is_floating_point() else x


def close(got, true, like=torch.float32):
    tolerance = {"rtol": 3e-6, "atol": 2e-6}
    if like != torch.float32:
        tolerance = {"rtol": torch.finfo(like).eps, "atol": 1e-6}
    torch.testing.assert_close(got.double(), true, equal_nan=True, **tolerance)


def batch(lengths, width, packed=False, dtype=torch.float32, per_sequence=False, optional=True):
    """Ragged tokens with garbage in every place that does not count."""
    rows = len(lengths)
    inside = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = inside & (torch.rand(rows, width) < 0.8)

    def tokens(scale=0.4):
        return torch.where(mask, torch.randn(rows, width) * scale, NAN).to(dtype)

    new, old, ref, entropy = tokens(), tokens(), tokens(), tokens()
    advantages = torch.randn(rows) if per_sequence else tokens(1.0)
    weights = torch.rand(rows) + 0.5 if per_sequence else tokens().abs()
    cu_seqlens = None
    if packed:
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
        new, old, ref, entropy, mask_of = (x[inside] for x in (new, old, ref, entropy, mask))
        if not per_sequence:
            advantages, weights = advantages[inside], weights[inside]
        mask = mask_of
    if not optional:
        old = ref = entropy = weights = None
    return new, old, advantages, mask, ref, entropy, weights, cu_seqlens


def check(inputs, options, count=None):
    new, old, advantages, mask, ref, _, weights, cu_seqlens = inputs
    numbers, length = list(map(float, options[:-1])), options[-1]
    got = kernels.policy_loss(*inputs, count, numbers, length)
    true = reference.policy_loss(*map(wide, inputs), count, *options)
    for mine, exact in zip(got, true, strict=True):
        close(mine, exact)
    grad = torch.tensor(1.7)
    shared = (new, old, advantages, mask, ref, weights, cu_seqlens)
    by = kernels.policy_loss_backward(grad, *shared, got[2], True, True, numbers, length)
    exact = reference.policy_loss_backward(
        grad.double(), *map(wide, shared), true[2], True, True, *options
    )
    for mine, value in zip(by, exact, strict=True):
        assert mine.dtype == new.dtype
        close(mine, value, new.dtype)
    only = kernels.policy_loss_backward(grad, *shared, got[2], True, False, numbers, length)
    assert torch.equal(only[0].nan_to_num(7), by[0].nan_to_num(7))
    assert only[1].numel() == 0
    return got


@pytest.mark.parametrize("case", CASES)
def test_every_switch(case):
    options = PLAIN._replace(**CASES[case])
    packed = len(case) % 2 == 1
    check(batch([5, 0, 63], 63, packed=packed, per_sequence=case < "g"), options)


@pytest.mark.gpu_free
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_switch_in_every_layout(case, per_sequence, packed):
    options = PLAIN._replace(**CASES[case])
    check(batch([1, 7, 63, 0, 1000], 1000, packed, per_sequence=per_sequence), options)
    check(batch([9000, 3], 9000, packed, per_sequence=per_sequence), options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats(dtype):
    check(batch([7, 4], 7, dtype=dtype), PLAIN)


def test_nothing_optional_and_no_mask():
    inputs = list(batch([63, 63], 63, optional=False))
    inputs[0], inputs[2], inputs[3] = torch.randn(2, 63), torch.randn(2, 63), None
    check(tuple(inputs), PLAIN._replace(kl=0, kl_coef=0.0, entropy_coef=0.0))


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (3, 0)])
def test_nothing_counts(shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    garbage = torch.full(shape, NAN)
    got = check((garbage, garbage, garbage, mask, None, None, None, None), PLAIN._replace(kl=0))
    assert got[0] == 0
    assert (got[1][:12] == 0).all()


def test_count_replaces_the_number_of_tokens():
    check(batch([5, 3], 5), PLAIN, count=torch.tensor(11.0))


def test_a_nan_that_counts_is_not_hidden():
    inputs = list(batch([5, 3], 5))
    inputs[3] = torch.ones(2, 5, dtype=torch.bool)
    inputs = [x.nan_to_num(0.1) if x is not None and x.is_floating_point() else x for x in inputs]
    inputs[0][0, 2] = NAN
    got = check(tuple(inputs), PLAIN)
    assert got[0].isnan()


def test_blocks_of_long_sequences_are_split():
    check(batch([9500], 9500), PLAIN)


def test_padding_and_neighbours_change_no_bit():
    inputs = batch([40, 63], 63)
    numbers = list(map(float, PLAIN[:-1]))
    together = kernels.policy_loss(*inputs, torch.tensor(9.0), numbers, 7)[2]
    alone = tuple(None if x is None else x[:1, :40] for x in inputs)
    apart = kernels.policy_loss(*alone, torch.tensor(9.0), numbers, 7)[2]
    assert torch.equal(together[3, :1], apart[3])


def test_absurd_cu_seqlens_are_loud():
    inputs = list(batch([5, 3], 5, packed=True, per_sequence=True))
    inputs[-1] = torch.tensor([0, 5, 9])
    loss, _, _ = kernels.policy_loss(*inputs, None, list(map(float, PLAIN[:-1])), 7)
    assert loss.isnan()


@pytest.mark.parametrize("clip", [0.2, None])
@pytest.mark.parametrize("packed", [False, True])
def test_value_loss(packed, clip):
    values, old, returns, mask, *_, cu_seqlens = batch([5, 0, 63], 63, packed)
    old = None if clip is None else old
    clip = INF if clip is None else clip
    for aggregate in (0, 2):
        how = (cu_seqlens, None, clip, aggregate, False, 63)
        got = kernels.value_loss(values, old, returns, mask, *how)
        true = reference.value_loss(*map(wide, (values, old, returns)), mask, *how)
        for mine, exact in zip(got, true, strict=True):
            close(mine, exact)
        grad = torch.tensor(0.3)
        mine = kernels.value_loss_backward(
            grad, values, old, returns, mask, cu_seqlens, got[2], clip
        )
        close(mine, reference.value_loss_backward(
            grad.double(), *map(wide, (values, old, returns)), mask, cu_seqlens, true[2], clip
        ))  # fmt: skip


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_importance_weights(packed, per_sequence):
    new, old, _, mask, *_, cu_seqlens = batch([5, 0, 63], 63, packed)
    for truncate, normalize, low, high in ((True, True, 0.0, 1.1), (False, False, 0.7, 1.4)):
        how = (mask, cu_seqlens, per_sequence, truncate, low, high, 1.0, normalize)
        got = kernels.importance_weights(new, old, *how, False)
        true = reference.importance_weights(new.double(), old.double(), *how, False)
        for mine, exact in zip(got, true, strict=True):
            close(mine, exact)
    missing = old.clone()
    missing[0 if packed else (0, 0)] = NAN
    counted = torch.ones_like(mask)
    how = (counted, cu_seqlens, per_sequence, True, 0.0, 2.0, INF, False, True)
    strict = (counted, cu_seqlens, per_sequence, True, 0.0, 2.0, INF, True, False)
    for rule in (how, strict):
        got = kernels.importance_weights(new.nan_to_num(0), missing, *rule)
        true = reference.importance_weights(new.nan_to_num(0).double(), missing.double(), *rule)
        for mine, exact in zip(got, true, strict=True):
            close(mine, exact)

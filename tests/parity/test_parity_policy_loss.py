"""policy_loss, value_loss and importance_weights on every backend."""

import itertools

import pytest
import torch
from backends import DEVICE
from parity import DTYPES, FULL, INF, NAN, bounds, check, close, padding, ragged, some

from oneshot.policy_options import (
    AGGREGATES,
    Aggregate,
    KernelOptions,
    KlEstimator,
    RatioLevel,
    Surrogate,
)

PLAIN = KernelOptions(kl_coef=1e-2, entropy_coef=1e-2, max_length=7)
BOUNDED = {
    "dual_clip": 1.5, "delta": 1.6, "log_ratio_min": -0.9, "log_ratio_max": 0.7,
    "kl_log_ratio_clamp": 0.8, "kl_clamp": 0.3,
}  # fmt: skip
CASES = {
    "ppo": {},
    "dual": {"dual_clip": 1.5, "delta": 2.0, "aggregate": Aggregate.SEQ_MEAN_TOKEN_MEAN},
    "gspo": {
        "ratio": RatioLevel.SEQUENCE, "clip_min": 0.9, "clip_max": 1.1,
        "aggregate": Aggregate.SEQ_MEAN_TOKEN_MEAN, "kl": KlEstimator.K1,
    },
    "gspo_token": {
        "ratio": RatioLevel.SEQUENCE_TOKEN, "log_ratio_min": -0.2, "log_ratio_max": 0.3,
        "aggregate": Aggregate.SEQ_MEAN_TOKEN_SUM,
    },
    "cispo": {
        "surrogate": Surrogate.CISPO, "clip_min": -INF, "clip_max": 1.3, "kl": KlEstimator.K2,
        "kl_aggregate": Aggregate.SEQ_MEAN_TOKEN_SUM,
    },
    "reinforce": {
        "surrogate": Surrogate.REINFORCE, "kl": KlEstimator.ABS,
        "entropy_aggregate": Aggregate.TOKEN_SUM, "aggregate": Aggregate.SEQ_MEAN_TOKEN_SUM_NORM,
    },
    "weighted_kl": {"kl_importance_weighted": True, "kl_log_ratio_clamp": 0.5, "kl_clamp": 0.1},
    "k1_plus": {
        "kl": KlEstimator.K1_PLUS, "count_empty": True,
        "aggregate": Aggregate.SEQ_MEAN_TOKEN_MEAN, "policy_coef": 0.0,
    },
    "k3_plus": {
        "kl": KlEstimator.K3_PLUS, "ratio": RatioLevel.SEQUENCE, "kl_importance_weighted": True,
    },
    "abs_plus": {"kl": KlEstimator.ABS_PLUS, "kl_coef": 0.0, "aggregate": Aggregate.TOKEN_SUM},
    "no_kl": {"kl": KlEstimator.NONE, "kl_coef": 0.0},
    "sapo": {"surrogate": Surrogate.SAPO, "sapo_temperature_neg": 2.0},
    "vespo": {"surrogate": Surrogate.VESPO, "ratio": RatioLevel.SEQUENCE_PRODUCT},
    "gmpo": {
        "surrogate": Surrogate.GMPO, "ratio": RatioLevel.SEQUENCE, "kl_importance_weighted": True,
    },
    "product": {"ratio": RatioLevel.SEQUENCE_PRODUCT, "clip_min": 0.2, "clip_max": 3.0},
    **{
        f"bounded_{surrogate}{ratio}": {"surrogate": surrogate, "ratio": ratio, **BOUNDED}
        for surrogate, ratio in itertools.product(Surrogate, RatioLevel)
    },
}  # fmt: skip
TOLERANCE = {"rtol": 3e-5, "atol": 3e-6}


def batch(lengths, packed=False, dtype=torch.float32, per_sequence=False, optional=True):
    """Ragged tokens with NaN in every place that does not count."""
    inside, mask = ragged(lengths, keep=0.8)

    def tokens(scale=0.4):
        return padding(mask, torch.randn(mask.shape) * scale).to(dtype)

    new, old, ref, entropy = tokens(), tokens(), tokens(), tokens()
    advantages = torch.randn(len(lengths)) if per_sequence else tokens(1.0)
    weights = torch.rand(len(lengths)) + 0.5 if per_sequence else tokens().abs()
    ends = None
    if packed:
        ends = bounds(lengths)
        new, old, ref, entropy, mask_of = (x[inside] for x in (new, old, ref, entropy, mask))
        if not per_sequence:
            advantages, weights = advantages[inside], weights[inside]
        mask = mask_of
    if not optional:
        old = ref = entropy = weights = None
    return new, old, advantages, mask, ref, entropy, weights, ends


def both_ways(inputs, options, count=None):
    new, old, advantages, mask, ref, _, weights, ends = inputs
    numbers, length = options.packed(), options.max_length
    loss, metrics, sums = check("policy_loss", *inputs, count, numbers, length, **TOLERANCE)
    grad = torch.tensor(1.7, dtype=loss.got.dtype)
    shared = (new, old, advantages, mask, ref, weights, ends, sums)
    for needs in ((True, True), (True, False)):
        check("policy_loss_backward", grad, *shared, *needs, numbers, length, **TOLERANCE)
    return loss.got, metrics.got


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=FULL if "bounded" in c else ()) for c in CASES]
)
def test_every_switch(case):
    options = PLAIN._replace(**CASES[case])
    both_ways(batch([5, 0, 63], len(case) % 2 == 1, per_sequence=case < "g"), options)


@FULL
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_switch_in_every_layout(case, per_sequence, packed):
    options = PLAIN._replace(**CASES[case])
    both_ways(batch([1, 7, 63, 0, 1000], packed, per_sequence=per_sequence), options)


@FULL
@pytest.mark.parametrize("seed", range(40))
def test_random_options(seed):
    generator = torch.Generator().manual_seed(seed)
    pick = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    one = lambda members: list(members)[pick(len(members))]  # noqa: E731
    torch.manual_seed(seed)
    options = PLAIN._replace(
        surrogate=one(Surrogate), ratio=one(RatioLevel), kl=one(KlEstimator),
        kl_importance_weighted=bool(pick(2)), policy_coef=float(pick(2)), kl_coef=float(pick(2)),
        aggregate=one(AGGREGATES.values()), kl_aggregate=one(Aggregate),
        entropy_aggregate=one(Aggregate), count_empty=bool(pick(2)),
        **{name: bound if pick(2) else PLAIN._asdict()[name] for name, bound in BOUNDED.items()},
    )  # fmt: skip
    lengths = [pick(300) for _ in range(1 + pick(6))] + [1]
    both_ways(batch(lengths, packed=bool(pick(2))), options)


@pytest.mark.parametrize("packed", some(True, False))
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, packed):
    both_ways(batch([7, 0, 4], packed, dtype), PLAIN)


@pytest.mark.parametrize("aggregate", AGGREGATES.values())
@pytest.mark.parametrize("count", some(torch.tensor(11.5), None, torch.tensor(37)))
def test_aggregation(aggregate, count):
    options = PLAIN._replace(
        aggregate=aggregate,
        kl_aggregate=Aggregate((aggregate + 1) % 5),
        count_empty=aggregate % 2 == 0,
    )
    both_ways(batch([1, 7, 0, 30]), options, count)


def test_what_may_be_missing_strided_or_one_value_a_sequence():
    inputs = list(batch([63, 63], optional=False))
    inputs[0], inputs[2], inputs[3] = torch.randn(2, 63), torch.randn(2, 63), None
    both_ways(inputs, PLAIN._replace(kl=KlEstimator.NONE, kl_coef=0.0, entropy_coef=0.0))
    inputs = list(batch([63, 30], per_sequence=True))
    inputs[0] = torch.randn(2, 126)[:, 1::2]
    inputs[2] = torch.randn(4)[::2]
    both_ways(inputs, PLAIN)


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (3, 0)])
def test_nothing_counts(shape):
    mask, garbage = torch.zeros(shape, dtype=torch.bool), torch.full(shape, NAN)
    loss, metrics = both_ways(
        (garbage, garbage, garbage, mask, None, None, None, None),
        PLAIN._replace(kl=KlEstimator.NONE),
    )
    assert loss == 0
    assert (metrics[:12] == 0).all()


def test_a_nan_that_counts_is_not_hidden():
    inputs = list(batch([5, 3]))
    inputs[3] = torch.ones(2, 5, dtype=torch.bool)
    inputs = [x.nan_to_num(0.1) if x is not None and x.is_floating_point() else x for x in inputs]
    inputs[0][0, 2] = NAN
    loss, _ = both_ways(inputs, PLAIN)
    assert loss.isnan()


@FULL
def test_long_sequences():
    both_ways(batch([9500, 3]), PLAIN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", some(True, False))
def test_value_loss(packed, dtype):
    values, old, returns, mask, *_, ends = batch([5, 0, 63], packed, dtype)
    for clip, aggregate, count in (
        (0.2, Aggregate.TOKEN_MEAN, None),
        (INF, Aggregate.SEQ_MEAN_TOKEN_MEAN, torch.tensor(11.5)),
        (0.3, Aggregate.SEQ_MEAN_TOKEN_SUM_NORM, None),
    ):
        before = None if clip == INF else old
        loss, _, sums = check(
            "value_loss", values, before, returns, mask, ends, count, clip, aggregate,
            aggregate == Aggregate.SEQ_MEAN_TOKEN_MEAN, 63, **TOLERANCE,
        )  # fmt: skip
        grad = torch.tensor(0.3, dtype=loss.got.dtype)
        check(
            "value_loss_backward", grad, values, before, returns, mask, ends, sums, clip,
            **TOLERANCE,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("packed", some(False, True))
def test_importance_weights(packed, per_sequence, dtype):
    new, old, _, mask, *_, ends = batch([5, 0, 63], packed, dtype)
    for truncate, normalize, low, high in ((True, True, 0.0, 1.1), (False, False, 0.7, 1.4)):
        rule = (per_sequence, truncate, low, high, 1.0, normalize, False)
        check("importance_weights", new, old, mask, ends, *rule, **TOLERANCE)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_sampler_logprobs_that_are_missing(per_sequence):
    new, old, _, mask, *_ = batch([5, 0, 63])
    counted = torch.ones_like(mask)
    new, old = new.nan_to_num(0.1), old.nan_to_num(0.2)
    old[0, 0] = NAN
    for normalize, ignore_nan in itertools.product((True, False), (True, False)):
        rule = (per_sequence, True, 0.0, 2.0, INF, normalize, ignore_nan)
        check("importance_weights", new, old, counted, None, *rule, **TOLERANCE)


def test_public_gradients():
    from oneshot import ops

    logprobs, old, ref, entropy = (torch.randn(3, 20, dtype=torch.float64) for _ in range(4))
    inside, mask = ragged([20, 7, 1])
    advantages, grads = torch.randn(3, dtype=torch.float64), []
    for dtype, device in ((torch.float32, DEVICE), (torch.float64, "cpu")):
        new, bonus, *data = (x.to(device, dtype) for x in (logprobs, entropy, old, advantages, ref))
        new, bonus = new.requires_grad_(), bonus.requires_grad_()
        found = ops.policy_loss(
            new, data[0], data[1], mask.to(device), ref_logprobs=data[2], entropy=bonus,
            objective="dapo", kl_coef=0.1, entropy_coef=0.2,
        )  # fmt: skip
        value = ops.value_loss(new, data[0], data[2], inside.to(device), clip=0.2)
        (3 * found.loss + value.loss).backward()
        grads.append((new.grad, bonus.grad))
    for got, want in zip(*grads, strict=True):
        close(got, want, rtol=2e-5, atol=2e-6)

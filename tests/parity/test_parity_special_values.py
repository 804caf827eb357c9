"""Infinities, NaN, zeros and overflow: loss, gradient and reference agree on every backend.

Each token is a sequence of its own and a call of its own forward, so that one value is seen alone.
Interpreted and emulated kernels take some of the tokens, spread over the combinations.
"""

import functools
import itertools
import math
import operator

import backends
import pytest
import torch
from parity import FULL, INF, NAN, check, placed

from oneshot.ops.backends import references
from oneshot.policy_options import Aggregate, KernelOptions, KlEstimator, RatioLevel, Surrogate

PLAIN = KernelOptions(kl=KlEstimator.NONE, aggregate=Aggregate.TOKEN_SUM)
EXPONENTS = (0.1, 0.5, -0.5, 100.0, -200.0, INF, -INF, NAN)
SURROGATES = {
    "ppo": {},
    "ppo_sequence": {"ratio": RatioLevel.SEQUENCE},
    "ppo_sequence_token": {"ratio": RatioLevel.SEQUENCE_TOKEN},
    "dual": {"dual_clip": 3.0},
    "delta": {"delta": 4.0},
    "dual_and_small_delta": {"dual_clip": 3.0, "delta": 1.1},
    "dual_below_the_range": {"dual_clip": 1.1, "delta": 1.5},
    "no_bounds": {"clip_min": -INF, "clip_max": INF},
    "held": {"log_ratio_min": -0.3, "log_ratio_max": 20.0},
    "held_sequence": {"log_ratio_min": -0.3, "log_ratio_max": 20.0, "ratio": RatioLevel.SEQUENCE},
    "cispo": {"surrogate": Surrogate.CISPO, "clip_min": -INF, "clip_max": 5.0},
    "cispo_sequence": {"surrogate": Surrogate.CISPO, "ratio": RatioLevel.SEQUENCE},
    "cispo_no_bounds": {"surrogate": Surrogate.CISPO, "clip_min": -INF, "clip_max": INF},
    "reinforce": {"surrogate": Surrogate.REINFORCE},
    "product": {"ratio": RatioLevel.SEQUENCE_PRODUCT},
    "sapo": {"surrogate": Surrogate.SAPO},
    "sapo_held": {"surrogate": Surrogate.SAPO, "log_ratio_min": -0.3, "log_ratio_max": 20.0},
    "vespo": {"surrogate": Surrogate.VESPO, "ratio": RatioLevel.SEQUENCE_PRODUCT},
    "vespo_flat": {"surrogate": Surrogate.VESPO, "vespo_k_pos": 0.0, "vespo_k_neg": 0.0},
    "gmpo": {"surrogate": Surrogate.GMPO, "ratio": RatioLevel.SEQUENCE},
}


WITH_LOG_P = (Surrogate.CISPO, Surrogate.REINFORCE, Surrogate.VESPO)

# Where a call takes long: not a native process, nor a GPU without an interpreter.
SLOW = backends.NAME in ("triton", "emulated")
TOKENS, CALLS = 40, 6  # that they take at once, and one by one


def some_of(names, kept):
    """Slow backends take a part of the cases in `make test`."""
    return [pytest.param(n, marks=FULL if SLOW and n not in kept else ()) for n in names]


def spread(count, kept):
    """All of `count` positions, or about `kept` of them where the backend is slow."""
    step = count // kept | 1  # odd, so that it meets every value of an even number of them
    return range(0, count, step if SLOW else 1)


def called(count):
    """The tokens that are computed alone."""
    return spread(count, CALLS)


def columns(*values):
    """Every combination, as one [N, 1] float32 tensor for each position."""
    combinations = list(itertools.product(*values))
    kept = [combinations[i] for i in spread(len(combinations), TOKENS)]
    return [torch.tensor(column)[:, None] for column in zip(*kept, strict=True)]


def row(x, b):
    return None if x is None else x[b : b + 1]


def run(inputs, options):
    """Loss of each token, its gradient by the log-probability, and where an input is NaN.

    Both agree with the reference, whose loss stands where the backend was not called.
    """
    name, numbers = "policy_loss", options.packed()
    reason = backends.why_not(name, torch.float32)
    if reason is not None:
        pytest.skip(reason)
    new, old, advantages, ref, weights = inputs

    def both(forward, backward, at, alone):
        loss = []
        for b in alone:
            mine = [row(x, b) for x in (new, old, advantages, None, ref, None, weights, None)]
            loss.append(forward(*map(at, mine), None, numbers, 1)[0].cpu())
        data = [*map(at, (new, old, advantages, None, ref, None, weights, None))]
        sums = forward(*data, None, numbers, 1)[2]
        shared = [data[i] for i in (0, 1, 2, 3, 4, 6, 7)]
        one = at(torch.tensor(1.0))
        grad = backward(one, *shared, sums, True, False, numbers, 1)[0].cpu()
        return torch.stack(loss), grad[:, 0]

    ops = torch.ops.oneshot
    alone = called(len(new))
    some, grad = both(ops.policy_loss.default, ops.policy_loss_backward.default, placed, alone)
    loss, true_grad = both(
        *(references()[f"policy_loss{way}"] for way in ("", "_backward")),
        lambda x: x,
        range(len(new)),
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(some, loss[list(alone)], **tolerance)
    torch.testing.assert_close(grad, true_grad, **tolerance)
    loss[list(alone)] = some
    hidden = loss.isfinite() & ~grad.isfinite()
    assert not hidden.any(), "a finite loss with a gradient that is not"
    given = [x[:, 0] for x in inputs if x is not None]
    nan = functools.reduce(operator.or_, (x.isnan() for x in given))
    return loss, grad, nan


def exponential(x):
    """exp in float32's range."""
    if math.isnan(x):
        return x
    return INF if x > 88.72 else 0.0 if x < -103.97 else math.exp(x)


def by_definition(new, old, advantage, weight, o):
    """Term and gradient of one token by the formulas of docs/ops/policy_loss.md, all finite but x.

    The gradient is -A r where the moving candidate wins, and 0 where a bound does.
    """
    if o.surrogate == Surrogate.REINFORCE:
        return -advantage * weight * new, -advantage * weight
    x = new - old
    ratio = exponential(min(max(x, o.log_ratio_min), o.log_ratio_max))
    clipped = min(max(ratio, o.clip_min), o.clip_max)
    if o.surrogate == Surrogate.CISPO:
        factor = -clipped * advantage * weight
        return factor * new, factor
    inside = o.log_ratio_min <= x <= o.log_ratio_max
    if o.surrogate == Surrogate.SAPO:
        c = o.sapo_temperature_neg if advantage < 0 else o.sapo_temperature_pos
        e = exponential(-abs(c * (ratio - 1)))
        gate = (1 if ratio >= 1 else e) / (1 + e)
        slope = 4 * e / (1 + e) ** 2 * ratio if e > 0 else 0.0
        factor = -advantage * weight
        return factor * 4 * gate / c, factor * slope if inside else 0.0
    if o.surrogate == Surrogate.VESPO:
        k, rate = (
            (o.vespo_k_neg, o.vespo_lambda_neg)
            if advantage < 0
            else (o.vespo_k_pos, o.vespo_lambda_pos)
        )
        phi = 0.0 if math.isinf(ratio) else ratio**k * math.exp(rate * (1 - ratio))
        factor = -phi * advantage * weight
        return factor * new, factor
    if o.surrogate == Surrogate.GMPO:
        held = min(x, math.log(o.clip_max)) if advantage > 0 else max(x, math.log(o.clip_min))
        value = -advantage * exponential(held) * weight
        return value, value if held == x else 0.0
    candidates = [(min(ratio, o.delta) * advantage, ratio <= o.delta)]
    candidates.append((clipped * advantage, clipped == ratio))
    gain, moves = min(candidates, key=lambda pair: pair[0])
    if advantage < 0 and -gain > -o.dual_clip * advantage:
        gain, moves = o.dual_clip * advantage, False
    moves = moves and o.log_ratio_min <= x <= o.log_ratio_max
    return -gain * weight, -advantage * ratio * weight if moves else 0.0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", some_of(SURROGATES, ("ppo", "dual_and_small_delta", "cispo")))
def test_policy_term(case, weighted):
    options = PLAIN._replace(**SURROGATES[case])
    weights = (1.0, 0.0, 2.0, INF, NAN) if weighted else (1.0,)
    exponent, advantage, weight = columns(EXPONENTS, (0.0, 1.0, -1.0, INF, -INF, NAN), weights)
    # An infinite ratio comes from an old log-probability of -inf, a ratio of 0 from the new one.
    new = torch.where(exponent == -INF, -INF, -1.5)
    old = torch.where(exponent == -INF, -1.5, new - exponent)
    # It plays no part there.
    before = None if options.surrogate == Surrogate.REINFORCE else old
    loss, grad, nan = run((new, before, advantage, None, weight if weighted else None), options)
    assert loss[nan].isnan().all()
    absent = ~nan & ((advantage == 0) | (weight == 0))[:, 0]
    absent &= (weight.isfinite() | (advantage != 0))[:, 0]  # an infinite weight is not left out
    assert absent.any()
    assert (loss[absent] == 0).all()
    assert (grad[absent] == 0).all()
    for b in range(len(new)):
        values = [float(x[b]) for x in (new, old, advantage, weight)]
        if absent[b] or not math.isfinite(values[2]) or not math.isfinite(values[3]):
            continue
        if nan[b] or (options.surrogate in WITH_LOG_P and values[0] == -INF):
            continue
        want = by_definition(*values, options)
        assert float(loss[b]) == pytest.approx(want[0], rel=1e-5, nan_ok=True), values
        assert float(grad[b]) == pytest.approx(want[1], rel=1e-5, nan_ok=True), values


@pytest.mark.parametrize("without", ["finite", "-inf", "nan"])
@pytest.mark.parametrize("case", some_of(SURROGATES, ("ppo", "ppo_sequence")))
def test_policy_term_without_old_logprobs(case, without):
    """The ratio of the policy to itself is 1, and NaN where its log-probability is not finite."""
    options = PLAIN._replace(**SURROGATES[case])
    (advantage,) = columns((1.0, -1.0))
    new = torch.full_like(advantage, {"finite": -1.5, "-inf": -INF, "nan": NAN}[without])
    loss, grad, _ = run((new, None, advantage, None, None), options)
    if without == "finite":
        if options.surrogate == Surrogate.SAPO:
            positive, negative = options.sapo_temperature_pos, options.sapo_temperature_neg
            held = torch.where(advantage[:, 0] > 0, 2 / positive, 2 / negative)
        else:
            held = -1.5 if options.surrogate in WITH_LOG_P else 1.0
        torch.testing.assert_close(loss, -advantage[:, 0] * held)
        torch.testing.assert_close(grad, -advantage[:, 0])
    else:
        assert not loss.isfinite().any()


KL = {
    f"{kind}{'_weighted' if weighted else ''}{'_clamped' if clamped else ''}": {
        "kl": kind, "kl_importance_weighted": weighted, "kl_coef": 0.5,
        **({"kl_log_ratio_clamp": 2.0, "kl_clamp": 1.5} if clamped else {}),
    }
    for kind, weighted, clamped in itertools.product(range(1, 8), (False, True), (False, True))
}  # fmt: skip


@pytest.mark.parametrize("case", some_of(KL, ("3", "6_weighted_clamped")))
def test_kl_term(case):
    """With the policy term of advantage 0, which must not speak where the ratio is infinite."""
    options = PLAIN._replace(**KL[case])
    exponent, distance = columns(EXPONENTS, (0.0, 0.3, -1.0, 100.0, -1e9, INF, -INF, NAN))
    new = torch.full_like(exponent, -1.5)
    loss, grad, nan = run((new, new - exponent, 0 * new.abs(), new + distance, None), options)
    assert loss[nan].isnan().all()
    plain = (exponent == 0.1)[:, 0] & ~options.kl_importance_weighted & distance.isfinite()[:, 0]
    for b in plain.nonzero()[:, 0].tolist():
        d = float(distance[b])
        if options.kl in (3, 6) and not math.isfinite(options.kl_clamp):
            assert float(loss[b]) == pytest.approx(0.5 * (exponential(d) - 1 - d), rel=1e-4)
        if options.kl == 3 and not math.isfinite(options.kl_clamp):
            assert float(grad[b]) == pytest.approx(0.5 * (1 - exponential(d)), rel=1e-4)
        if options.kl >= 5:
            assert float(grad[b]) == pytest.approx(-0.5 * d, rel=1e-5)


def test_both_terms_with_entropy():
    """Every special value of one input, the others ordinary; entropy is linear."""
    specials = (INF, -INF, NAN, 1e30, 0.0)
    pairs = list(itertools.product(range(6), specials))
    for which, value in [pairs[i] for i in called(len(pairs))]:
        inputs = [torch.full((2, 3), x) for x in (-1.5, -1.6, 1.0, -1.2, 0.7, 1.0)]
        inputs[which][1, 1] = value
        new, old, advantages, ref, entropy, weights = inputs
        options = PLAIN._replace(kl=3, kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0)
        numbers = options.packed()
        data = (new, old, advantages, None, ref, entropy, weights, None)
        loss, _, sums = check("policy_loss", *data, None, numbers, 1, judge=_like_float32)
        grad = check(
            "policy_loss_backward", torch.tensor(1.0), new, old, advantages, None, ref, weights,
            None, sums, True, True, numbers, 1, judge=_like_float32,
        )  # fmt: skip
        assert loss.got.isfinite() or value != 0.0
        if loss.got.isfinite():
            assert all(x.got.isfinite().all() for x in grad)
        if math.isnan(value):
            assert loss.got.isnan()


def _like_float32(got, want):
    """Float64 does not overflow where float32 does."""
    got, want = got.double().cpu(), want.float().double()
    large = want.abs() > 1e25
    got, want = (torch.where(large, INF * x.sign(), x) for x in (got, want))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("clip", [INF, 0.2])
def test_value_loss(clip):
    value, old, target = columns(*[(0.3, 1.0, 1e30, INF, -INF, NAN)] * 3)
    before = None if clip == INF else old
    reason = backends.why_not("value_loss", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    ops, definitions = torch.ops.oneshot, references()
    rest = (None, clip, 1, False, 1)

    alone = list(called(len(value)))

    def losses(forward, at, tokens):
        each = [
            forward(*map(at, (row(value, b), row(before, b), row(target, b))), None, None, *rest)
            for b in tokens
        ]
        return torch.stack([x[0].cpu() for x in each]), torch.stack([x[1].cpu() for x in each])

    some, metrics = losses(ops.value_loss.default, placed, alone)
    got, true_metrics = losses(definitions["value_loss"], lambda x: x, range(len(value)))
    torch.testing.assert_close(some, got[alone], equal_nan=True)
    torch.testing.assert_close(metrics[:, :3], true_metrics[alone][:, :3], equal_nan=True)
    got[alone] = some
    weights = torch.ones(len(value), dtype=torch.float64)
    inputs = (torch.tensor(1.0), value, before, target, None, None, weights, clip)
    grad = ops.value_loss_backward.default(*map(placed, inputs)).cpu()
    torch.testing.assert_close(grad, definitions["value_loss_backward"](*inputs), equal_nan=True)
    assert not (got.isfinite() & ~grad[:, 0].isfinite()).any()
    nan = value.isnan() | target.isnan() | (old.isnan() if before is not None else False)
    assert got[nan[:, 0]].isnan().all()
    assert grad[nan].isnan().all()


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("truncate", some_of([False, True], [True]))
@pytest.mark.parametrize("bound", some_of([INF, 20.0], [INF]))
def test_importance_weights(per_sequence, truncate, bound):
    """Of a token whose log-probabilities are anything; a NaN stays one unless it is ignored."""
    reason = backends.why_not("importance_weights", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    new, sampler = columns(*[(-0.3, -1.0, -150.0, 0.0, INF, -INF, NAN)] * 2)
    for normalize, ignore_nan in itertools.product((False, True), (False, True)):
        rule = (None, None, per_sequence, truncate, 0.1, 2.0, bound, normalize, ignore_nan)
        for b in called(len(new)):
            pair = (row(new, b), row(sampler, b))
            got = torch.ops.oneshot.importance_weights.default(*map(placed, pair), *rule)
            want = references()["importance_weights"](*pair, *rule)
            for mine, true in zip(got, want, strict=True):
                torch.testing.assert_close(mine.cpu(), true, equal_nan=True)
            if (new[b] - sampler[b]).isnan():
                assert bool(got[0].isnan().any()) is not ignore_nan

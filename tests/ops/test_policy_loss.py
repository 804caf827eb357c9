"""The `policy_loss` family against loops in float64, published figures, and its own reference."""

import math

import policy_loss_oracle as oracle
import pytest
import torch
from policy_loss_inputs import INF, Batch

from oneshot import ops
from oneshot.policy_options import OBJECTIVES
from oneshot.reference import policy_loss as reference
from oneshot.reference.policy_loss import PolicyMetric

# Every option at least once, several together; keys as in `oneshot.ops.policy_loss`.
CASES = {
    **{name: {"objective": name} for name in OBJECTIVES},
    "gspo_token": {"objective": "gspo", "ratio": "sequence-token"},
    "sequence_cispo": {"objective": "cispo", "ratio": "sequence", "clip_high": 0.1},
    "cispo_two_sided": {"objective": "cispo", "clip_low": 0.2, "clip_high": 0.1},
    "product": {"ratio": "sequence-product", "clip_low": 0.5, "clip_high": 1.0},
    "product_cispo": {"objective": "cispo", "ratio": "sequence-product"},
    "product_kl": {"objective": "vespo", "kl_coef": 0.2, "kl_importance_weighted": True},
    "sapo_steep": {"objective": "sapo", "sapo_temperature_pos": 3.0, "sapo_temperature_neg": 0.5},
    "sapo_sequence": {"objective": "sapo", "ratio": "sequence", "aggregate": "token-mean"},
    "vespo_token": {"objective": "vespo", "ratio": "token", "vespo_k_pos": 0.0},
    "vespo_shape": {"objective": "vespo", "vespo_k_neg": 1.5, "vespo_lambda_neg": 0.3},
    "gmpo_tight": {"objective": "gmpo", "clip_low": 0.05, "clip_high": 0.1},
    "gmpo_kl": {
        "objective": "gmpo",
        "clip_low": 0.1,
        "clip_high": 0.1,
        "kl_coef": 0.3,
        "kl_importance_weighted": True,
    },
    "gmpo_clamp": {"objective": "gmpo", "log_ratio_clamp": (-0.1, 0.05)},
    "dual": {"dual_clip": 1.3},
    "delta": {"delta": 1.25, "clip_high": 0.1},
    "dual_and_delta": {"dual_clip": 1.4, "delta": 1.3},
    "clamp": {"log_ratio_clamp": 0.3},
    "clamp_pair": {"log_ratio_clamp": (-0.1, 0.5), "ratio": "sequence"},
    "no_clip": {"clip_low": INF, "clip_high": INF},
    **{
        f"kl_{k}": {"kl": k, "kl_coef": 0.3}
        for k in ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")
    },
    "kl_weighted": {"kl_coef": 0.3, "kl_importance_weighted": True},
    "kl_weighted_sequence": {
        "kl_coef": 0.3,
        "kl_importance_weighted": True,
        "ratio": "sequence",
        "kl": "k2",
    },
    "kl_clamped": {"kl_coef": 0.3, "kl_log_ratio_clamp": 0.5, "kl_clamp": 0.05},
    "kl_clamped_plus": {"kl_coef": 0.3, "kl_clamp": 0.05, "kl": "k3+"},
    "entropy": {"entropy_coef": 0.1},
    "coefficients": {"policy_coef": 0.7, "kl_coef": 0.2, "entropy_coef": 0.05},
    **{
        mode: {"aggregate": mode, "kl_coef": 0.1, "entropy_coef": 0.1}
        for mode in ("token-sum", "seq-mean-token-mean", "seq-mean-token-sum")
    },
    "norm": {"aggregate": "seq-mean-token-sum-norm", "max_length": 11},
    "count_empty": {"aggregate": "seq-mean-token-mean", "count_empty": True, "entropy_coef": 0.1},
    "token_count": {"token_count": 100.0, "kl_coef": 0.2},
    "sequence_count": {"aggregate": "seq-mean-token-sum", "sequence_count": 3.5},
    "other_aggregates": {
        "aggregate": "seq-mean-token-mean",
        "kl_aggregate": "token-mean",
        "entropy_aggregate": "token-sum",
        "kl_coef": 0.1,
        "entropy_coef": 0.2,
        "sequence_count": 9,
    },
}


def oracle_options(case, width):
    chosen = OBJECTIVES[case.get("objective", "ppo")]
    options = {
        "surrogate": chosen.surrogate.name.lower(),
        "ratio": chosen.ratio,
        "clip_low": chosen.clip_low,
        "clip_high": chosen.clip_high,
        "aggregate": chosen.aggregate,
        "max_length": width,
        **{
            k: v for k, v in case.items() if k not in ("objective", "token_count", "sequence_count")
        },
        "count": case.get("token_count", case.get("sequence_count")),
    }
    clamp = options.get("log_ratio_clamp")
    if clamp is not None and not isinstance(clamp, tuple):
        options["log_ratio_clamp"] = (-clamp, clamp)
    return options


def run(batch, case, *, advantages=None, weights=True, scale=1.0):
    """(loss, metrics, gradient by log-probabilities, by entropy) of the public op."""
    new = batch.new.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()
    out = ops.policy_loss(
        new,
        batch.old,
        batch.advantages if advantages is None else advantages,
        batch.mask,
        ref_logprobs=batch.ref,
        entropy=entropy,
        importance_weights=batch.weights if weights else None,
        **case,
    )
    (out.loss * scale).backward()
    return out.loss.detach(), out, new.grad, entropy.grad


def expected(batch, case, *, advantages=None, weights=True):
    new = batch.lists(batch.new, leaf=True)
    entropy = batch.lists(batch.entropy, leaf=True)
    loss, metrics = oracle.policy_loss(
        new,
        batch.lists(batch.old),
        batch.lists(batch.advantages if advantages is None else advantages),
        batch.lists(batch.ref),
        entropy,
        batch.lists(batch.weights) if weights else None,
        **oracle_options(case, batch.width),
    )
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), metrics, batch.scatter(new), batch.scatter(entropy)


def assert_same(actual, wanted, rtol, atol):
    loss, out, by_new, by_entropy = actual
    want_loss, want_metrics, want_new, want_entropy = wanted
    torch.testing.assert_close(loss.double(), want_loss, rtol=rtol, atol=atol)
    got = out.metrics_dict()
    assert list(got) == [metric.name.lower() for metric in PolicyMetric]
    for name, value in want_metrics.items():
        assert got[name] == pytest.approx(value, rel=rtol, abs=atol), name
    torch.testing.assert_close(by_new.double(), want_new, rtol=rtol, atol=atol)
    torch.testing.assert_close(by_entropy.double(), want_entropy, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_loops(case, dtype):
    batch = Batch([5, 0, 7, 1, 3], 7, dtype)
    tight = 1e-11 if dtype == torch.float64 else 3e-5
    assert_same(run(batch, case), expected(batch, case), tight, tight / 10)


@pytest.mark.parametrize(("lengths", "width"), [([1], 1), ([63], 63), ([17, 255, 0, 301], 301)])
@pytest.mark.parametrize(
    "case",
    [
        {"kl_coef": 0.1, "entropy_coef": 0.01, "dual_clip": 3.0},
        {"objective": "gspo", "kl_coef": 0.1, "kl_importance_weighted": True, "clip_high": 0.2},
    ],
    ids=["ppo", "gspo"],
)
def test_odd_sizes_and_one_advantage_a_sequence(lengths, width, case):
    batch = Batch(lengths, width)
    for shape in ((-1,), (-1, 1)):
        actual = run(batch, case, advantages=batch.advantage.reshape(shape), weights=False)
        wanted = expected(batch, case, advantages=batch.advantage, weights=False)
        assert_same(actual, wanted, 3e-5, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(dtype):
    batch = Batch([30, 63, 7], 63, dtype)
    case = {"objective": "dapo", "kl_coef": 0.1, "entropy_coef": 0.01}
    loss, out, by_new, by_entropy = run(batch, case)
    want_loss, _, want_new, want_entropy = expected(batch, case)
    assert loss.dtype == out.metrics.dtype == torch.float32
    assert by_new.dtype == by_entropy.dtype == dtype
    torch.testing.assert_close(loss.double(), want_loss, rtol=1e-5, atol=1e-6)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(by_new.double(), want_new, rtol=step, atol=1e-6)
    torch.testing.assert_close(by_entropy.double(), want_entropy, rtol=step, atol=1e-6)


def test_inputs_of_different_dtypes_are_not_rounded_to_the_narrowest():
    batch = Batch([30, 63, 7], 63, torch.float32)
    batch.new = batch.new.to(torch.bfloat16)
    batch.entropy = batch.entropy.to(torch.bfloat16)
    batch.ref = batch.ref.double()
    loss, *_ = run(batch, {"kl_coef": 0.1})
    want, *_ = expected(batch, {"kl_coef": 0.1})
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("objective", ["ppo", "gspo", "cispo"])
@pytest.mark.parametrize("cu_dtype", [torch.int32, torch.int64])
def test_packed_is_bitwise_padded(objective, cu_dtype):
    batch = Batch([40, 0, 63, 1, 300], 300)
    case = {"objective": objective, "kl_coef": 0.1, "entropy_coef": 0.01}
    for advantages in (batch.advantages, batch.advantage):
        loss, out, by_new, by_entropy = run(batch, case, advantages=advantages)
        flat = Batch.__new__(Batch)
        for name in ("new", "old", "ref", "entropy", "weights", "mask"):
            setattr(flat, name, batch.packed(getattr(batch, name))[0])
        flat_advantages = advantages if advantages.dim() == 1 else batch.packed(advantages)[0]
        cu_seqlens = batch.packed(batch.mask)[1].to(cu_dtype)
        packed = run(flat, {**case, "cu_seqlens": cu_seqlens}, advantages=flat_advantages)
        assert torch.equal(packed[0], loss)
        assert torch.equal(packed[1].metrics, out.metrics)
        assert torch.equal(packed[2], batch.packed(by_new)[0])
        assert torch.equal(packed[3], batch.packed(by_entropy)[0])


@pytest.mark.parametrize("case", [{"objective": "ppo"}, {"objective": "gspo"}])
def test_strided_inputs(case):
    batch = Batch([40, 7, 63], 63)
    case = {**case, "kl_coef": 0.1, "entropy_coef": 0.01}
    plain = run(batch, case)
    odd = Batch.__new__(Batch)
    for name in ("new", "old", "ref", "advantages", "weights", "mask"):
        x = getattr(batch, name)
        setattr(odd, name, torch.stack([x.T, x.T], dim=2)[:, :, 1].T)
    odd.entropy = batch.entropy.T.contiguous().T
    strided = run(odd, case)
    assert torch.equal(strided[0], plain[0])
    assert torch.equal(strided[2], plain[2])
    assert torch.equal(strided[3], plain[3])


@pytest.mark.parametrize("case", [{"objective": "ppo"}, {"objective": "gspo"}])
def test_thread_count_and_neighbours_change_no_bit(case):
    batch = Batch([40, 7, 63, 1000, 998, 3], 1000)
    case = {**case, "aggregate": "token-sum", "kl_coef": 0.1, "entropy_coef": 0.01}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(batch, case)
        torch.set_num_threads(2)
        two = run(batch, case)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(
        (one[0], one[1].metrics, *one[2:]), (two[0], two[1].metrics, *two[2:]), strict=True
    ):
        assert torch.equal(a, b)
    alone = Batch.__new__(Batch)
    for name in ("new", "old", "ref", "entropy", "advantages", "weights", "mask"):
        setattr(alone, name, getattr(batch, name)[3:4, :1000])
    single = run(alone, case)
    assert torch.equal(single[2], one[2][3:4])
    assert torch.equal(single[3], one[3][3:4])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (3, 0), (0, 0)])
def test_nothing_counts(objective, shape):
    """Defined: loss 0 and zero gradient, so that a micro-batch of prompts cannot kill a run."""
    new = torch.full(shape, math.nan).requires_grad_()
    entropy = torch.full(shape, INF).requires_grad_()
    mask = torch.zeros(shape, dtype=torch.bool)
    out = ops.policy_loss(
        new, torch.full(shape, -INF), torch.ones(shape[0]), mask,
        ref_logprobs=torch.full(shape, math.nan), entropy=entropy,
        objective=objective, kl_coef=0.1, entropy_coef=0.1,
        max_length=8 if objective == "dr_grpo" else None,
    )  # fmt: skip
    out.loss.backward()
    assert out.loss == 0
    assert (out.metrics == 0).all()
    assert (new.grad == 0).all()
    assert (entropy.grad == 0).all()


def test_upstream_gradient_and_retained_graph():
    batch = Batch([40, 7, 63], 63)
    _, _, once, _ = run(batch, {"kl_coef": 0.1})
    _, _, scaled, _ = run(batch, {"kl_coef": 0.1}, scale=4.0)
    assert torch.equal(scaled, once * 4)
    new = batch.new.clone().requires_grad_()
    loss = ops.policy_loss(new, batch.old, batch.advantages, batch.mask).loss
    (first,) = torch.autograd.grad(loss, new, retain_graph=True)
    kept = first.clone()
    first.mul_(7)  # what a caller does with its gradient is no business of the second pass
    (second,) = torch.autograd.grad(loss, new)
    assert torch.equal(second, kept)


def test_gradients_only_where_needed_and_never_to_data():
    batch = Batch([5, 7], 7)
    data = {
        "old_logprobs": batch.old.clone().requires_grad_(),
        "advantages": batch.advantages.clone().requires_grad_(),
        "ref_logprobs": batch.ref.clone().requires_grad_(),
        "importance_weights": batch.weights.clone().requires_grad_(),
    }
    entropy = batch.entropy.clone().requires_grad_()
    out = ops.policy_loss(
        batch.new, mask=batch.mask, entropy=entropy, kl_coef=0.1, entropy_coef=0.1, **data
    )
    out.loss.backward()
    assert all(x.grad is None for x in data.values())
    count = batch.mask.sum()
    torch.testing.assert_close(entropy.grad, torch.where(batch.mask, -0.1 / count, 0.0))
    assert not out.metrics.requires_grad
    assert not ops.policy_loss(
        batch.new, batch.old, batch.advantages, batch.mask
    ).loss.requires_grad


def test_without_old_logprobs_every_ratio_is_one():
    batch = Batch([5, 7], 7)
    new = batch.new.clone().requires_grad_()
    out = ops.policy_loss(new, None, batch.advantage, batch.mask, dual_clip=3.0)
    out.loss.backward()
    figures = out.metrics_dict()
    assert figures["ratio_min"] == figures["ratio_max"] == 1
    # one update per rollout: nothing can be clipped
    assert figures["clip_fraction_low"] == figures["clip_fraction_high"] == 0
    per_token = batch.advantage[:, None].expand(2, 7)
    want = torch.where(batch.mask, -per_token / batch.mask.sum(), 0.0)
    torch.testing.assert_close(new.grad, want)
    same = ops.policy_loss(batch.new, batch.new, batch.advantage, batch.mask, dual_clip=3.0)
    assert torch.equal(same.loss, out.loss.detach())


@pytest.mark.parametrize(
    ("d", "value"), [(-1.0, 0.367879), (0.1, 0.005171), (1.0, 0.718282), (3.0, 10.0)]
)
def test_published_k3_values(d, value):
    """One-shot RLVR's low_var_kl: exp(d) - d - 1 with d = ref - new, clamped at 10."""
    new = torch.tensor([[-4.0]]).requires_grad_()
    out = ops.policy_loss(
        new, None, torch.zeros(1), ref_logprobs=torch.tensor([[-4.0 + d]]), kl_coef=1.0,
        kl_log_ratio_clamp=20.0, kl_clamp=10.0,
    )  # fmt: skip
    assert out.loss.item() == pytest.approx(value, abs=1e-6)
    out.loss.backward()
    slope = 0.0 if d == 3.0 else 1 - math.exp(d)
    assert new.grad.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("d", [1e-2, 1e-3, -1e-4, 1e-5, -0.34, 0.69, -0.71])
def test_k3_keeps_its_digits_near_zero(d):
    new = torch.tensor([[0.0]]).requires_grad_()
    ref = torch.tensor([[d]])
    out = ops.policy_loss(new, None, torch.zeros(1), ref_logprobs=ref, kl_coef=1.0)
    out.loss.backward()
    exact = float(ref.double())
    series = sum(exact**k / math.factorial(k) for k in range(2, 20))
    assert out.loss.item() == pytest.approx(series, rel=1e-6)
    assert new.grad.item() == pytest.approx(-math.expm1(exact), rel=1e-6)


def test_uniform_reward_leaves_only_the_entropy_gradient():
    """Zero advantages: no policy gradient; descent on the loss must raise the entropy."""
    logits = torch.randn(3, 5, 11, dtype=torch.float64).requires_grad_()
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    chosen = logprobs[..., 0]
    out = ops.policy_loss(
        chosen, chosen.detach(), torch.zeros(3), entropy=entropy, entropy_coef=0.1
    )
    (by_chosen,) = torch.autograd.grad(out.loss, chosen, retain_graph=True)
    assert (by_chosen == 0).all()
    out.loss.backward()
    assert logits.grad.abs().max() > 0
    after = (logits.detach() - 1.0 * logits.grad).log_softmax(-1)
    assert -(after.exp() * after).sum(-1).mean() > entropy.mean()


def test_count_as_a_tensor_equals_the_number():
    batch = Batch([5, 7], 7)
    for override, mode in (
        ("token_count", "token-mean"),
        ("sequence_count", "seq-mean-token-mean"),
    ):
        losses = [
            run(batch, {"aggregate": mode, override: count, "kl_coef": 0.1})
            for count in (37, torch.tensor(37), torch.tensor(37.0))
        ]
        for other in losses[1:]:
            assert torch.equal(other[0], losses[0][0])
            assert torch.equal(other[2], losses[0][2])


def test_valid_nan_is_not_hidden():
    batch = Batch([5, 7], 7)
    batch.new[1, int(batch.mask[1].nonzero()[0])] = math.nan
    loss, out, by_new, _ = run(batch, {})
    assert loss.isnan()
    assert out.metrics_dict()["ratio_mean"] != out.metrics_dict()["ratio_mean"]
    assert by_new[1].isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "case", [{"dual_clip": 3.0}, {"objective": "gspo"}, {"objective": "cispo", "clip_high": 0.1}]
)
def test_kernel_equals_reference(case, dtype):
    """The kernel where there is one against the plain definition."""
    batch = Batch([400, 70, 0, 1000], 1000, dtype)
    case = {**case, "kl_coef": 0.1, "kl": "k3", "entropy_coef": 0.01}
    actual = run(batch, case)
    new, entropy = batch.new.clone(), batch.entropy.clone()
    calls = {}

    def catch(name, function):
        def wrapper(*args):
            calls[name] = args
            return function(*args)

        return wrapper

    module = ops.policy_loss.__globals__
    handle = module["_policy_loss"]
    module["_policy_loss"] = catch("forward", handle)
    try:
        ops.policy_loss(
            new, batch.old, batch.advantages, batch.mask, ref_logprobs=batch.ref,
            entropy=entropy, importance_weights=batch.weights, **case,
        )  # fmt: skip
    finally:
        module["_policy_loss"] = handle
    args = calls["forward"]
    loss, metrics, weights = reference.policy_loss(*args)
    exact = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
    )
    torch.testing.assert_close(actual[0], loss, **exact)
    torch.testing.assert_close(actual[1].metrics, metrics, **exact)
    by_new, by_entropy = reference.policy_loss_backward(
        torch.ones((), dtype=loss.dtype), *args[:5], *args[6:8], weights, True, True, *args[9:]
    )
    if dtype == torch.bfloat16:
        exact = {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(actual[2], by_new, **exact)
    torch.testing.assert_close(actual[3], by_entropy, **exact)


ERRORS = {
    "shape": ({"old_logprobs": torch.zeros(2, 6)}, ValueError, r"old_logprobs must have the shape"),
    "advantages": ({"advantages": torch.zeros(3)}, ValueError, r"advantages must be \[2\]"),
    "mask": ({"mask": torch.full((2, 7), 0.5)}, ValueError, "mask must be bool, .* got 0.5"),
    "integers": ({"logprobs": torch.zeros(2, 7, dtype=torch.int64)}, TypeError, "logprobs must be"),
    "objective": ({"objective": "pppo"}, ValueError, "objective must be one of ppo"),
    "ratio": ({"ratio": "word"}, ValueError, "ratio must be one of token"),
    "kl": ({"kl": "k4"}, ValueError, "kl must be one of none"),
    "kl_coef": ({"kl_coef": 0.1}, ValueError, "needs ref_logprobs"),
    "entropy_coef": ({"entropy_coef": 0.1}, ValueError, "needs entropy"),
    "clip": ({"clip_low": -0.1}, ValueError, "clip_low must be at least 0"),
    "nan": ({"clip_low": math.nan}, ValueError, "clip_low must be at least 0"),
    "dual": ({"dual_clip": 0.5}, ValueError, "dual_clip must be at least 1"),
    "override": ({"sequence_count": 3}, ValueError, "sequence_count belongs to"),
    "length": ({"max_length": 3}, ValueError, "max_length belongs to"),
    "count": ({"token_count": 0}, ValueError, "token_count must be positive"),
    "rank": ({"logprobs": torch.zeros(7)}, ValueError, r"logprobs must be \[B, T\]"),
    "entropy": ({"entropy": torch.zeros(2, 7).double()}, TypeError, "entropy must have the dtype"),
    "packed": (
        {"cu_seqlens": torch.tensor([0, 2])},
        ValueError,
        r"packed logprobs must be \[N\]",
    ),
}


@pytest.mark.parametrize(("change", "error", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_come_early_and_say_what_came(change, error, text):
    arguments = {
        "logprobs": torch.zeros(2, 7),
        "old_logprobs": torch.zeros(2, 7),
        "advantages": torch.zeros(2),
        **change,
    }
    with pytest.raises(error, match=text):
        ops.policy_loss(**arguments)


@pytest.mark.parametrize("bounds", [[1, 5], [0, 4], [0, 4, 2, 5], [0, 9]])
def test_wrong_cu_seqlens(bounds):
    with pytest.raises((ValueError, RuntimeError), match="cu_seqlens must rise from 0 to 5"):
        ops.policy_loss(torch.zeros(5), None, torch.zeros(5), cu_seqlens=torch.tensor(bounds))

"""The `policy_loss` family against loops in float64, published figures, and its own reference."""

import math

import policy_loss_oracle as oracle
import pytest
import torch

import oneshot.numpy
from oneshot import ops
from oneshot._load import native
from oneshot.policy_options import OBJECTIVES
from oneshot.reference import policy_loss as reference
from oneshot.reference.policy_loss import PolicyMetric

INF = math.inf
needs_native = pytest.mark.skipif(native()[0] is None, reason="the native library is off")


class Batch:
    """Ragged random batch with NaN, inf and huge numbers wherever the mask is False."""

    def __init__(self, lengths, width, dtype=torch.float32, spread=0.4, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        batch = len(lengths)
        self.mask = torch.zeros(batch, width, dtype=torch.bool)
        for b, length in enumerate(lengths):
            self.mask[b, torch.randperm(width, generator=generator)[:length]] = True
        new = -draw(batch, width).abs()
        self.new = self._garbage(new, dtype)
        self.old = self._garbage(new + spread * draw(batch, width), dtype)
        self.ref = self._garbage(new + spread * draw(batch, width), dtype)
        self.entropy = self._garbage(draw(batch, width).abs(), dtype)
        self.advantages = self._garbage(draw(batch, width), dtype)
        self.advantage = draw(batch).to(dtype)
        self.weights = self._garbage(draw(batch, width).exp(), dtype)
        self.width = width

    def _garbage(self, x, dtype):
        bad = torch.tensor([math.nan, INF, -INF, -1e30, 1e30], dtype=torch.float64)
        bad = bad.repeat(x.numel() // 5 + 1)[: x.numel()].reshape(x.shape)
        return torch.where(self.mask, x, bad).to(dtype)

    def lists(self, x, leaf=False):
        """Counted tokens of each sequence as float64 scalars (leaves if asked)."""
        rows = []
        for b in range(self.mask.shape[0]):
            row = (
                x[b].double()[self.mask[b]]
                if x.dim() == 2
                else x[b].double().repeat(int(self.mask[b].sum()))
            )
            rows.append([v.clone().requires_grad_() if leaf else float(v) for v in row])
        return rows

    def scatter(self, rows):
        """Gradients of leaves back to [B, T], zero where masked."""
        out = torch.zeros(self.mask.shape, dtype=torch.float64)
        for b, row in enumerate(rows):
            out[b][self.mask[b]] = torch.tensor(
                [0.0 if v.grad is None else float(v.grad) for v in row], dtype=torch.float64
            )
        return out

    def packed(self, x):
        """The same values as flat tokens, and cu_seqlens (rows cut behind their last token)."""
        keep = torch.zeros_like(self.mask)
        for b in range(self.mask.shape[0]):
            where = self.mask[b].nonzero()
            keep[b, : int(where.max()) + 1 if len(where) else 0] = True
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
        return x[keep], cu_seqlens


def names(figures):
    return {name: float(x) for name, x in figures.items()}


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


# ------------------------------------------------------------------------------------------------
# Contracts of a torch op


def _op_inputs(dtype=torch.float32, packed=False):
    batch = Batch([5, 0, 7], 7, dtype)
    captured = {}
    module = ops.policy_loss.__globals__
    handle = module["_policy_loss"]

    def catch(*args):
        captured["args"] = args
        return handle(*args)

    module["_policy_loss"] = catch
    try:
        if packed:
            new, cu_seqlens = batch.packed(batch.new)
            ops.policy_loss(
                new.requires_grad_(), None, batch.advantage, batch.packed(batch.mask)[0],
                cu_seqlens=cu_seqlens,
            )  # fmt: skip
        else:
            ops.policy_loss(
                batch.new.requires_grad_(), batch.old, batch.advantages, batch.mask,
                ref_logprobs=batch.ref, entropy=batch.entropy.requires_grad_(),
                importance_weights=batch.weights, kl_coef=0.1, entropy_coef=0.1, token_count=40,
            )  # fmt: skip
    finally:
        module["_policy_loss"] = handle
    return captured["args"]


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    args = _op_inputs(torch.float64, packed)
    # masked garbage is NaN by design, and opcheck compares inputs with ==
    args = tuple(
        x.detach().nan_to_num(0, 0, 0).requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in args
    )
    torch.library.opcheck(torch.ops.oneshot.policy_loss.default, args)
    batch = Batch([5, 7], 7, torch.float64)
    values = torch.where(batch.mask, batch.new, 0).requires_grad_()
    old = torch.where(batch.mask, batch.old, 0)
    torch.library.opcheck(
        torch.ops.oneshot.value_loss.default,
        (values, old, old + 1, batch.mask, None, None, 0.2, 0, False, 1),
    )
    torch.library.opcheck(
        torch.ops.oneshot.importance_weights.default,
        (old, old + 0.1, batch.mask, None, False, True, 0.0, 2.0, 20.0, True, False),
    )


def test_compiles_fullgraph_with_dynamic_sizes_once():
    torch._dynamo.reset()
    compiled_count = 0

    def backend(graph, inputs):
        nonlocal compiled_count
        compiled_count += 1
        return graph.forward

    def step(new, old, advantages, mask, ref, entropy):
        out = ops.policy_loss(
            new, old, advantages, mask, ref_logprobs=ref, entropy=entropy, objective="dr_grpo",
            kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0,
        )  # fmt: skip
        return out.loss, out.metrics

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for lengths, width in (([5, 0, 7], 9), ([3, 2, 4, 11], 12), ([7, 7], 30)):
        batch = Batch(lengths, width)
        inputs = (batch.old, batch.advantages, batch.mask, batch.ref, batch.entropy)
        a, b = batch.new.clone().requires_grad_(), batch.new.clone().requires_grad_()
        loss, metrics = compiled(a, *inputs)
        want_loss, want_metrics = step(b, *inputs)
        loss.backward()
        want_loss.backward()
        assert torch.equal(loss, want_loss)
        assert torch.equal(metrics, want_metrics)
        assert torch.equal(a.grad, b.grad)
    assert compiled_count == 1


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: ops.policy_loss(*x, clip_high=INF, kl_coef=0.0).loss,
        fullgraph=True,
        dynamic=True,
    )
    for width in (9, 30):
        batch = Batch([5, 7], width)
        new = batch.new.clone().requires_grad_()
        loss = compiled(new, batch.old, batch.advantages, batch.mask)
        loss.backward()
        want = ops.policy_loss(batch.new, batch.old, batch.advantages, batch.mask, clip_high=INF)
        assert torch.equal(loss.detach(), want.loss)


# ------------------------------------------------------------------------------------------------
# Value loss


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        {"aggregate": "token-mean"},
        {"aggregate": "token-mean", "token_count": 99},
        {"aggregate": "seq-mean-token-mean"},
        {"aggregate": "seq-mean-token-sum", "count_empty": True},
        {"aggregate": "seq-mean-token-sum-norm", "max_length": 13},
    ],
    ids=lambda case: case["aggregate"],
)
def test_value_loss_matches_loops(clip, dtype, case):
    batch = Batch([63, 0, 17, 1], 63, dtype)
    values = batch.new.clone().requires_grad_()
    old = None if clip is None else batch.old
    out = ops.value_loss(values, old, batch.ref, batch.mask, clip=clip, **case)
    (out.loss * 3).backward()
    leaves = batch.lists(batch.new, leaf=True)
    loss = oracle.value_loss(
        leaves, batch.lists(batch.old), batch.lists(batch.ref), clip, case["aggregate"],
        count=case.get("token_count"), max_length=case.get("max_length"),
        count_empty=case.get("count_empty", False),
    )  # fmt: skip
    (loss * 3).backward()
    tight = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.loss.detach().double(), loss.detach(), rtol=tight, atol=0)
    torch.testing.assert_close(
        values.grad.double(), batch.scatter(leaves), rtol=tight, atol=tight / 10
    )
    figures = out.metrics_dict()
    value = batch.new[batch.mask].double()
    target = batch.ref[batch.mask].double()
    assert figures["value_mean"] == pytest.approx(value.mean().item(), rel=tight)
    assert figures["return_mean"] == pytest.approx(target.mean().item(), rel=tight)
    want = 1 - (target - value).var(unbiased=False) / target.var(unbiased=False)
    assert figures["explained_variance"] == pytest.approx(want.item(), rel=tight * 10)
    if clip is not None:
        bounded = value.clamp(batch.old[batch.mask] - clip, batch.old[batch.mask] + clip)
        share = ((bounded - target) ** 2 > (value - target) ** 2).double().mean().item()
        assert figures["clip_fraction"] == pytest.approx(share, abs=1e-6)


def test_value_loss_layouts_threads_and_emptiness():
    batch = Batch([40, 0, 63, 1, 300], 300)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        values = batch.new.clone().requires_grad_()
        out = ops.value_loss(values, batch.old, batch.ref, batch.mask)
        out.loss.backward()
        results.append((out.loss.detach(), out.metrics, values.grad))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    flat, cu_seqlens = batch.packed(batch.new)
    flat.requires_grad_()
    packed = ops.value_loss(
        flat, batch.packed(batch.old)[0], batch.packed(batch.ref)[0], batch.packed(batch.mask)[0],
        cu_seqlens=cu_seqlens,
    )  # fmt: skip
    packed.loss.backward()
    assert torch.equal(packed.loss, results[0][0])
    assert torch.equal(packed.metrics, results[0][1])
    assert torch.equal(flat.grad, batch.packed(results[0][2])[0])
    empty = torch.full((2, 3), math.nan).requires_grad_()
    none = ops.value_loss(empty, empty.detach(), empty.detach(), torch.zeros(2, 3).bool())
    none.loss.backward()
    assert none.loss == 0
    assert (none.metrics == 0).all()
    assert (empty.grad == 0).all()


def test_value_loss_errors():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="needs old_values"):
        ops.value_loss(x, None, x)
    with pytest.raises(ValueError, match="clip must be positive"):
        ops.value_loss(x, x, x, clip=0.0)
    with pytest.raises(ValueError, match="returns must have the shape"):
        ops.value_loss(x, x, x[:1])


# ------------------------------------------------------------------------------------------------
# Importance weights


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("mode", "low", "high"), [("truncate", 0.0, 1.2), ("truncate", 0.8, INF), ("mask", 0.7, 1.3)]
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_importance_weights_match_loops(level, mode, low, high, normalize, dtype):
    batch = Batch([7, 0, 5, 1], 7, dtype, spread=0.15)
    options = {"level": level, "mode": mode, "low": low, "high": high, "normalize": normalize}
    out = ops.importance_weights(batch.new, batch.old, batch.mask, **options)
    tight = 1e-11 if dtype == torch.float64 else 1e-5
    rows = oracle.importance_weights(
        batch.lists(batch.new), batch.lists(batch.old), level, mode, low, high, 20.0, normalize
    )
    figures = out.metrics_dict()
    lengths = batch.mask.sum(1).tolist()
    if level == "sequence":
        assert out.weights.shape == (4,)
        torch.testing.assert_close(
            out.weights.double(), torch.tensor(rows, dtype=torch.float64), rtol=tight, atol=0
        )
        per_token = [w for w, n in zip(rows, lengths, strict=True) for _ in range(n)]
    else:
        assert (out.weights[~batch.mask] == 0).all()
        per_token = [w for row in rows for w in row]
        torch.testing.assert_close(
            out.weights[batch.mask].double(),
            torch.tensor(per_token, dtype=torch.float64),
            rtol=tight,
            atol=0,
        )
    applied = torch.tensor(per_token, dtype=torch.float64) * figures["normalizer"]
    assert figures["mean"] == pytest.approx(applied.mean().item(), rel=tight)
    assert figures["min"] == pytest.approx(applied.min().item(), rel=tight)
    assert figures["max"] == pytest.approx(applied.max().item(), rel=tight)
    size = applied.mean() ** 2 / (applied**2).mean()
    assert figures["effective_sample_size"] == pytest.approx(size.item(), rel=tight)
    gap = (batch.old.double() - batch.new.double())[batch.mask].mean().item()
    assert figures["kl"] == pytest.approx(gap, rel=tight, abs=tight)
    logs = [
        [float(a) - float(b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(batch.lists(batch.new), batch.lists(batch.old), strict=True)
    ]
    raw = [math.exp(sum(r) if level == "sequence" else v) for r in logs for v in r]
    assert figures["fraction_low"] == pytest.approx(sum(r < low for r in raw) / len(raw), abs=1e-6)
    assert figures["fraction_high"] == pytest.approx(
        sum(r > high for r in raw) / len(raw), abs=1e-6
    )


def test_importance_weights_nan_clamp_layout_and_emptiness():
    new = torch.tensor([[-1.0, -2.0, -30.0], [-1.0, -1.0, -1.0]])
    sampler = torch.tensor([[math.nan, -1.0, -1.0], [-60.0, -1.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    kept = ops.importance_weights(new, sampler, mask, high=INF, ignore_nan=True).weights
    want = torch.tensor([[1.0, math.exp(-1), math.exp(-20)], [math.exp(20), 1.0, 0.0]])
    torch.testing.assert_close(kept, want, rtol=1e-5, atol=0)
    assert ops.importance_weights(new, sampler, mask).weights[0, 0].isnan()
    for level in ("token", "sequence"):  # a NaN that nobody wants ignored is not divided away
        found = ops.importance_weights(new, sampler, mask, level=level, normalize=True)
        counted = mask if level == "token" else torch.tensor([True, True])
        assert found.weights[counted].isnan().all()
        assert (found.weights[~counted] == 0).all()
        assert math.isnan(found.metrics_dict()["normalizer"])
    summed = ops.importance_weights(
        new, sampler, mask, level="sequence", high=INF, ignore_nan=True, log_ratio_clamp=None
    ).weights
    torch.testing.assert_close(
        summed, torch.tensor([math.exp(-30), math.exp(59)]), rtol=1e-4, atol=0
    )
    for level in ("token", "sequence"):
        padded = ops.importance_weights(new, sampler, mask, level=level, ignore_nan=True)
        packed = ops.importance_weights(
            new.flatten()[:5], sampler.flatten()[:5], level=level, ignore_nan=True,
            cu_seqlens=torch.tensor([0, 3, 5]),
        )  # fmt: skip
        assert torch.equal(packed.weights, padded.weights.flatten()[:5])
        assert torch.equal(packed.metrics, padded.metrics)
    none = ops.importance_weights(new, sampler, torch.zeros_like(mask), normalize=True)
    assert (none.weights == 0).all()
    assert none.metrics_dict()["mean"] == none.metrics_dict()["kl"] == 0
    assert not ops.importance_weights(new.requires_grad_(), sampler, mask).weights.requires_grad
    with pytest.raises(ValueError, match="0 <= low <= high"):
        ops.importance_weights(new, sampler, low=3.0, high=2.0)


# ------------------------------------------------------------------------------------------------
# NumPy faces


@needs_native
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_numpy_policy_loss_has_the_bits_of_the_op(packed, per_sequence):
    batch = Batch([40, 0, 63, 1, 300], 300)
    case = {"objective": "gspo", "kl_coef": 0.1, "entropy_coef": 0.01, "sequence_count": 4}
    names = ("new", "old", "ref", "entropy", "weights", "mask", "advantages")
    data = {name: getattr(batch, name) for name in names}
    if packed:
        data = {name: batch.packed(x)[0] for name, x in data.items()}
        case["cu_seqlens"] = batch.packed(batch.mask)[1]
    if per_sequence:
        data["advantages"] = batch.advantage
    new, entropy = data["new"].clone().requires_grad_(), data["entropy"].clone().requires_grad_()
    out = ops.policy_loss(
        new, data["old"], data["advantages"], data["mask"], ref_logprobs=data["ref"],
        entropy=entropy, importance_weights=data["weights"], **case,
    )  # fmt: skip
    out.loss.backward()
    arrays = {name: x.numpy() for name, x in data.items()}
    if packed:
        case["cu_seqlens"] = case["cu_seqlens"].numpy()
    found = oneshot.numpy.policy_loss(
        arrays["new"], arrays["old"], arrays["advantages"], arrays["mask"],
        ref_logprobs=arrays["ref"], entropy=arrays["entropy"],
        importance_weights=arrays["weights"], **case,
    )  # fmt: skip
    assert torch.tensor(found.loss, dtype=torch.float32) == out.loss
    for name, value in out.metrics_dict().items():
        assert value == pytest.approx(found.metrics[name], rel=1e-7), name
    assert torch.equal(torch.from_numpy(found.grad_logprobs), new.grad)
    assert torch.equal(torch.from_numpy(found.grad_entropy), entropy.grad)


@needs_native
def test_numpy_value_loss_and_weights_have_the_bits_of_the_ops():
    batch = Batch([40, 0, 63, 1], 63)
    values = batch.new.clone().requires_grad_()
    out = ops.value_loss(values, batch.old, batch.ref, batch.mask, clip=0.2)
    out.loss.backward()
    new, old, ref, mask = (x.numpy() for x in (batch.new, batch.old, batch.ref, batch.mask))
    found = oneshot.numpy.value_loss(new, old, ref, mask, clip=0.2)
    assert torch.tensor(found.loss, dtype=torch.float32) == out.loss
    assert torch.equal(torch.from_numpy(found.grad_values), values.grad)
    assert oneshot.numpy.policy_loss(new, old, new[:, 0], mask).grad_entropy is None
    for level in ("token", "sequence"):
        weights = ops.importance_weights(
            batch.new, batch.old, batch.mask, level=level, normalize=True
        )
        same = oneshot.numpy.importance_weights(new, old, mask, level=level, normalize=True)
        assert torch.equal(torch.from_numpy(same.weights), weights.weights)


@needs_native
def test_numpy_errors():
    x = torch.zeros(2, 3).numpy()
    with pytest.raises(ValueError, match="old_logprobs must have the shape of logprobs"):
        oneshot.numpy.policy_loss(x, x[:1], x)
    with pytest.raises(ValueError, match=r"advantages must be \[2\] .*got \[3\]"):
        oneshot.numpy.policy_loss(x, x, x[0])
    with pytest.raises(RuntimeError, match="cu_seqlens must rise from 0 to 6"):
        oneshot.numpy.policy_loss(x.ravel(), None, x.ravel(), cu_seqlens=[0, 7, 6])
    with pytest.raises(ValueError, match="objective must be one of"):
        oneshot.numpy.policy_loss(x, x, x, objective="none")

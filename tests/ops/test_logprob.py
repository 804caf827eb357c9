"""The `logprob` family against float64 PyTorch, closed forms and itself under every disturbance."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import oneshot.numpy
from oneshot import ops
from oneshot._load import native
from oneshot.reference import logprob as reference

INF = float("inf")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What the kernels promise beyond the reference implementation.
needs_native = pytest.mark.skipif(native()[0] is None, reason="runs without the native library")


def oracle(logits, targets, temperature=1.0, mask=None, keep_mask=None):
    """Float64, formula by formula; only rows that count are looked at."""
    x = logits.double()
    if keep_mask is not None:
        x = torch.where(keep_mask, x, -INF)
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
        shape = mask.view(mask.shape + (1,) * (targets.dim() - mask.dim()))
        targets = torch.where(shape, targets, 0)
    logp = torch.log_softmax(x / temperature, -1)
    possible = logp > -INF
    entropy = -(logp.exp() * torch.where(possible, logp, 0.0)).sum(-1)
    ids = targets.unsqueeze(-1) if targets.dim() == x.dim() - 1 else targets
    chosen = logp.gather(-1, ids)
    chosen = torch.where(possible.gather(-1, ids), chosen, torch.full_like(chosen, -INF))
    chosen = chosen.view(targets.shape)
    if mask is not None:
        entropy = torch.where(mask, entropy, 0.0)
        chosen = torch.where(shape, chosen, 0.0)
    return chosen, entropy


def tolerance(dtype):
    """For float64 or float32 accumulation; gradients are rounded to the dtype of the logits."""
    if dtype == torch.float64:
        return {"rtol": 1e-12, "atol": 1e-12}
    return {"rtol": 2e-6, "atol": 2e-6}


def gradient_tolerance(dtype):
    if dtype in (torch.bfloat16, torch.float16):
        return {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    return tolerance(dtype)


def make(shape, dtype=torch.float32, k=None, spread=4.0):
    logits = (torch.randn(shape) * spread).to(dtype)
    ids = shape[:-1] if k is None else (*shape[:-1], k)
    return logits, torch.randint(shape[-1], ids)


def gradients(function, logits, targets, upstream, **arguments):
    """Outputs and the gradient of sum(upstream * output) over the outputs that have an upstream."""
    leaf = logits.detach().clone().requires_grad_()
    outputs = function(leaf, targets, **arguments)
    total = sum((u * o).sum() for u, o in zip(upstream, outputs, strict=True) if u is not None)
    total.backward()
    return outputs, leaf.grad


def check(logits, targets, upstream=None, **arguments):
    """Values and gradient of the op and of the reference against the oracle."""
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if upstream is None:
        upstream = (torch.randn(targets.shape), torch.randn(logits.shape[:-1]))
    exact, exact_grad = gradients(
        lambda *a, **k: oracle(*a, **k), logits.double(), targets, upstream, **arguments
    )
    out, grad = gradients(ops.token_logprobs_and_entropy, logits, targets, upstream, **arguments)
    plain = reference.token_logprobs_and_entropy(
        logits, targets, *(arguments.get(n) for n in ("mask", "keep_mask")),
        arguments.get("temperature", 1.0), False,
    )  # fmt: skip
    plain_grad = reference.token_logprobs_and_entropy_backward(
        *(None if u is None else u.to(real) for u in upstream), logits, targets,
        *(arguments.get(n) for n in ("mask", "keep_mask")), plain[0], plain[2],
        arguments.get("temperature", 1.0),
    )  # fmt: skip
    assert grad.dtype == logits.dtype
    for value, simple, expected in zip(out, plain, exact, strict=False):
        assert value.dtype == real
        torch.testing.assert_close(value.double(), expected, **tolerance(logits.dtype))
        torch.testing.assert_close(simple.double(), expected, **tolerance(logits.dtype))
    loose = gradient_tolerance(logits.dtype)
    torch.testing.assert_close(grad.double(), exact_grad, **loose)
    torch.testing.assert_close(plain_grad.double(), exact_grad, **loose)
    return out, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 7, 16, 63, 64, 65, 1000, 2048, 2049, 5003])
def test_matches_float64(dtype, vocab):
    check(*make((5, vocab), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.05, 0.6, 1.0, 3.0])
def test_temperature_divides_the_logits_first(dtype, temperature):
    check(*make((3, 1000), dtype), temperature=temperature)


@pytest.mark.parametrize("shape", [(4177,), (2, 3, 333), (2, 1, 2, 3, 77), (0, 9), (2, 0, 9)])
def test_any_leading_shape(shape):
    check(*make(shape))
    check(*make(shape, k=3))


@pytest.mark.parametrize("k", [0, 1, 2, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_targets_a_row_may_repeat(k, dtype):
    logits, targets = make((6, 131), dtype, k=k)
    if k > 1:
        targets[:, 1] = targets[:, 0]
    check(logits, targets)


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_through_one_output_only(which):
    logits, targets = make((4, 519))
    upstream = [None, None]
    upstream[which] = torch.randn(4)
    check(logits, targets, upstream)


def test_a_certain_row_keeps_its_small_numbers():
    """p = 1 - 1e-4..1e-7: gradient g (1 - p) and entropy survive, in bfloat16 gradients too."""
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(4, 1001, dtype=dtype)
        logits[:, 13] = torch.tensor([16.0, 18.0, 20.0, 24.0]).to(dtype)
        targets = torch.full((4,), 13)
        (logprobs, entropy), grad = gradients(
            ops.token_logprobs_and_entropy, logits, targets, (torch.ones(4), torch.zeros(4))
        )
        rest = 1000 * torch.exp(-logits[:, 13].double())
        torch.testing.assert_close(logprobs.double(), -torch.log1p(rest), rtol=2e-2, atol=2.4e-7)
        torch.testing.assert_close(grad[:, 13].double(), rest / (1 + rest), rtol=2e-2, atol=2.4e-7)
        assert (logprobs <= 0).all()
        assert (entropy >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masked_rows_are_never_read(dtype):
    logits, targets = make((9, 259), dtype)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    logits[~mask] = torch.tensor([math.nan, INF, -INF, 3e38]).to(dtype).unsqueeze(-1)
    targets[~mask] = torch.tensor([-100, 10**9, -1, 259])
    upstream = (torch.randn(9), torch.randn(9))
    (logprobs, entropy), grad = check(logits, targets, upstream, mask=mask)
    for value in (logprobs, entropy, grad):
        assert (value[~mask] == 0).all()
    # NaN from above meets nothing either
    upstream = tuple(torch.where(mask, u, math.nan) for u in upstream)
    leaf = logits.clone().requires_grad_()
    out = ops.token_logprobs_and_entropy(leaf, targets, mask=mask)
    torch.autograd.backward(out, [u.to(out[0].dtype) for u in upstream])
    assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep_shape", [(3, 4, 611), (1, 1, 611), (611,), (4, 611), (3, 1, 611)])
def test_keep_mask_replays_truncated_sampling(dtype, keep_shape):
    logits, targets = make((3, 4, 611), dtype)
    keep = torch.rand(keep_shape) > 0.5
    keep[..., 610] = True
    kept = keep.expand(logits.shape)
    targets = torch.where(kept.gather(-1, targets.unsqueeze(-1)).squeeze(-1), targets, 610)
    poisoned = torch.where(kept, logits, torch.tensor(math.nan).to(dtype))
    (logprobs, entropy), grad = check(poisoned, targets, temperature=0.7, keep_mask=keep)
    assert (grad[~kept] == 0).all()
    hidden = torch.where(kept, logits, torch.tensor(-INF).to(dtype))
    (same_logprobs, same_entropy), _ = check(hidden, targets, temperature=0.7)
    assert torch.equal(logprobs, same_logprobs)
    assert torch.equal(entropy, same_entropy)


@pytest.mark.parametrize("by", ["keep_mask", "logit"])
def test_a_target_of_probability_zero_is_a_constant(by):
    logits, targets = make((4, 99), k=3)
    keep = torch.ones_like(logits, dtype=torch.bool)
    keep[:, 50] = False
    targets[:, 1] = 50
    targets[:, 0] = 7
    if by == "logit":
        logits[:, 50] = -INF
    arguments = {"keep_mask": keep} if by == "keep_mask" else {}
    upstream = (torch.randn(4, 3), torch.randn(4))
    (logprobs, _), grad = gradients(
        ops.token_logprobs_and_entropy, logits, targets, upstream, **arguments
    )
    assert (logprobs[:, 1] == -INF).all()
    assert (grad[:, 50] == 0).all()
    others = torch.cat((targets[:, :1], targets[:, 2:]), 1)
    up = (torch.cat((upstream[0][:, :1], upstream[0][:, 2:]), 1), upstream[1])
    _, expected = gradients(ops.token_logprobs_and_entropy, logits, others, up, **arguments)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity_is_legal(dtype):
    logits, targets = make((5, 4500), dtype)
    logits[0, ::2] = -INF
    logits[1, :3000] = -INF  # whole blocks
    logits[2, 1:] = -INF  # one token left
    logits[3, 3000:] = -INF
    targets[:] = torch.tensor([1, 4000, 0, 5, 6])
    (_, entropy), grad = check(logits, targets)
    assert entropy[2] == 0
    assert (grad[2] == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, INF])
@pytest.mark.parametrize("place", [0, 2047, 2048, 4098])
def test_nan_and_infinity_make_their_row_nan_and_no_other(dtype, bad, place):
    logits, targets = make((3, 4099), dtype)
    clean, clean_grad = check(logits, targets, (torch.ones(3), torch.ones(3)))
    logits[1, place] = bad
    out, grad = gradients(
        ops.token_logprobs_and_entropy, logits, targets, (torch.ones(3), torch.ones(3))
    )
    for value, expected in zip((*out, grad), (*clean, clean_grad), strict=True):
        assert value[1].isnan().all()
        assert torch.equal(value[[0, 2]], expected[[0, 2]])


def test_nan_among_minus_infinity_is_not_lost():
    logits = torch.full((1, 5000), -INF)
    logits[0, 3] = math.nan
    logits[0, 4999] = 1.0
    logprobs, entropy = ops.token_logprobs_and_entropy(logits, torch.tensor([4999]))
    assert logprobs.isnan().all()
    assert entropy.isnan().all()


def test_a_row_of_nothing_is_nan():
    logits = torch.full((2, 70), -INF)
    logits[1] = 0.0
    logprobs, entropy = ops.token_logprobs_and_entropy(logits, torch.tensor([3, 3]))
    assert logprobs[0].isnan()
    assert entropy[0].isnan()
    torch.testing.assert_close(entropy[1], torch.tensor(math.log(70)))
    nothing = torch.zeros(70, dtype=torch.bool)
    logprobs, entropy = ops.token_logprobs_and_entropy(
        logits, torch.tensor([3, 3]), keep_mask=nothing
    )
    assert logprobs.isnan().all()
    assert entropy.isnan().all()


@pytest.mark.parametrize("offset", [1e4, -1e4, 3e37, -3e37])
def test_large_logits(offset):
    """A common offset cancels: the shift by the row's maximum comes before everything."""
    step = torch.randint(-6, 7, (3, 2500)).float() * (1.0 if abs(offset) < 1e5 else 0.0)
    check(step + offset, torch.randint(2500, (3,)))


def test_the_lowest_finite_logit_everywhere_is_uniform():
    lowest = torch.full((1, 3000), torch.finfo(torch.float32).min)
    logprobs, entropy = ops.token_logprobs_and_entropy(lowest, torch.tensor([5]))
    torch.testing.assert_close(-logprobs, torch.full((1,), math.log(3000)))
    torch.testing.assert_close(entropy, torch.full((1,), math.log(3000)))


def test_rising_maximum_rescales_the_sums():
    """Every block has a larger maximum than the one before: the running sums shrink each time."""
    logits = torch.linspace(-90, 90, 30000).repeat(2, 1)
    logits[1] = logits[1].flip(0)
    check(logits, torch.tensor([29990, 3]))


# The same bits, whatever surrounds a row ---------------------------------------------------------


def run(logits, targets, **arguments):
    upstream = (torch.linspace(-1, 1, len(targets)), torch.linspace(2, 1, len(targets)))
    (logprobs, entropy), grad = gradients(
        ops.token_logprobs_and_entropy, logits, targets, upstream, **arguments
    )
    return logprobs, entropy, grad


def assert_same(values, expected):
    for value, other in zip(values, expected, strict=True):
        assert torch.equal(value, other)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype):
    logits, targets = make((37, 3001), dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(logits, targets)
        torch.set_num_threads(2)
        assert_same(run(logits, targets), expected)
    finally:
        torch.set_num_threads(threads)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [5, 63, 2049])
def test_strides_alignment_and_neighbours_change_no_bit(dtype, vocab):
    logits, targets = make((6, vocab), dtype)
    expected = run(logits, targets)
    wide = torch.full((6, vocab + 13), math.nan, dtype=dtype)
    for start in (0, 1, 5, 13):
        view = wide[:, start : start + vocab]
        view.copy_(logits)
        leaf = view.detach().requires_grad_()
        out = ops.token_logprobs_and_entropy(leaf, targets)
        torch.autograd.backward(out, [torch.linspace(-1, 1, 6), torch.linspace(2, 1, 6)])
        assert_same((*out, leaf.grad), expected)
    transposed = logits.t().contiguous().t()
    assert_same(run(transposed, targets), expected)
    alone = ops.token_logprobs_and_entropy(logits[3], targets[3])
    assert_same(alone, (expected[0][3], expected[1][3]))
    padded = torch.cat((logits, torch.full_like(logits, math.nan)))
    out = ops.token_logprobs_and_entropy(
        padded, torch.cat((targets, targets - 10**6)), mask=torch.arange(12) < 6
    )
    assert_same((out[0][:6], out[1][:6]), expected[:2])


def test_shifted_views_of_a_batch_need_no_copy():
    """logits[:, :-1] against ids[:, 1:], the usual call; rows of three dimensions do not merge."""
    logits, ids = make((2, 4, 5, 129))
    view, targets = logits[:, 1:, :-1], ids[:, 1:, 1:]
    assert not view.is_contiguous()
    out = ops.token_logprobs_and_entropy(view, targets)
    assert_same(out, ops.token_logprobs_and_entropy(view.contiguous(), targets.contiguous()))
    torch.testing.assert_close(out[0].double(), oracle(view, targets)[0], **tolerance(view.dtype))


# In place ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [None, 3])
def test_inplace_backward_writes_the_same_bits_over_the_logits(dtype, k):
    logits, targets = make((7, 1000), dtype, k=k)
    mask = torch.arange(7) != 2
    logits[2] = math.nan
    keep = torch.rand(1000) > 0.3
    upstream = (torch.randn(targets.shape), torch.randn(7))
    arguments = {"mask": mask, "keep_mask": keep, "temperature": 0.8}
    _, expected = gradients(ops.token_logprobs_and_entropy, logits, targets, upstream, **arguments)
    leaf = logits.clone().requires_grad_()
    computed = leaf.clone()
    out = ops.token_logprobs_and_entropy(computed, targets, inplace_backward=True, **arguments)
    torch.autograd.backward(out, [u.to(out[0].dtype) for u in upstream])
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(computed.detach(), expected)
    assert torch.equal(leaf.detach().nan_to_num(), logits.nan_to_num())


def test_inplace_backward_flows_on_to_the_parameters():
    hidden, weight = torch.randn(5, 8), torch.randn(300, 8)
    targets = torch.randint(300, (5,))
    results = []
    for inplace in (False, True):
        w = weight.clone().requires_grad_()
        logprobs, entropy = ops.token_logprobs_and_entropy(
            hidden @ w.t(), targets, inplace_backward=inplace
        )
        (logprobs.sum() + 0.1 * entropy.sum()).backward()
        results.append(w.grad)
    assert torch.equal(*results)


def test_inplace_backward_misuse_is_found():
    logits, targets = make((3, 40))
    leaf = logits.clone().requires_grad_()
    with pytest.raises(ValueError, match="leaf"):
        ops.token_logprobs(leaf, targets, inplace_backward=True)
    with pytest.raises(ValueError, match="stride 1"):
        ops.token_logprobs(
            (leaf * 1).t(), torch.zeros(40, dtype=torch.int64), inplace_backward=True
        )
    # someone else saved the logits for a backward of their own
    computed = leaf * 1
    loss = ops.token_logprobs(computed, targets, inplace_backward=True).sum()
    soft = computed.pow(2)
    loss.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        soft.sum().backward()
    # twice through the same node
    loss = ops.token_logprobs(leaf * 1, targets, inplace_backward=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    # rows that share memory cannot be overwritten
    shared = (leaf[:1] * 1).expand(3, 40)
    with pytest.raises(ValueError, match="expanded"):
        ops.token_logprobs(shared, targets, inplace_backward=True)
    # a view of a parameter is the parameter's memory
    for view in (
        lambda p: p.view(3, 4, 10),
        lambda p: p[:, :-1],
        lambda p: p[1:],
        lambda p: p.transpose(0, 1).transpose(0, 1),
        lambda p: p.reshape(-1, 20)[:, 5:],
        lambda p: p.unsqueeze(0).expand(1, 3, 40),
        lambda p: p.view_as(p).detach().requires_grad_(),
        lambda p: p.unbind(0)[1],
        lambda p: p.chunk(2, -1)[0],
    ):
        parameter = torch.nn.Parameter(logits.clone())
        rows = view(parameter)
        with pytest.raises(ValueError, match="leaf"):
            ops.token_logprobs(
                rows, torch.zeros(rows.shape[:-1], dtype=torch.int64), inplace_backward=True
            )
    # without gradients there is nothing to overwrite
    with torch.no_grad():
        before = leaf.detach().clone()
        ops.token_logprobs(leaf, targets, inplace_backward=True)
        assert torch.equal(leaf, before)


def head():
    """A weight, and the calls of a language model's loss over its logits."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(11, 4, generator=generator).requires_grad_()
    hidden = torch.randn(2, 3, 4, generator=generator)
    return weight, hidden, torch.randint(11, (2, 3), generator=generator)


def z_loss(logits):
    return 1e-2 * logits.logsumexp(-1).pow(2).sum()


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        *((case, "aot_eager") for case in ("z_loss", "twice", "break", "returns_logits", "inside")),
        ("z_loss", "inductor"),
    ],
)
def test_compiled_inplace_backward_never_overwrites_logits(case, backend):
    """A compiled backward bumps no version counter: what else saved the logits would be wrong."""
    torch._dynamo.reset()
    weight, hidden, ids = head()

    def logprobs(logits, inplace):
        return ops.token_logprobs(logits, ids, inplace_backward=inplace).sum()

    def entropy(logits, inplace):
        return ops.token_entropy(logits, inplace_backward=inplace).sum()

    def broken(logits, inplace):
        squares = logits * logits
        torch._dynamo.graph_break()
        return squares.sum() + logprobs(logits, inplace)

    def model(hidden, inplace):
        logits = hidden @ weight.T
        return logits, logprobs(logits, inplace)

    def inside(logits, inplace):
        return (logits * logits).sum() + logprobs(logits, inplace)

    def gradient(compiled, inplace):
        logits = hidden @ weight.T
        if case == "returns_logits":
            logits, loss = compiled(model)(hidden, inplace)
            loss = loss + z_loss(logits)
        elif case == "z_loss":
            loss = z_loss(logits) + compiled(logprobs)(logits, inplace)
        elif case == "twice":
            loss = compiled(logprobs)(logits, inplace) + compiled(entropy)(logits, inplace)
        else:
            loss = compiled({"break": broken, "inside": inside}[case])(logits, inplace)
        return torch.autograd.grad(loss, weight)[0]

    right = gradient(lambda function: function, False)
    ours = gradient(lambda function: torch.compile(function, backend=backend), True)
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


def test_compiled_autograd_never_overwrites_logits():
    torch._dynamo.reset()
    weight, hidden, ids = head()

    def loss(inplace):
        logits = hidden @ weight.T
        return z_loss(logits) + ops.token_logprobs(logits, ids, inplace_backward=inplace).sum()

    (right,) = torch.autograd.grad(loss(False), weight)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss(True).backward()
    torch.testing.assert_close(weight.grad, right)


def test_compiled_inplace_backward_leaves_a_parameter_alone():
    torch._dynamo.reset()
    logits, ids = make((4, 9))
    leaf = logits.clone().requires_grad_()
    torch.compile(
        lambda x: ops.token_logprobs(x, ids, inplace_backward=True).sum(), backend="aot_eager"
    )(leaf).backward()
    assert torch.equal(leaf.detach(), logits)
    (expected,) = torch.autograd.grad(ops.token_logprobs(leaf, ids).sum(), leaf)
    torch.testing.assert_close(leaf.grad, expected)


MEMORY = """
import torch
from oneshot import ops

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

ids = torch.zeros(512, dtype=torch.int64)
logits = torch.zeros(512, 151936).normal_().requires_grad_().clone()
open("/proc/self/clear_refs", "w").write("5")
before = peak()
out = ops.token_logprobs_and_entropy(logits, ids, inplace_backward=True)
torch.autograd.grad(out, logits, [torch.ones(512), torch.ones(512)])
print(peak() - before)
"""


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
def test_inplace_backward_needs_no_memory():
    """297 MiB of logits; what is left is threads and autograd waking up."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 50


# Registration ------------------------------------------------------------------------------------


def op_arguments(dtype=torch.float32):
    logits, targets = make((3, 4, 33), dtype, k=2)
    keep = torch.rand(4, 33) > 0.2
    keep[:, 0] = True
    return logits, targets * 0, torch.rand(3, 4) > 0.3, keep, 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["dense", "permuted", "plain"])
def test_opcheck(dtype, layout):
    logits, targets, mask, keep, temperature = op_arguments(dtype)
    if layout == "permuted":
        logits = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        targets = targets.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "plain":
        mask = keep = None
    inputs = (targets, mask, keep)
    op = torch.ops.oneshot
    torch.library.opcheck(
        op.token_logprobs_and_entropy.default,
        (logits.clone().requires_grad_(), *inputs, temperature, False),
    )
    logprobs, entropy, stats = op.token_logprobs_and_entropy(logits, *inputs, temperature, False)
    saved = (logprobs, stats, temperature)
    upstream = (torch.randn(logprobs.shape), torch.randn(entropy.shape))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        op.token_logprobs_and_entropy_backward.default,
        (*upstream, logits, *inputs, *saved),
        test_utils=checks,
    )
    if layout != "permuted":
        torch.library.opcheck(
            op.token_logprobs_and_entropy_backward_.default,
            (*upstream, logits.clone(), *inputs, *saved),
            test_utils=checks,
        )


def test_gradcheck():
    logits, targets = make((3, 11), torch.float64, k=2)
    keep = torch.ones(11, dtype=torch.bool)
    keep[4] = False
    targets[targets == 4] = 5
    assert torch.autograd.gradcheck(
        lambda x: ops.token_logprobs_and_entropy(x, targets, temperature=0.7, keep_mask=keep),
        (logits.requires_grad_(),),
    )


def test_second_derivative_is_an_error():
    logits, targets = make((3, 11))
    loss = ops.token_logprobs(logits.requires_grad_(), targets).sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="token_logprobs_and_entropy has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_once_for_all_sizes(inplace):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(weight, hidden, targets, mask):
        logprobs, entropy = ops.token_logprobs_and_entropy(
            hidden @ weight.t(), targets, mask=mask, temperature=0.9, inplace_backward=inplace
        )
        return logprobs.sum() + 0.1 * entropy.sum()

    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for rows, vocab in ((5, 300), (9, 171)):
        hidden, weight = torch.randn(rows, 8), torch.randn(vocab, 8)
        targets, mask = torch.randint(vocab, (rows,)), torch.arange(rows) != 1
        grads = []
        for function in (compiled, loss):
            w = weight.clone().requires_grad_()
            value = function(w, hidden, targets, mask)
            value.backward()
            grads.append((value.detach(), w.grad))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


# The three functions, NumPy, errors --------------------------------------------------------------


def test_single_outputs_are_the_parts_of_the_pair():
    logits, targets = make((4, 777))
    logprobs, entropy = ops.token_logprobs_and_entropy(logits, targets, temperature=0.5)
    assert torch.equal(ops.token_logprobs(logits, targets, temperature=0.5), logprobs)
    assert torch.equal(ops.token_entropy(logits, temperature=0.5), entropy)
    for function, which in ((ops.token_entropy, 1), (ops.token_logprobs, 0)):
        leaf = logits.clone().requires_grad_()
        arguments = (leaf,) if which else (leaf, targets)
        function(*arguments).sum().backward()
        upstream = [None, None]
        upstream[which] = torch.ones(4)
        _, expected = gradients(ops.token_logprobs_and_entropy, logits, targets, upstream)
        torch.testing.assert_close(leaf.grad, expected)


@needs_native
def test_numpy_face():
    logits, targets = make((2, 3, 203), k=2)
    mask, keep = torch.rand(2, 3) > 0.4, torch.rand(203) > 0.3
    targets = torch.where(keep[targets], targets, int(keep.nonzero()[0]))
    expected = ops.token_logprobs_and_entropy(
        logits, targets, temperature=0.7, mask=mask, keep_mask=keep
    )
    out = oneshot.numpy.token_logprobs_and_entropy(
        logits.numpy(), targets.numpy(), temperature=0.7, mask=mask.numpy(), keep_mask=keep.numpy()
    )
    assert_same([torch.from_numpy(o) for o in out], expected)
    single = oneshot.numpy.token_logprobs_and_entropy(np.zeros((4, 8)), np.arange(4))
    np.testing.assert_allclose(single[0], -math.log(8), rtol=1e-6)
    with pytest.raises(RuntimeError, match=r"got 8 in row 2"):
        oneshot.numpy.token_logprobs_and_entropy(np.zeros((3, 8)), np.array([0, 1, 8]))


@pytest.mark.parametrize("value", [-1, 50, 2**40])
@pytest.mark.parametrize("k", [None, 2])
def test_a_target_outside_the_vocabulary_is_named(value, k):
    logits, targets = make((6, 50), k=k)
    targets.view(6, -1)[4, -1] = value
    targets.view(6, -1)[5, 0] = -7
    with pytest.raises(RuntimeError, match=rf"\[0, 50\), got {value} in row 4"):
        ops.token_logprobs(logits, targets)
    with pytest.raises(RuntimeError, match=rf"\[0, 50\), got {value} in row 4"):
        reference.token_logprobs_and_entropy(logits, targets, None, None, 1.0, False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "logits must be float32"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "at least one token"),
        ({"logits": torch.tensor(1.0)}, ValueError, "at least one token"),
        (
            {"targets": torch.zeros(3, dtype=torch.int16)},
            TypeError,
            "targets must be int64 or int32",
        ),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, ValueError, r"rows \[3\].*got \[2\]"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive"),
        ({"mask": torch.full((3,), 2)}, ValueError, "mask must be bool, or numbers .* got 2"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, "mask must have the shape"),
        ({"keep_mask": torch.full((3, 4), math.nan)}, ValueError, "keep_mask must be bool"),
        ({"keep_mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "keep_mask must have"),
        ({"keep_mask": torch.ones(3, 1, dtype=torch.bool)}, ValueError, "keep_mask must have"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "logits": torch.zeros(3, 4),
        "targets": torch.zeros(3, dtype=torch.int64),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.token_logprobs_and_entropy(**arguments)


# ---- a temperature per row or token


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 5), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_temperature_per_row_or_token_divides_its_logits(shape, dtype):
    logits, ids = torch.randn(3, 5, 17).to(dtype), torch.randint(17, (3, 5))
    temperature = torch.rand(shape) + 0.5
    mask = torch.rand(3, 5) > 0.3
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = ops.token_logprobs_and_entropy(
        leaf, ids, temperature=temperature, mask=mask
    )
    (logprobs.sum() + 0.3 * entropy.sum()).backward()

    own = logits.double().requires_grad_()
    wide = temperature.double().reshape(*shape, *(1,) * (2 - len(shape))).expand(3, 5)
    log_p = torch.log_softmax(own / wide.unsqueeze(-1), -1)
    want = log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1) * mask
    want_entropy = -(log_p.exp() * log_p).sum(-1) * mask
    (want.sum() + 0.3 * want_entropy.sum()).backward()
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype != torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-2}
    )
    torch.testing.assert_close(logprobs.double(), want.detach(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(entropy.double(), want_entropy.detach(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(leaf.grad.double(), own.grad, **tolerance)
    alone = ops.token_entropy(logits, temperature=temperature, mask=mask)
    torch.testing.assert_close(alone, entropy.detach())


def test_a_number_and_a_tensor_of_it_are_the_same_temperature():
    logits, ids = torch.randn(4, 9), torch.randint(9, (4,))
    by_number = ops.token_logprobs(logits, ids, temperature=0.7)
    for temperature in (torch.tensor(0.7), torch.full((4,), 0.7), torch.full((1,), 0.7)):
        found = ops.token_logprobs(logits, ids, temperature=temperature)
        torch.testing.assert_close(found, by_number)


def test_masked_rows_may_hold_any_temperature():
    logits = torch.randn(3, 9)
    logits[1] = float("nan")
    leaf = logits.requires_grad_()
    temperature = torch.tensor([0.7, float("nan"), 1.2])
    mask = torch.tensor([True, False, True])
    out = ops.token_logprobs(leaf, torch.zeros(3).long(), temperature=temperature, mask=mask)
    out.sum().backward()
    assert out[1] == 0
    assert torch.equal(leaf.grad[1], torch.zeros(9))
    assert leaf.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (torch.ones(4), ValueError, r"leading dimensions of the rows of logits \[3, 5\]"),
        (torch.ones(5), ValueError, r"leading dimensions"),
        (torch.ones(3, 5, 1), ValueError, "leading dimensions"),
        (torch.tensor([1.0, 0.0, 1.0]), ValueError, "positive and finite, got 0.0"),
        (torch.tensor([1.0, 1.0, float("inf")]), ValueError, "positive and finite, got inf"),
        (torch.ones(3, dtype=torch.int64), TypeError, "temperature must be float32"),
        (torch.ones(3, requires_grad=True), ValueError, "temperature"),
    ],
)
def test_bad_temperatures_per_row_are_refused(temperature, error, message):
    with pytest.raises(error, match=message):
        ops.token_logprobs(torch.randn(3, 5, 7), torch.zeros(3, 5).long(), temperature=temperature)


def test_numpy_takes_a_temperature_per_row():
    logits, ids = torch.randn(3, 9), torch.randint(9, (3,))
    temperature = torch.tensor([0.7, 1.0, 1.3])
    arrays = (logits.numpy(), ids.numpy())
    logprobs, _ = oneshot.numpy.token_logprobs_and_entropy(*arrays, temperature=temperature.numpy())
    assert logprobs.dtype == np.float32
    want = ops.token_logprobs(logits, ids, temperature=temperature)
    assert torch.equal(torch.from_numpy(logprobs), want)

"""The head without logits against its definition in float64, and under every cut into tiles."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing

from oneshot import ops
from oneshot._load import native
from oneshot.ops import linear_logprob_tiles as tiled
from oneshot.reference import linear_logprob as reference

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
needs_native = pytest.mark.skipif(native()[0] is None, reason="runs without the native library")
# Tiles of 1024 columns and one or a few rows; and everything in one tile.
SMALL, LARGE = 1 << 16, 1 << 26


def make(rows, vocab, dtype=torch.float32, k=None, width=16, bias=False):
    rows = rows if isinstance(rows, tuple) else (rows,)
    hidden = torch.randn(*rows, width).to(dtype)
    weight = torch.randn(vocab, width).to(dtype)
    targets = torch.randint(vocab, rows if k is None else (*rows, k))
    return hidden, weight, targets, torch.randn(vocab).to(dtype) if bias else None


def oracle(hidden, weight, targets, bias=None, **options):
    """The definition in float64, with what the op rounds before it multiplies."""
    wide = [
        None if x is None else x.detach().double().requires_grad_() for x in (hidden, weight, bias)
    ]
    return wide, reference.linear_token_statistics(*wide[:2], targets, bias=wide[2], **options)


def tolerance(dtype):
    """Values; those of halves are rounded once as logits of up to 16."""
    return {
        torch.float64: {"rtol": 1e-10, "atol": 1e-10},
        torch.float32: {"rtol": 1e-5, "atol": 1e-5},
        torch.float16: {"rtol": 2e-2, "atol": 2e-2},
        torch.bfloat16: {"rtol": 1e-1, "atol": 1e-1},
    }[dtype]


def close_by_norm(got, want, dtype):
    """Gradients, in the norm: single elements of a gradient in a half format may cancel."""
    limit = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
    assert got.isfinite().all()
    assert (got.double() - want).norm() <= limit[dtype] * want.norm() + 1e-12


def check(hidden, weight, targets, bias=None, memory_bytes=None, upstream=None, **options):
    """All outputs and all gradients against the oracle."""
    leaves = [
        None if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias)
    ]
    got = ops.linear_token_statistics(
        *leaves[:2], targets, bias=leaves[2], memory_bytes=memory_bytes, **options
    )
    if "kept_ids" in options:
        options = {**options, "keep_mask": as_mask(options, hidden.shape[:-1], len(weight))}
        del options["kept_ids"], options["kept_offsets"]
    wide, want = oracle(hidden, weight, targets, bias, **options)
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    for mine, true in zip(got[:4], want, strict=False):
        assert mine.dtype == real
        assert mine.shape == true.shape
        torch.testing.assert_close(mine.double(), true, **tolerance(hidden.dtype))
    if hidden.dtype in (torch.float32, torch.float64):
        assert torch.equal(got.is_top1, want.is_top1)
    if upstream is None:
        upstream = (torch.randn(want.logprobs.shape), torch.randn(want.entropy.shape))
    for outputs in (got, want):
        real = outputs[0].dtype
        chosen = [(o, u) for o, u in zip(outputs, upstream, strict=False) if u is not None]
        torch.autograd.backward([o for o, _ in chosen], [u.to(real) for _, u in chosen])
    for leaf, true in zip(leaves, wide, strict=True):
        if leaf is not None:
            assert leaf.grad.dtype == hidden.dtype
            close_by_norm(leaf.grad, true.grad, hidden.dtype)
    return got, leaves


def as_mask(options, rows, vocab):
    """The dense mask that kept_ids and kept_offsets describe."""
    mask = torch.zeros(rows.numel(), vocab, dtype=torch.bool)
    ids, offsets = options["kept_ids"], options["kept_offsets"].tolist()
    for row, (begin, end) in enumerate(itertools.pairwise(offsets)):
        mask[row, ids[begin:end]] = True
    return mask.view(*rows, vocab)


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 1000, 1025, 5003])
def test_matches_float64(dtype, vocab, memory):
    check(*make(5, vocab, dtype), memory_bytes=memory)


@pytest.mark.parametrize("memory", [1, 8 * 4 * 1024 * 3, SMALL, LARGE, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_cut_into_tiles(dtype, memory):
    """From one row and 1024 columns a tile, nothing kept, to one tile."""
    check(*make((3, 7), 3001, dtype, k=2, bias=True), memory_bytes=memory)


@pytest.mark.parametrize("rows", [(), (4,), (2, 3), (0,), (2, 0), (2, 1, 3)])
@pytest.mark.parametrize("k", [None, 0, 3])
def test_any_leading_shape(rows, k):
    check(*make(rows, 1500, k=k), memory_bytes=SMALL)


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"logit_scale": 0.125},
        {"softcap": 3.0},
        {"softcap": 5.0, "logit_scale": 2.0, "temperature": 0.7},
    ],
)
def test_temperature_scale_and_soft_capping(options, dtype, memory):
    check(*make(6, 2050, dtype, bias=True), memory_bytes=memory, **options)


def test_one_target_twice():
    hidden, weight, targets, _ = make(6, 2050, k=3)
    targets[:, 2] = targets[:, 0]
    check(hidden, weight, targets, memory_bytes=SMALL)


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_through_one_output_only(which):
    upstream = [None, None]
    upstream[which] = torch.randn(4)
    check(*make(4, 2050), memory_bytes=SMALL, upstream=upstream)


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("some", [True, False])
def test_masked_rows_reach_nothing(dtype, memory, some):
    hidden, weight, targets, bias = make((3, 4), 2050, dtype, k=2, bias=True)
    mask = torch.rand(3, 4) < (0.5 if some else 0.0)
    mask[0, 0] = some
    hidden[~mask] = torch.tensor([NAN, INF, -INF, 3e4], dtype=dtype).repeat(4)
    targets[~mask] = torch.tensor([-100, 10**12])
    upstream = (torch.randn(3, 4, 2), torch.randn(3, 4))
    for u in upstream:
        u[~mask] = NAN
    arguments = {"memory_bytes": memory, "mask": mask}
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    got = ops.linear_token_statistics(*leaves[:2], targets, bias=leaves[2], **arguments)
    torch.autograd.backward(got[:2], [u.to(got[0].dtype) for u in upstream])
    quiet = [torch.where(mask.view(3, 4, *[1] * (u.dim() - 2)), u, 0) for u in upstream]
    want, clean = check(hidden, weight, targets, bias, upstream=quiet, **arguments)
    assert all(map(torch.equal, got, want))
    for output in got:
        assert (output[~mask] == 0).all()
    for leaf, other in zip(leaves, clean, strict=True):
        assert torch.equal(leaf.grad, other.grad)
    assert (leaves[0].grad[~mask] == 0).all()


def test_what_stands_in_masked_rows_changes_no_bit():
    hidden, weight, targets, _ = make(9, 3001)
    mask = torch.arange(9) % 3 != 1
    results = []
    for fill in (0.0, NAN, 1e30):
        hidden[~mask] = fill
        leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        out = ops.linear_token_logprobs_and_entropy(leaf, head, targets, mask=mask)
        torch.autograd.backward(out, [torch.ones(9), torch.ones(9)])
        results.append((*out, leaf.grad, head.grad))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("shape", [(3, 4, 2050), (1, 4, 2050), (2050,), (3, 1, 2050)])
def test_keep_mask_replays_truncated_sampling(shape, memory):
    hidden, weight, targets, bias = make((3, 4), 2050, k=2, bias=True)
    keep = torch.rand(shape) < 0.1
    keep[..., :1100] = False  # a whole tile
    keep[..., 2049] = True
    targets[..., 0] = 2049
    targets[..., 1] = 5  # of probability 0: a constant
    mask = torch.rand(3, 4) < 0.7
    mask[0, 0] = True
    got, _ = check(
        hidden, weight, targets, bias, mask=mask, keep_mask=keep, memory_bytes=memory,
        upstream=(torch.randn(3, 4, 2), torch.randn(3, 4)),
    )  # fmt: skip
    assert (got.logprobs[..., 1][mask] == -INF).all()


@pytest.mark.parametrize("memory", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"softcap": 4.0, "temperature": 0.7}])
def test_kept_ids_are_the_mask_as_a_list(memory, dtype, options):
    hidden, weight, targets, bias = make((2, 4), 2050, dtype, bias=True)
    lengths = torch.tensor([1, 5, 2, 40, 3, 2000, 7, 1])
    ids = torch.cat([torch.randperm(2050)[:n] for n in lengths])
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    targets = ids[offsets[:-1]].view(2, 4)
    ids[offsets[1] : offsets[2]][1:3] = ids[offsets[1]].clone()  # the same token three times
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    check(
        hidden, weight, targets, bias, mask=mask, kept_ids=ids, kept_offsets=offsets,
        memory_bytes=memory, **options,
    )  # fmt: skip


@needs_native
@pytest.mark.parametrize("memory", [SMALL, LARGE])
def test_a_nearly_certain_token_keeps_its_digits(memory):
    """p = 1 - 2e-4 to 1e-9: values and gradients, whichever tile has the token."""
    for token in (3, 2040):
        weight = torch.zeros(2050, 4)
        weight[token, 0] = 1.0
        hidden = torch.tensor([[16.0, 0, 0, 0], [20.0, 0, 0, 0], [28.0, 0, 0, 0]])
        targets = torch.full((3,), token)
        for upstream in ((torch.ones(3), None), (None, torch.ones(3))):
            leaf = hidden.clone().requires_grad_()
            got = ops.linear_token_logprobs_and_entropy(leaf, weight, targets, memory_bytes=memory)
            wide, want = oracle(hidden, weight, targets)
            for mine, true in zip(got, want, strict=False):
                torch.testing.assert_close(mine.double(), true, rtol=2e-2, atol=2.4e-7)
            which = 0 if upstream[0] is not None else 1
            got[which].sum().backward()
            want[which].sum().backward()
            torch.testing.assert_close(leaf.grad.double(), wide[0].grad, rtol=2e-2, atol=2.4e-7)


def test_weight_gradient_does_not_depend_on_the_number_of_chunks():
    """bfloat16, 4096 rows: added up in float32 from 1, 64 and 1024 blocks of rows."""
    torch.manual_seed(5)
    hidden, weight, targets, _ = make(4096, 1024, torch.bfloat16, width=32)
    weight = weight / 4
    wide, want = oracle(hidden, weight, targets)
    upstream = torch.randn(4096)
    want.logprobs.backward(upstream.double())
    errors = []
    for blocks in (1, 64, 1024):
        head = weight.clone().requires_grad_()
        memory = 8 * 2 * 1024 * (4096 // blocks)
        logprobs, _ = ops.linear_token_logprobs_and_entropy(
            hidden, head, targets, memory_bytes=memory
        )
        logprobs.backward(upstream)
        errors.append(((head.grad.double() - wide[1].grad).norm() / wide[1].grad.norm()).item())
    assert errors[0] < 5e-3
    assert max(errors) <= 1.1 * errors[0], errors


@pytest.mark.parametrize(
    ("needed", "memory", "products"),
    [
        ((False, False, False), LARGE, 1),
        ((True, False, False), LARGE, 2),  # a frozen head
        ((False, True, False), LARGE, 2),
        ((False, False, True), LARGE, 1),
        ((True, True, True), LARGE, 3),
        ((True, True, True), 1, 4 * 3 * 5),  # nothing kept, tiles of one row
    ],
)
def test_only_the_products_that_are_needed(needed, memory, products, monkeypatch):
    made = []
    for name in ("multiply", "accumulate"):
        product = getattr(tiled, name)
        monkeypatch.setattr(tiled, name, lambda *x, product=product: (made.append(1), product(*x)))
    hidden, weight, targets, bias = make(5, 2050, bias=True)
    inputs = [
        x.clone().requires_grad_(n) for x, n in zip((hidden, weight, bias), needed, strict=True)
    ]
    out = ops.linear_token_logprobs_and_entropy(
        *inputs[:2], targets, bias=inputs[2], memory_bytes=memory
    )
    wide, want = oracle(hidden, weight, targets, bias)
    if any(needed):
        (out[0].sum() + out[1].sum()).backward()
        (want[0].sum() + want[1].sum()).backward()
    assert len(made) == products
    for mine, true, n in zip(inputs, wide, needed, strict=True):
        assert (mine.grad is not None) == n
        if n:
            close_by_norm(mine.grad, true.grad, torch.float32)


def test_backward_twice_gives_the_same():
    hidden, weight, targets, _ = make(5, 2050)
    leaf = hidden.requires_grad_()
    logprobs, _ = ops.linear_token_logprobs_and_entropy(leaf, weight, targets)
    grads = [torch.autograd.grad(logprobs.sum(), leaf, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_callers_may_edit_what_they_got():
    hidden, weight, targets, _ = make(5, 2050)
    grads = []
    for edit in (False, True):
        leaf = hidden.clone().requires_grad_()
        logprobs, _ = ops.linear_token_logprobs_and_entropy(leaf, weight, targets)
        logprobs = logprobs * 1
        loss = logprobs.sum()
        if edit:
            logprobs.data.zero_()
        loss.backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_hidden_states_and_weights_that_lie_anywhere():
    hidden, weight, targets, _ = make((2, 5), 2050)
    want = ops.linear_token_logprobs_and_entropy(hidden[:, :-1].clone(), weight, targets[:, 1:])
    got = ops.linear_token_logprobs_and_entropy(hidden[:, :-1], weight, targets[:, 1:])
    assert all(map(torch.equal, got, want))
    turned = weight.t().contiguous().t()
    check(hidden[:, :-1], turned, targets[:, 1:])
    check(hidden.transpose(0, 1), weight, targets.transpose(0, 1))


def test_nan_and_infinite_weights_make_their_row_nan():
    """As `log_softmax` of the logits; a tile without the NaN does not hide it."""
    for memory in (SMALL, LARGE):
        hidden, weight, targets, bias = make(3, 2050, bias=True)
        hidden[1] = NAN
        out = ops.linear_token_statistics(
            hidden, weight, targets, bias=bias, memory_bytes=memory, extras=("is_top1",)
        )
        assert out.logprobs.isnan().tolist() == [False, True, False]
        assert out.entropy.isnan().tolist() == [False, True, False]
        assert not out.is_top1[1]
        bias[2040] = -INF  # as good as excluded
        check(hidden[::2], weight, targets[::2], memory_bytes=memory, bias=bias)
        bias[2040] = INF
        out = ops.linear_token_logprobs_and_entropy(
            hidden, weight, targets, bias=bias, memory_bytes=memory
        )
        assert out[0].isnan().all()
        assert out[1].isnan().all()


def test_a_row_without_any_token_is_nan():
    for memory in (SMALL, LARGE):
        hidden, weight, targets, _ = make(2, 2050)
        keep = torch.zeros(2, 2050, dtype=torch.bool)
        keep[1] = True
        out = ops.linear_token_logprobs_and_entropy(
            hidden, weight, targets, keep_mask=keep, memory_bytes=memory
        )
        assert out[0].isnan().tolist() == [True, False]
        assert out[1].isnan().tolist() == [True, False]


def test_first_of_equal_maxima_is_top():
    for memory in (SMALL, LARGE):
        weight = torch.zeros(2050, 2)
        weight[[7, 9, 1500]] = 1.0
        out = ops.linear_token_statistics(
            torch.ones(1, 2), weight, torch.tensor([[7, 9, 1500, 3]]), memory_bytes=memory
        )
        assert out.is_top1.tolist() == [[True, False, False, False]]


def test_extras_are_none_unless_asked_for():
    hidden, weight, targets, _ = make(3, 50)
    everything = ops.linear_token_statistics(hidden, weight, targets)
    for name in ("log_sum_sq_probs", "mean_logits", "is_top1"):
        out = ops.linear_token_statistics(hidden, weight, targets, extras=(name,))
        assert torch.equal(getattr(out, name), getattr(everything, name))
        assert sum(x is None for x in out) == 2


def test_autocast_multiplies_in_its_dtype():
    hidden, weight, targets, bias = make(5, 300, bias=True)
    leaf = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.linear_token_logprobs_and_entropy(hidden, leaf, targets, bias=bias)
    want = ops.linear_token_logprobs_and_entropy(
        hidden.bfloat16(), weight.bfloat16(), targets, bias=bias.bfloat16()
    )
    assert all(map(torch.equal, got, want))
    got[0].sum().backward()
    assert leaf.grad.dtype == torch.float32


MEMORY = """
import sys
import torch
from oneshot import ops

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def call(rows, vocab):
    hidden = torch.randn(rows, 896).to(dtype).requires_grad_()
    weight = torch.randn(vocab, 896).to(dtype).requires_grad_()
    ids, up = torch.zeros(rows, dtype=torch.int64), [torch.ones(rows), torch.ones(rows)]
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    out = ops.linear_token_logprobs_and_entropy(hidden, weight, ids)
    grads = torch.autograd.grad(out, [hidden, weight], up)
    return status("VmHWM") - before - sum(g.numel() * g.itemsize for g in grads)

dtype = getattr(torch, sys.argv[1])
call(8, 4096)  # wakes libraries and threads
print(call(512, 151936))
"""


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_beyond_the_gradients(dtype):
    """311 MB of float32 logits; the memory that they may take, and little else."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, dtype], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.31e9


# Registration ------------------------------------------------------------------------------------


def op_arguments(dtype=torch.float32, keep=None, kept_bytes=0):
    hidden, weight, targets, bias = make((2, 3), 40, dtype, k=2, width=8, bias=True)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    lists = (None, None, None)
    if keep == "mask":
        keep_mask = torch.rand(3, 40) < 0.5
        keep_mask[:, 0] = True
        lists, targets = (keep_mask, None, None), targets * 0
    elif keep == "list":
        lists = (None, torch.arange(18) % 40, torch.arange(7) * 3)
        targets = torch.arange(6).view(2, 3, 1) * 3
    tile = (torch.float32, 1 << 12)
    call = (hidden, weight, bias, targets, mask, *lists, 0.7, 1.5, 3.0, *tile, None, 0, 40)
    return call, (True, True, True, kept_bytes)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 16])
@pytest.mark.parametrize("keep", [None, "mask", "list"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, keep, kept_bytes):
    call, rest = op_arguments(dtype, keep, kept_bytes)
    op = torch.ops.oneshot.linear_token_logprobs_and_entropy.default
    leaves = [x.clone().requires_grad_() for x in call[:3]]
    # What forward keeps for backward is undefined beyond the rows that count.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (*leaves, *call[3:], *rest), test_utils=checks)
    if kept_bytes == 0:
        torch.library.opcheck(
            op, (*leaves, *call[3:], *rest), test_utils="test_aot_dispatch_dynamic"
        )
    logprobs, entropy, *_, stats, kept = op(*call, *rest)
    saved = (logprobs, stats, kept)
    torch.library.opcheck(
        torch.ops.oneshot.linear_token_logprobs_and_entropy_backward.default,
        (torch.randn_like(logprobs), torch.randn_like(entropy), *call, *saved, True, False, True),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "logit_scale": 0.5}])
def test_gradcheck(options):
    hidden, weight, targets, bias = make(3, 11, torch.float64, k=2, width=4, bias=True)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda h, w, b: ops.linear_token_logprobs_and_entropy(
            h, w, targets, bias=b, temperature=0.7, mask=mask, **options
        ),
        [x.requires_grad_() for x in (hidden, weight, bias)],
    )


def test_second_derivative_is_an_error():
    hidden, weight, targets, _ = make(3, 11)
    loss = ops.linear_token_logprobs_and_entropy(hidden.requires_grad_(), weight, targets)[0].sum()
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_token_logprobs_and_entropy has no second deriv"):
        grad.sum().backward()


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_once_for_all_sizes_and_temperatures(masked):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(hidden, weight, targets, mask, temperature):
        logprobs, entropy = ops.linear_token_logprobs_and_entropy(
            hidden * 2, weight, targets, mask=mask if masked else None, temperature=temperature
        )
        return logprobs.sum() + 0.1 * entropy.sum()

    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    for rows, vocab, temperature in ((5, 300, 0.9), (9, 171, 0.7)):
        hidden, weight, targets, _ = make(rows, vocab)
        mask = torch.arange(rows) != 1
        results = []
        for function in (compiled, loss):
            leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
            value = function(*leaves, targets, mask, temperature)
            value.backward()
            results.append((value.detach(), *(x.grad for x in leaves)))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
        frames.append(counter.frame_count)
    assert frames[1] == frames[0]


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-100, 50, 2**40])
def test_a_target_outside_the_vocabulary_is_named(value):
    hidden, weight, targets, _ = make(6, 50, k=2)
    targets[4, 1] = value
    mask = torch.tensor([1, 0, 1, 1, 1, 1], dtype=torch.bool)
    for arguments in ({}, {"mask": mask}):
        with pytest.raises(RuntimeError, match=rf"\[0, 50\), got {value} in row 4"):
            ops.linear_token_logprobs_and_entropy(hidden, weight, targets, **arguments)


def test_bad_lists_of_kept_tokens_are_named():
    hidden, weight, targets, _ = make(2, 50)
    ids, offsets = torch.tensor([1, 2, 50]), torch.tensor([0, 2, 3])
    function = ops.linear_token_logprobs_and_entropy
    with pytest.raises(RuntimeError, match=r"kept_ids must lie in \[0, 50\), got 50 at index 2"):
        function(hidden, weight, targets, kept_ids=ids, kept_offsets=offsets)
    for bad in ([0, 2, 4], [1, 2, 3], [0, 4, 3]):
        with pytest.raises(RuntimeError, match="kept_offsets must rise from 0 to the length"):
            function(hidden, weight, targets, kept_ids=ids - 1, kept_offsets=torch.tensor(bad))


ids3 = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "hidden must be float32"),
        ({"hidden": torch.zeros(3, 5)}, ValueError, r"width\], got \[3, 5\] and \[9, 4\]"),
        ({"weight": torch.zeros(9)}, ValueError, r"weight \[vocabulary, width\]"),
        ({"weight": torch.zeros(0, 4)}, ValueError, "at least one token"),
        ({"weight": torch.zeros(9, 4).half()}, TypeError, "weight must have the dtype of hidden"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias must have shape \[9\]"),
        ({"bias": torch.zeros(9).half()}, TypeError, "bias must have the dtype of hidden"),
        ({"targets": ids3.float()}, TypeError, "targets must be int64"),
        ({"targets": ids3[:2]}, ValueError, r"rows \[3\].*got \[2\]"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must be positive"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive and finite"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, "mask must have the shape"),
        ({"keep_mask": torch.full((9,), 2)}, ValueError, "keep_mask must be bool"),
        ({"keep_mask": torch.ones(8, dtype=torch.bool)}, ValueError, "last dimension of 9"),
        ({"keep_mask": torch.ones(2, 9, dtype=torch.bool)}, ValueError, "keep_mask must have"),
        (
            {"keep_mask": torch.ones(9, dtype=torch.bool), "kept_ids": ids3},
            ValueError, "keep_mask or kept_ids with kept_offsets, not both",
        ),
        ({"kept_ids": ids3}, ValueError, "kept_offsets is missing"),
        ({"kept_ids": ids3, "kept_offsets": ids3}, ValueError, r"kept_offsets.*shape \[4\]"),
        ({"kept_ids": ids3.half(), "kept_offsets": ids3}, TypeError, "kept_ids must be int64"),
        ({"memory_bytes": 0}, ValueError, "memory_bytes must be positive, got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    arguments = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(9, 4), "targets": ids3}
    with pytest.raises(error, match=message):
        ops.linear_token_logprobs_and_entropy(**{**arguments, **change})


def test_an_unknown_extra_is_named():
    hidden, weight, targets, _ = make(3, 50)
    with pytest.raises(ValueError, match=r"extras must be one of .*'is_top1'.*got 'top1'"):
        ops.linear_token_statistics(hidden, weight, targets, extras=("top1",))

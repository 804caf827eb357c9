"""`combine_emissions` against probability space in float64, and every place that says nothing."""

import pytest
import torch
from hmm_oracle import INF, same
from torch._dynamo.testing import CompileCounterWithBackend

from oneshot import ops
from oneshot.reference import hmm_emissions as reference

OP = torch.ops.oneshot
SHAPES = [(2, 3, 1, 1, 1), (3, 5, 4, 3, 2), (2, 7, 3, 5, 9), (1, 4, 17, 9, 9), (2, 3, 2, 17, 33)]


def make(shape, *, constant=False, ids=False, weighted=True, dtype=torch.float32, abstain=0.2):
    """log_emissions, observations, weights; a share of the sources abstains."""
    batch, steps, sources, states, labels = shape
    leading = () if constant else (batch, steps)
    log_emissions = torch.randn(*leading, sources, states, labels, dtype=torch.float64) * 2
    silent = torch.rand(batch, steps, sources) < abstain
    if ids:
        observations = torch.randint(labels, (batch, steps, sources)).masked_fill(silent, -1)
    else:
        observations = torch.rand(batch, steps, sources, labels, dtype=torch.float64)
        observations = torch.where(torch.rand_like(observations) < 0.3, 0, observations)
        observations = torch.where(silent[..., None], 0, observations).to(dtype)
    weights = torch.rand(sources, dtype=torch.float64) + 0.5 if weighted else None
    return log_emissions.to(dtype), observations, None if weights is None else weights.to(dtype)


def oracle(log_emissions, observations, weights=None, normalize=False):
    """Float64, in probability space; differentiable where every probability is positive."""
    log_e, labels = log_emissions.double(), log_emissions.shape[-1]
    x = observations
    if not x.is_floating_point():
        one_hot = torch.nn.functional.one_hot(x.clamp(min=0), labels)
        x = torch.where((x == -1)[..., None], 0, one_hot)
    x = x.double()
    p = log_e.softmax(-1) if normalize else log_e.exp()
    if p.dim() == 3:
        p = p.expand(*x.shape[:2], *p.shape)
    each = torch.einsum("btskl,btsl->btsk", p, x)
    voices = (x != 0).any(-1)[..., None]
    each = torch.where(voices, torch.where(voices, each, 1).log(), 0)
    return each.sum(2) if weights is None else torch.einsum("btsk,s->btk", each, weights.double())


def gradients(function, tensors, upstream, **options):
    """Value, and the gradients of the float tensors (None stays None)."""
    observations = tensors[1]
    leaves = [
        None if x is None or not x.is_floating_point() else x.clone().requires_grad_()
        for x in tensors
    ]
    seen = observations if leaves[1] is None else leaves[1]
    value = function(leaves[0], seen, weights=leaves[2], **options)
    learned = [x for x in leaves if x is not None]
    return value.detach(), torch.autograd.grad(value, learned, upstream.to(value.dtype))


def check(tensors, normalize=False):
    batch, steps = tensors[1].shape[:2]
    upstream = torch.randn(batch, steps, tensors[0].shape[-2])
    value, grads = gradients(ops.combine_emissions, tensors, upstream, normalize=normalize)
    expected, exact = gradients(oracle, tensors, upstream, normalize=normalize)
    dtype = tensors[0].dtype
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tight = 1e-11 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(value.double(), expected, rtol=tight, atol=tight)
    loose = max(tight, torch.finfo(dtype).eps)  # of half formats, the gradient is rounded once
    for ours, theirs in zip(grads, exact, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours.double(), theirs.to(dtype).double(), rtol=4 * loose, atol=4 * tight
        )


# Values and gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_probability_space(shape, constant, ids, normalize):
    for dtype in (torch.float32, torch.float64):
        for weighted in (False, True):
            check(
                make(shape, constant=constant, ids=ids, weighted=weighted, dtype=dtype), normalize
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ids", [False, True])
def test_half_formats_are_computed_in_float32(dtype, ids):
    check(make((2, 5, 3, 4, 6), ids=ids, dtype=dtype))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_thousand_tokens(constant, normalize):
    check(make((2, 1000, 3, 5, 7), constant=constant), normalize)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_gradcheck(ids, constant, normalize):
    log_emissions, x, weights = make(
        (2, 2, 3, 2, 3), constant=constant, ids=ids, dtype=torch.float64
    )
    tensors = [log_emissions, weights]
    if not ids:  # strictly inside: at x = 0 a difference quotient would step outside the domain
        tensors.append(torch.where((x != 0).any(-1, keepdim=True), x + 0.1, 0))

    def call(log_emissions, weights, soft=x):
        silent = (x == -1) if ids else (x != 0).any(-1) == 0
        seen = soft if ids else torch.where(silent[..., None], 0, soft)
        return ops.combine_emissions(log_emissions, seen, weights=weights, normalize=normalize)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors])


def test_ids_are_one_hot_rows():
    log_emissions, ids, weights = make((3, 6, 4, 5, 7), ids=True)
    one_hot = torch.nn.functional.one_hot(ids.clamp(min=0), 7) * (ids >= 0)[..., None]
    for normalize in (False, True):
        options = {"weights": weights, "normalize": normalize}
        torch.testing.assert_close(
            ops.combine_emissions(log_emissions, ids, **options),
            ops.combine_emissions(log_emissions, one_hot.float(), **options),
            rtol=1e-6, atol=2e-6,
        )  # fmt: skip


def test_constant_matrices_equal_repeated_ones():
    log_emissions, x, weights = make((3, 6, 4, 5, 7), constant=True)
    for normalize in (False, True):
        options = {"weights": weights, "normalize": normalize}
        repeated = log_emissions.expand(3, 6, 4, 5, 7)
        a, b = (ops.combine_emissions(e, x, **options) for e in (log_emissions, repeated))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("offset", [-1e4, -300.0, 300.0, 1e4])
def test_large_potentials_do_not_leave_the_range(offset):
    """In log space an offset of a source just comes out again, far beyond exp in float32."""
    log_emissions, x, _ = make((2, 4, 3, 5, 6), weighted=False, dtype=torch.float64, abstain=0.0)
    x[..., 0] += 0.1
    moved = ops.combine_emissions(log_emissions + offset, x)
    expected = oracle(log_emissions, x) + 3 * offset
    torch.testing.assert_close(moved, expected, rtol=1e-13, atol=1e-11)
    single = ops.combine_emissions((log_emissions + offset).float(), x.float())
    torch.testing.assert_close(single.double(), expected, rtol=3e-7, atol=1e-5)
    same_logits = ops.combine_emissions(log_emissions + offset, x, normalize=True)
    torch.testing.assert_close(same_logits, oracle(log_emissions, x, None, True))


# What says nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("silent", ["abstains", "weight 0", "upstream 0"])
def test_nothing_passes(silent, ids, normalize):
    """Garbage behind a source that does not count changes no other gradient and gets exactly 0."""
    log_emissions, x, weights = make((3, 4, 3, 5, 6), ids=ids, abstain=0.0)
    upstream = torch.randn(3, 4, 5)
    if silent == "abstains":
        x[1, 2, 1] = -1 if ids else 0
    elif silent == "weight 0":
        weights[1] = 0
    else:
        upstream[1, 2] = 0
    options = {"normalize": normalize}
    clean, expected = gradients(
        ops.combine_emissions, (log_emissions, x, weights), upstream, **options
    )
    spoiled = log_emissions.clone()
    place = (1, 2, slice(None) if silent == "upstream 0" else 1)
    spoiled[place] = torch.tensor([torch.nan, INF, -INF])[torch.randint(3, spoiled[place].shape)]
    value, grads = gradients(ops.combine_emissions, (spoiled, x, weights), upstream, **options)
    if silent == "upstream 0":
        kept = torch.ones(3, 4, dtype=torch.bool)
        kept[1, 2] = False
        same(value[kept], clean[kept])
    else:
        same(value, clean)
    assert (grads[0][place] == 0).all()
    if silent == "weight 0":  # its own weight still moves the result, by what it says
        grads, expected = [[g[:-1], g[-1][[0, 2]]] for g in (grads, expected)]
        grads, expected = ((*first, last) for first, last in (grads, expected))
    for a, b in zip(grads, expected, strict=True):
        zeroed = torch.where(a == 0, 0, b) if a.dim() == 5 else b
        same(a, zeroed)


@pytest.mark.parametrize("ids", [False, True])
def test_a_label_ruled_out_is_a_constant(ids):
    """-inf for the state that cannot name the label; no NaN, no gradient, others as before."""
    log_emissions, x, weights = make((2, 3, 2, 4, 5), ids=ids, abstain=0.0)
    if ids:
        x[0, 1, 0] = 2
    else:
        x[0, 1, 0] = torch.tensor([0.0, 0, 0.7, 0.2, 0])
    log_emissions[0, 1, 0, 3, 2:4] = -INF
    upstream = torch.randn(2, 3, 4)
    value, grads = gradients(ops.combine_emissions, (log_emissions, x, weights), upstream)
    assert value[0, 1, 3] == -INF
    assert value.isneginf().sum() == 1
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][0, 1, 0, 3] == 0).all()
    assert (grads[0][0, 1, 1, 3] != 0).any()  # the other source still speaks about this state
    without = upstream.clone()
    without[0, 1, 3] = 0
    _, expected = gradients(ops.combine_emissions, (log_emissions, x, weights), without)
    same(grads[0][0, 1, 0], expected[0][0, 1, 0])
    half = ops.combine_emissions(log_emissions, x, weights=torch.tensor([0.0, 1.0]))
    assert half.isfinite().all()


def test_unread_labels_may_hold_anything():
    log_emissions, x, weights = make((2, 5, 3, 4, 6))
    upstream = torch.randn(2, 5, 4)
    clean, expected = gradients(ops.combine_emissions, (log_emissions, x, weights), upstream)
    unread = (x == 0)[..., None, :].expand(log_emissions.shape)
    spoiled = torch.where(
        unread, torch.tensor([torch.nan, INF])[torch.randint(2, unread.shape)], log_emissions
    )
    value, grads = gradients(ops.combine_emissions, (spoiled, x, weights), upstream)
    same(value, clean)
    same(grads[0], expected[0])
    assert (grads[0][unread] == 0).all()
    same(grads[2], expected[2])


def test_padding_reaches_neither_likelihood_nor_gradient():
    """NaN observations and matrices behind the end, through the chain and back."""
    log_emissions, x, weights = make((3, 6, 2, 4, 5))
    lengths = torch.tensor([6, 2, 0])
    outside = torch.arange(6) >= lengths[:, None]
    init, trans = torch.randn(4), torch.randn(4, 4)
    results = []
    for spoil in (False, True):
        e, o = log_emissions.clone(), x.clone()
        if spoil:
            e[outside], o[outside] = torch.nan, torch.nan
        tensors = [t.clone().requires_grad_() for t in (e, o, weights)]
        emit = ops.combine_emissions(tensors[0], tensors[1], weights=tensors[2])
        value = ops.hmm_log_likelihood(init, trans, emit, lengths)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), tensors)))
    for a, b in zip(*results, strict=True):
        same(a, b)
    assert (results[1][1][outside] == 0).all()


def test_no_tokens():
    for constant in (False, True):
        tensors = make((0, 3, 2, 4, 5), constant=constant)
        value, grads = gradients(ops.combine_emissions, tensors, torch.zeros(0, 3, 4))
        assert list(value.shape) == [0, 3, 4]
        assert all((grad == 0).all() for grad in grads)


# Order, strides, registration --------------------------------------------------------------------


@pytest.mark.parametrize("constant", [False, True])
def test_tokens_do_not_depend_on_neighbours_threads_or_strides(constant):
    log_emissions, x, weights = make((4, 50, 3, 9, 9), constant=constant)
    upstream = torch.randn(4, 50, 9)
    whole, grads = gradients(ops.combine_emissions, (log_emissions, x, weights), upstream)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one, one_grads = gradients(ops.combine_emissions, (log_emissions, x, weights), upstream)
    torch.set_num_threads(before)
    for a, b in zip((whole, *grads), (one, *one_grads), strict=True):
        same(a, b)
    part = (slice(1, 3), slice(7, 20))
    own = log_emissions if constant else log_emissions[part]
    value, part_grads = gradients(ops.combine_emissions, (own, x[part], weights), upstream[part])
    same(value, whole[part])
    same(part_grads[1], grads[1][part])
    if not constant:
        same(part_grads[0], grads[0][part])
    scattered = [
        log_emissions.mT.contiguous().mT,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack((weights, weights), 1)[:, 0],
    ]
    same(ops.combine_emissions(scattered[0], scattered[1], weights=scattered[2]), whole)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted, ids, constant):
    log_emissions, x, weights = make((2, 3, 2, 4, 5), constant=constant, ids=ids, weighted=weighted)
    for normalize in (False, True):
        learned = [
            t if t is None or not t.is_floating_point() else t.clone().requires_grad_()
            for t in (log_emissions, x, weights)
        ]
        torch.library.opcheck(OP.combine_emissions.default, (*learned, normalize))
        torch.library.opcheck(
            OP.combine_emissions_backward.default,
            (torch.randn(2, 3, 4), log_emissions, x, weights, normalize),
        )


@pytest.mark.parametrize("ids", [False, True])
def test_compiles_once_for_all_sizes(ids):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def value(log_emissions, x, weights):
        emit = ops.combine_emissions(log_emissions, x, weights=weights, normalize=True)
        states = emit.shape[2]
        return ops.hmm_log_likelihood(emit.new_zeros(states), emit.new_zeros(states, states), emit)

    compiled = torch.compile(value, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 4, 3, 5, 6), (3, 7, 2, 4, 9)):
        log_emissions, x, weights = make(shape, ids=ids)
        grads = []
        for function in (compiled, value):
            leaf = log_emissions.clone().requires_grad_()
            result = function(leaf, x, weights)
            grads.append((result.detach(), *torch.autograd.grad(result.sum(), leaf)))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_second_derivative_is_an_error():
    log_emissions, x, weights = make((2, 3, 2, 4, 5))
    leaf = log_emissions.requires_grad_()
    value = ops.combine_emissions(leaf, x, weights=weights)
    (grad,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="combine_emissions has no second derivative"):
        (grad**2).sum().backward()


@pytest.mark.parametrize("value", [-2, 5, 2**40])
def test_an_id_outside_the_labels_is_named(value):
    log_emissions, ids, _ = make((2, 3, 2, 4, 5), ids=True)
    ids[1, 2, 0] = value
    message = rf"\[-1, 5\), got {value} for sequence 1, step 2, source 0"
    with pytest.raises(RuntimeError, match=message):
        ops.combine_emissions(log_emissions, ids)
    with pytest.raises(RuntimeError, match=message):
        reference.combine_emissions(log_emissions, ids, None, False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_emissions": torch.zeros(2, 4, 5).long()}, TypeError, "log_emissions must be float"),
        ({"log_emissions": torch.zeros(2, 3, 4, 5)}, ValueError, r"\[S, K, L\] with K, L >= 1"),
        ({"log_emissions": torch.zeros(2, 0, 5)}, ValueError, "K, L >= 1, got"),
        ({"observations": torch.zeros(2, 3, 2).short()}, TypeError, "observations must be int64"),
        ({"observations": torch.zeros(2, 3, 2)}, ValueError, r"\[B, T, S, L\].*got \[2, 3, 2\]"),
        ({"observations": torch.zeros(2, 3, 2, 4)}, ValueError, "observations must have the shape"),
        ({"observations": torch.zeros(2, 3, 2, 5).double()}, TypeError, "observations and log_em"),
        (
            {"observations": torch.zeros(2, 3, 3).long()},
            ValueError,
            r"\[B, T, S\] of log_emissions",
        ),
        ({"observations": torch.zeros(2).long()}, ValueError, r"\[B, T, S\] of log_emissions"),
        ({"weights": torch.zeros(3)}, ValueError, r"weights must have the shape \[2\].*got \[3\]"),
        ({"weights": torch.zeros(2).double()}, TypeError, "weights and log_emissions must be"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "log_emissions": torch.zeros(2, 4, 5),
        "observations": torch.zeros(2, 3, 2).long(),
        **change,
    }
    with pytest.raises(error, match=message):
        ops.combine_emissions(**arguments)

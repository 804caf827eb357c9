"""Derivatives of the `hmm` family, their masks, and how the ops are registered."""

import pytest
import torch
from hmm_oracle import (
    FLOATS,
    INF,
    TRANS,
    by_enumeration,
    in_log_space,
    leaves,
    make,
    matrices,
    posteriors,
    same,
)
from torch._dynamo.testing import CompileCounterWithBackend

from oneshot import ops

EVERYTHING = {"xi": True, "xi_sum": True}
OP = torch.ops.oneshot


def random_loss(result, seed=3):
    """A linear function of every output, so each upstream gradient is dense."""
    generator = torch.Generator().manual_seed(seed)
    return sum(
        (torch.randn(x.shape, generator=generator, dtype=torch.float64) * x.double()).sum()
        for x in result
    )


# First derivatives -------------------------------------------------------------------------------


def of_tensors(function, inputs, **options):
    """The op as a function of its float tensors, which is what gradcheck takes."""
    names = [name for name in FLOATS if inputs[name] is not None]

    def call(*values):
        result = function(**inputs | dict(zip(names, values, strict=True)), **options)
        return result if torch.is_tensor(result) else [x for x in result if x is not None]

    return call


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", TRANS)
def test_gradcheck(kind, final):
    inputs, tensors = leaves(make(3, 3, 2, kind, final=final, ragged=final, dtype=torch.float64))
    posterior = of_tensors(ops.hmm_posteriors, inputs, **EVERYTHING)
    assert torch.autograd.gradcheck(posterior, tensors)
    assert torch.autograd.gradcheck(of_tensors(ops.hmm_posteriors, inputs), tensors, fast_mode=True)
    assert torch.autograd.gradcheck(of_tensors(ops.hmm_entropy, inputs), tensors)
    log_z = of_tensors(ops.hmm_log_likelihood, inputs)
    assert torch.autograd.gradcheck(log_z, tensors)
    assert torch.autograd.gradgradcheck(log_z, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["shared", "sequence", "token"])
@pytest.mark.parametrize("forbidden", [0.0, 0.3])
def test_every_path(kind, forbidden, dtype):
    """First and second derivatives through all outputs against autograd over the enumeration."""
    inputs = make(6, 5, 4, kind, dtype=dtype, forbidden=forbidden)
    grads = []
    for function in (
        lambda x: ops.hmm_posteriors(**x, **EVERYTHING),
        lambda x: posteriors(x, by_enumeration),
    ):
        copy, tensors = leaves(inputs)
        grads.append(torch.autograd.grad(random_loss(function(copy)), tensors))
    tolerance = (
        {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, **tolerance)


@pytest.mark.parametrize("states", [1, 7, 17, 63, 64, 65])
@pytest.mark.parametrize("kind", ["shared", "token"])
def test_every_width(states, kind):
    """Through gamma and xi, against double backward through a log-space recursion."""
    inputs = make(4, 12, states, kind)
    grads = []
    for function in (
        lambda x: ops.hmm_posteriors(**x, **EVERYTHING),
        lambda x: posteriors(x, in_log_space),
    ):
        copy, tensors = leaves(inputs)
        grads.append(torch.autograd.grad(random_loss(function(copy)), tensors))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-5)


def test_a_thousand_steps():
    inputs = make(3, 1000, 5, "shared")
    weight = torch.randn(3, 1000, 5)
    grads = []
    for function in (
        lambda x: ops.hmm_posteriors(**x).gamma,
        lambda x: posteriors(x, in_log_space).gamma,
    ):
        copy, tensors = leaves(inputs)
        grads.append(torch.autograd.grad((function(copy) * weight).sum(), tensors))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", TRANS)
def test_gradient_of_log_z_is_the_posterior(kind):
    """Bit by bit: it is the same call."""
    inputs = make(5, 9, 6, kind)
    copy, _ = leaves(inputs)
    upstream = torch.randn(5)
    ops.hmm_log_likelihood(**copy).backward(upstream)
    result = ops.hmm_posteriors(**inputs, **EVERYTHING)
    same(copy["log_emit"].grad, result.gamma * upstream[:, None, None])
    expected = {
        "shared": lambda: (result.xi_sum * upstream[:, None, None]).sum(0),
        "sequence": lambda: result.xi_sum * upstream[:, None, None],
        "one_step": lambda: (result.xi_sum * upstream[:, None, None])[:, None],
        "step": lambda: (result.xi * upstream[:, None, None, None]).sum(0),
        "one_sequence": lambda: (result.xi * upstream[:, None, None, None]).sum(0)[None],
        "token": lambda: result.xi * upstream[:, None, None, None],
    }[kind]()
    torch.testing.assert_close(copy["log_trans"].grad, expected, rtol=1e-6, atol=1e-7)
    first = result.gamma[:, 0] * upstream[:, None]
    last = (inputs["lengths"] - 1).clamp(min=0)
    final = result.gamma[torch.arange(5), last] * upstream[:, None]
    if inputs["log_init"].dim() == 1:
        first, final = first.sum(0), final.sum(0)
    torch.testing.assert_close(copy["log_init"].grad, first, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(copy["log_final"].grad, final, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize("needed", [("log_init",), ("log_trans",), ("log_emit",), ("log_final",)])
def test_gradient_of_one_input_alone(kind, needed):
    inputs = make(4, 7, 5, kind)
    whole, _ = leaves(inputs)
    ops.hmm_log_likelihood(**whole).sum().backward()
    for function in (
        ops.hmm_log_likelihood,
        lambda **x: ops.hmm_posteriors(**x).log_likelihood,
        lambda **x: ops.hmm_posteriors(**x, xi=True).log_likelihood,
    ):
        part = {k: v.clone().requires_grad_() if k in needed else v for k, v in inputs.items()}
        function(**part).sum().backward()
        for name in FLOATS:
            if name in needed:
                torch.testing.assert_close(part[name].grad, whole[name].grad, rtol=1e-5, atol=1e-6)
            else:
                assert part[name].grad is None


# Second and third derivatives --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_hessian_is_the_covariance(kind):
    """d2 log Z / d emit d emit = cov of the indicators, here from all paths."""
    inputs, _ = leaves(make(1, 4, 3, kind, ragged=False, dtype=torch.float64))
    for function in (ops.hmm_log_likelihood, lambda **x: ops.hmm_posteriors(**x).log_likelihood):
        (grad,) = torch.autograd.grad(function(**inputs), inputs["log_emit"], create_graph=True)
        rows = [
            torch.autograd.grad(g, inputs["log_emit"], retain_graph=True)[0].flatten()
            for g in grad.flatten()
        ]
        hessian = torch.stack(rows)
        gamma = posteriors(inputs, by_enumeration).gamma
        expected = [
            torch.autograd.grad(g, inputs["log_emit"], retain_graph=True)[0].flatten()
            for g in gamma.flatten()
        ]
        torch.testing.assert_close(hessian, torch.stack(expected), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(hessian, hessian.mT, rtol=1e-9, atol=1e-12)


def test_a_gradient_penalty():
    """Second derivatives of every pair of inputs at once: |d log Z / d theta|^2, float32."""
    inputs = make(4, 5, 4)
    grads = []
    for function in (
        lambda x: ops.hmm_log_likelihood(**x),
        lambda x: posteriors(x, by_enumeration).log_likelihood,
    ):
        copy, tensors = leaves(inputs)
        first = torch.autograd.grad(function(copy).sum(), tensors, create_graph=True)
        grads.append(torch.autograd.grad(sum((g**2).sum() for g in first), tensors))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_third_derivative_is_an_error():
    inputs, _ = leaves(make(2, 4, 3))
    emit = inputs["log_emit"]
    first = torch.autograd.grad(ops.hmm_log_likelihood(**inputs).sum(), emit, create_graph=True)[0]
    second = torch.autograd.grad((first**2).sum(), emit, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="log_likelihood can be differentiated twice"):
        second.sum().backward()


# What must not matter ----------------------------------------------------------------------------


def poisoned(inputs):
    """NaN, inf, -inf and large numbers in every place that no sequence uses."""
    steps = inputs["log_emit"].shape[1]
    trash = torch.tensor([torch.nan, INF, -INF, 3e38])

    def spoil(x, used):
        used = used.expand(x.shape)
        return torch.where(used, x, trash[torch.randint(4, x.shape)].to(x.dtype))

    lengths = inputs["lengths"]
    emit_used = (torch.arange(steps) < lengths[:, None])[:, :, None]
    trans_used = (torch.arange(steps - 1) < lengths[:, None] - 1)[:, :, None, None]
    trans = inputs["log_trans"]
    if inputs["trans_axis"] == "sequence":
        trans_used = trans_used.any(1)
    elif inputs["trans_axis"] == "step":
        trans_used = trans_used.any(0)
    elif trans.dim() == 2:
        trans_used = trans_used.any().view(1, 1)
    else:
        trans_used = trans_used.any(0, keepdim=True) if trans.shape[0] == 1 else trans_used
        trans_used = trans_used.any(1, keepdim=True) if trans.shape[1] == 1 else trans_used
    ends_used = (lengths > 0)[:, None] if inputs["log_init"].dim() == 2 else (lengths > 0).any()
    return {
        **inputs,
        "log_init": spoil(inputs["log_init"], ends_used),
        "log_trans": spoil(trans, trans_used),
        "log_emit": spoil(inputs["log_emit"], emit_used),
        "log_final": spoil(inputs["log_final"], ends_used),
    }


@pytest.mark.parametrize("longest", [0, 1, 9, 12])
@pytest.mark.parametrize("states", [5, 17])
@pytest.mark.parametrize("kind", TRANS)
def test_padding_is_never_seen(kind, states, longest):
    inputs = make(7, 12, states, kind)
    inputs["lengths"] = inputs["lengths"].clamp(max=longest)
    spoiled = poisoned(inputs)
    results = []
    for version in (inputs, spoiled):
        copy, tensors = leaves(version)
        result = ops.hmm_posteriors(**copy, **EVERYTHING)
        one = torch.autograd.grad(random_loss(result), tensors, retain_graph=True)
        copy, tensors = leaves(version)
        (first,) = torch.autograd.grad(
            ops.hmm_log_likelihood(**copy).sum(), copy["log_emit"], create_graph=True
        )
        two = torch.autograd.grad((first**2).sum(), tensors)
        paths = ops.hmm_sample(**version, seed=1, num_samples=3)
        entropy = ops.hmm_entropy(**copy)
        three = torch.autograd.grad(entropy.sum(), tensors)
        outputs = (*result, *one, *two, first, entropy, *three)
        results.append((*(x.detach() for x in outputs), *ops.hmm_viterbi(**version), paths))
    for a, b in zip(*results, strict=True):
        assert not b.isnan().any()
        same(a, b)
    gamma = results[0][1]
    assert (gamma[torch.arange(12) >= inputs["lengths"][:, None]] == 0).all()


def test_upstream_garbage_behind_the_end_is_dropped():
    inputs = make(5, 9, 4)
    inside = torch.arange(9) < inputs["lengths"][:, None]
    upstream = (
        torch.randn(5), torch.randn(5, 9, 4), torch.randn(5, 8, 4, 4), torch.randn(5, 4, 4)
    )  # fmt: skip
    garbage = (
        upstream[0],
        torch.where(inside[:, :, None], upstream[1], torch.nan),
        torch.where(inside[:, 1:, None, None], upstream[2], INF),
        torch.where(inside[:, 1, None, None], upstream[3], torch.nan),
    )
    grads = []
    for given in (upstream, garbage):
        copy, tensors = leaves(inputs)
        result = ops.hmm_posteriors(**copy, **EVERYTHING)
        grads.append(torch.autograd.grad(result, tensors, given))
    for a, b in zip(*grads, strict=True):
        same(a, b)


def impossible(kind):
    """Six sequences of which 1, 2, 3, 4 have no path, each for another reason."""
    inputs = make(6, 6, 4, "token", ragged=False)
    inputs["log_init"][1] = -INF
    inputs["log_emit"][2, 3] = -INF
    inputs["log_final"][3] = -INF
    if kind == "one row":
        inputs["log_trans"][4, 2] = -INF
    else:  # one half of the states cannot be left, and the end lies in the other
        inputs["log_init"][4, 2:] = -INF
        inputs["log_trans"][4, :, :2, 2:] = -INF
        inputs["log_final"][4, :2] = -INF
    return inputs, torch.tensor([False, True, True, True, True, False])


@pytest.mark.parametrize("kind", ["one row", "two halves"])
def test_a_sequence_without_a_path(kind):
    inputs, dead = impossible(kind)
    copy, tensors = leaves(inputs)
    result = ops.hmm_posteriors(**copy, **EVERYTHING)
    assert (result.log_likelihood[dead] == -INF).all()
    for value in result[1:]:
        assert (value[dead] == 0).all()
    kept = {k: v[~dead] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    for a, b in zip(ops.hmm_posteriors(**kept, **EVERYTHING), result, strict=True):
        same(a, b[~dead].detach())
    finite = torch.where(dead, 0, result.log_likelihood)
    losses = (
        random_loss((finite, *result[1:])),
        -ops.hmm_log_likelihood(**copy).sum(),
        (ops.hmm_log_likelihood(**copy) ** 2).sum(),  # upstream gradient -inf
        (result.log_likelihood**2).sum() + (result.gamma**2).sum(),
        ops.hmm_entropy(**copy).sum(),
    )
    for loss in losses:
        for grad in torch.autograd.grad(loss, tensors, retain_graph=True):
            assert (grad[dead] == 0).all()
            assert grad[~dead].isfinite().all()
            assert (grad[~dead] != 0).any()
    assert (ops.hmm_entropy(**inputs)[dead] == 0).all()
    path, score = ops.hmm_viterbi(**inputs)
    assert (score[dead] == -INF).all()
    assert (path[dead] == -1).all()
    assert (path[~dead] >= 0).all()
    drawn = ops.hmm_sample(**inputs, seed=0, num_samples=5)
    assert (drawn[:, dead] == -1).all()
    assert (drawn[:, ~dead] >= 0).all()
    first = torch.autograd.grad(ops.hmm_log_likelihood(**copy).sum(), tensors, create_graph=True)
    for grad in torch.autograd.grad(sum((g**2).sum() for g in first), tensors):
        assert (grad[dead] == 0).all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, INF])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("log_init", (2, 1)),
        ("log_final", (2, 3)),
        ("log_emit", (2, 0, 0)),
        ("log_emit", (2, 4, 2)),
        ("log_trans", (2, 0, 1, 2)),
        ("log_trans", (2, 3, 0, 0)),
    ],
)
@pytest.mark.parametrize("steps", [6, 40])
def test_a_nan_in_use_spoils_its_own_sequence(name, place, value, steps):
    inputs = make(5, steps, 4)
    inputs["lengths"] = torch.tensor([steps, 2, 5, 0, steps])
    clean = ops.hmm_posteriors(**inputs, **EVERYTHING)
    spoiled = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    spoiled[name][place] = value
    others = torch.tensor([0, 1, 3, 4])
    grads = []
    for version in (inputs, spoiled):
        copy, tensors = leaves(version)
        result = ops.hmm_posteriors(**copy, **EVERYTHING)
        loss = random_loss(result) + 0.5 * ops.hmm_log_likelihood(**copy).sum()
        grads.append(torch.autograd.grad(loss, tensors))
    for a, b in zip(clean, result, strict=True):
        same(a[others], b[others].detach())
    assert result.log_likelihood[2].isnan()
    assert result.gamma[2, :5].isnan().all()
    assert result.xi[2, :4].isnan().all()
    assert result.xi_sum[2].isnan().all()
    assert (result.gamma[2, 5:] == 0).all()
    assert (result.xi[2, 4:] == 0).all()
    for a, b in zip(*grads, strict=True):
        same(a[others], b[others])
    init, trans, emit, final = grads[1]
    assert init[2].isnan().all()
    assert final[2].isnan().all()
    assert trans[2, :4].isnan().all()
    assert emit[2, :5].isnan().all()
    assert (trans[2, 4:] == 0).all()
    assert (emit[2, 5:] == 0).all()
    path, score = ops.hmm_viterbi(**spoiled)
    assert score[2].isnan()
    assert (path[2] == -1).all()
    assert (ops.hmm_sample(**spoiled, seed=0)[0, 2] == -1).all()
    assert ops.hmm_entropy(**spoiled)[2].isnan()


# Registration ------------------------------------------------------------------------------------


def op_arguments(kind, dtype=torch.float32):
    inputs = make(4, 5, 3, kind, dtype=dtype)
    trans = matrices(inputs) if kind == "token" else inputs["log_trans"][None, None]
    ends = [x if x.dim() == 2 else x[None] for x in (inputs["log_init"], inputs["log_final"])]
    return ends[0], trans, inputs["log_emit"], inputs["lengths"], ends[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck(kind, optional, dtype):
    init, trans, emit, lengths, final = op_arguments(kind, dtype)
    lengths, final = (lengths, final) if optional else (None, None)
    arguments = (init, trans, emit, lengths, final)
    learned = [
        x.clone().requires_grad_() if x is not None and x is not lengths else x for x in arguments
    ]
    for flags in ((True, True, True), (True, False, False), (False, False, False)):
        torch.library.opcheck(OP.hmm_posteriors.default, (*learned, *flags))
    upstream = [torch.randn(s, dtype=dtype) for s in ((4,), (4, 5, 3), (4, 4, 3, 3), (4, 3, 3))]
    for given in (upstream, [None, upstream[1], None, None], [None, None, None, upstream[3]]):
        torch.library.opcheck(OP.hmm_posteriors_backward.default, (*given, *arguments))
    torch.library.opcheck(OP.hmm_viterbi.default, arguments)
    for ids in (None, torch.tensor([5, 2, 9, 2**40])):
        torch.library.opcheck(OP.hmm_sample.default, (*arguments, ids, 3, 7))


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_compiles_once_for_all_sizes(kind):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(inputs):
        result = ops.hmm_posteriors(**inputs, xi_sum=True)
        path = ops.hmm_viterbi(**inputs)
        drawn = ops.hmm_sample(**inputs, seed=5, num_samples=2)
        total = ops.hmm_log_likelihood(**inputs).sum() + ops.hmm_entropy(**inputs).sum()
        total = total + (result.gamma**2).sum() + (result.xi_sum**2).sum()
        return total + path.score.sum() + path.path.sum() + drawn.sum()

    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for batch, steps, states in ((3, 6, 4), (5, 9, 7)):
        inputs = make(batch, steps, states, kind)
        grads = []
        for function in (compiled, loss):
            copy, tensors = leaves(inputs)
            value = function(copy)
            grads.append((value.detach(), *torch.autograd.grad(value, tensors)))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1

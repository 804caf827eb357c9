"""Every op under the transforms of autograd and torch.func: the right value, or a named refusal.

One table; beside each op stands its formula in plain PyTorch.
"""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad, gradcheck
from torch.utils.checkpoint import checkpoint

from oneshot import ops
from oneshot.ops import _library
from oneshot.ops.backends import references

# A loop over the ops is what functorch does where an op has no batching rule; it says so once.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Case(NamedTuple):
    function: Callable[[Tensor], Tensor]
    formula: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    refused: str | None  # what second and forward-mode derivatives name; None: they are right
    second: bool = False  # second derivatives are right although forward mode is refused


def fixed(*shape):
    """Constants of a case: the same numbers whatever ran before."""
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


IDS = torch.tensor([[0, 6, 2], [3, 3, 1]])
MASK = torch.tensor([[True, True, False, True], [True, False, True, True]])
OLD, REF, RETURNS = fixed(2, 4) * 0.1, fixed(2, 4, 1)[..., 0] * 0.1, fixed(1, 2, 4)[0]
ADVANTAGES = torch.tensor([0.7, -1.3]).double()


def log_softmax(x, temperature=0.7):
    return (x / temperature).log_softmax(-1)


HEAD, STATES = fixed(7, 4), fixed(2, 3, 4)


def head_formula(logits):
    logp = log_softmax(logits)
    return logp.gather(-1, IDS[..., None])[..., 0] - (logp.exp() * logp).sum(-1)


def masked_mean(x):
    return torch.where(MASK, x, 0).sum() / MASK.sum()


def policy_formula(x):
    ratio, advantages = (x - OLD).exp(), ADVANTAGES[:, None]
    clipped = ratio.clamp(0.8, 1.3)
    k3 = (REF - x).exp() - 1 - (REF - x)
    return masked_mean(-torch.minimum(ratio * advantages, clipped * advantages) + 0.1 * k3)


# A chain of three steps and two states, by enumeration of its eight paths.
INIT, TRANS = fixed(2), fixed(2, 2)
PATHS = torch.tensor(list(itertools.product(range(2), repeat=3)))


def path_scores(emit):
    score = INIT[PATHS[:, 0]] + emit[:, torch.arange(3), PATHS].sum(-1)
    return score + TRANS[PATHS[:, :-1], PATHS[:, 1:]].sum(-1)


def path_marginals(emit):
    one_hot = torch.nn.functional.one_hot(PATHS, 2).double()
    return torch.einsum("bp,ptk->btk", path_scores(emit).softmax(-1), one_hot)


def path_entropy(emit):
    log_p = path_scores(emit).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


VOTES, SOURCE_WEIGHTS = torch.tensor([[[0, 2], [-1, 1]]]), torch.tensor([0.5, 2.0]).double()


def combine_formula(x):
    one_hot = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    one_hot.scatter_(-1, VOTES.clamp(min=0)[..., None], 1)
    seen = (VOTES >= 0)[..., None]
    evidence = (x.exp() * one_hot[..., None, :]).sum(-1).log()
    return (torch.where(seen, evidence, 0) * SOURCE_WEIGHTS[:, None]).sum(2)


TASKS, ROWS = torch.tensor([2, 0]), torch.tensor([1, 0, 1])
X, A, B, W = fixed(3, 4), fixed(2, 2, 2, 3), fixed(2, 2, 3, 1), fixed(2, 2, 2).sigmoid()


def mix_formula(a, w=W):
    return torch.einsum("uhk,hkpr->uhpr", w, a).reshape(2, 4, 3)


def lora_formula(x):
    b = torch.einsum("uhk,hkrq->urhq", W, B).reshape(2, 3, 2)
    return 0.5 * torch.einsum("nd,ndr,nrq->nq", x, mix_formula(A)[ROWS], b[ROWS])


def skills_formula(x):
    s = x[sorted(TASKS.tolist())].sigmoid()
    return s / (s.sum(-1, keepdim=True) + 1e-12)


CASES = {
    "token_logprobs": Case(
        lambda x: ops.token_logprobs(x, IDS, temperature=0.7),
        lambda x: log_softmax(x).gather(-1, IDS[..., None])[..., 0],
        (2, 3, 7), "token_logprobs_and_entropy",
    ),
    "token_logprobs in place": Case(
        lambda x: ops.token_logprobs(x * 1, IDS, temperature=0.7, inplace_backward=True),
        lambda x: log_softmax(x).gather(-1, IDS[..., None])[..., 0],
        (2, 3, 7), "token_logprobs_and_entropy",
    ),
    "token_entropy": Case(
        lambda x: ops.token_entropy(x, temperature=0.7),
        lambda x: -(log_softmax(x).exp() * log_softmax(x)).sum(-1),
        (2, 3, 7), "token_logprobs_and_entropy",
    ),
    "linear_token_logprobs_and_entropy by hidden": Case(
        lambda x: sum(ops.linear_token_logprobs_and_entropy(x, HEAD, IDS, temperature=0.7)),
        lambda x: head_formula(x @ HEAD.t()), (2, 3, 4), "linear_token_logprobs_and_entropy",
    ),
    "linear_token_logprobs_and_entropy by weight": Case(
        lambda x: sum(ops.linear_token_logprobs_and_entropy(STATES, x, IDS, temperature=0.7)),
        lambda x: head_formula(STATES @ x.t()), (7, 4), "linear_token_logprobs_and_entropy",
    ),
    "policy_loss": Case(
        lambda x: ops.policy_loss(x, OLD, ADVANTAGES, MASK, ref_logprobs=REF, kl_coef=0.1,
                                  clip_high=0.3).loss,
        policy_formula, (2, 4), "policy_loss",
    ),
    "policy_loss by entropy": Case(
        lambda x: ops.policy_loss(OLD, OLD, ADVANTAGES, MASK, entropy=x, entropy_coef=0.2).loss,
        lambda x: masked_mean(-ADVANTAGES[:, None] - 0.2 * x), (2, 4), "policy_loss", second=True,
    ),
    "value_loss": Case(
        lambda x: ops.value_loss(x, OLD, RETURNS, MASK, clip=0.4).loss,
        lambda x: masked_mean(torch.maximum(
            (x - RETURNS) ** 2, (OLD + (x - OLD).clamp(-0.4, 0.4) - RETURNS) ** 2)) / 2,
        (2, 4), "value_loss",
    ),
    "hmm_log_likelihood": Case(
        lambda x: ops.hmm_log_likelihood(INIT, TRANS, x),
        lambda x: path_scores(x).logsumexp(-1), (2, 3, 2), "hmm", second=True,
    ),
    "hmm_posteriors": Case(
        lambda x: ops.hmm_posteriors(INIT, TRANS, x).gamma, path_marginals, (2, 3, 2), "hmm",
    ),
    "hmm_entropy": Case(
        lambda x: ops.hmm_entropy(INIT, TRANS, x), path_entropy, (2, 3, 2), "hmm",
    ),
    "combine_emissions": Case(
        lambda x: ops.combine_emissions(x, VOTES, weights=SOURCE_WEIGHTS),
        combine_formula, (1, 2, 2, 2, 3), "combine_emissions",
    ),
    "routing_weights": Case(
        lambda x: ops.routing_weights(x, TASKS)[0],
        skills_formula, (3, 2, 2), "routing_weights", second=True,
    ),
    "mix_adapters": Case(
        lambda x: ops.mix_adapters(x, W, split_dim=-2), mix_formula, (2, 2, 2, 3), "mix_adapters",
    ),
    "routed_lora": Case(
        lambda x: ops.routed_lora(x, A, B, W, ROWS, scaling=0.5, plan="mixtures"),
        lora_formula, (3, 4), "routed_lora",
    ),
    "routed_lora by the inventory": Case(
        lambda x: ops.routed_lora(x, A, B, W, ROWS, scaling=0.5, plan="inventory"),
        lora_formula, (3, 4), None,
    ),
    "routed_ia3": Case(
        lambda x: ops.routed_ia3(x, RETURNS, None, ROWS), lambda x: x * RETURNS[ROWS], (3, 4), None,
    ),
    "routed_ia3 by the inventory": Case(
        lambda x: ops.routed_ia3(X, x, W, ROWS),
        lambda x: X * torch.einsum("uhk,hkq->uhq", W, x).reshape(2, 4)[ROWS],
        (2, 2, 2), "mix_adapters",
    ),
}  # fmt: skip


# Ops whose outputs are data: no gradient comes back, and a tangent is not dropped in silence.
MIXED = fixed(2, 3).sigmoid()
DATA = {
    "group_advantages": (lambda x: ops.group_advantages(x, 2), (4,)),
    "gae": (lambda x: ops.gae(x, RETURNS, gamma=0.9)[0], (2, 4)),
    "gae by values": (lambda x: ops.gae(RETURNS, x, gamma=0.9)[1], (2, 4)),
    "whiten": (ops.whiten, (2, 4)),
    "importance_weights": (lambda x: ops.importance_weights(x, OLD, MASK).weights, (2, 4)),
    "hmm_viterbi": (lambda x: ops.hmm_viterbi(INIT, TRANS, x).score, (2, 3, 2)),
    "hmm_sample": (lambda x: ops.hmm_sample(INIT, TRANS, x, seed=1).double(), (2, 3, 2)),
    "policy_loss by old_logprobs": (
        lambda x: ops.policy_loss(RETURNS, x, ADVANTAGES).loss, (2, 4)
    ),
    "policy_loss by advantages": (lambda x: ops.policy_loss(RETURNS, OLD, x).loss, (2,)),
    "value_loss by returns": (lambda x: ops.value_loss(OLD, OLD, x).loss, (2, 4)),
}  # fmt: skip

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
once_differentiable = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.refused],
    ids=[name for name, case in CASES.items() if case.refused],
)


def scalar(function):
    """A number of the outputs in which no two count alike."""

    def weighted(x):
        y = function(x)
        return (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)).sum()

    return weighted


def same(ours, right):
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


# Reverse mode ------------------------------------------------------------------------------------


@every_case
def test_values_and_gradients(case):
    x = fixed(*case.shape).requires_grad_()
    ours, right = case.function(x), case.formula(x)
    same(ours, right)
    same(
        torch.autograd.grad(scalar(lambda _: ours)(x), x),
        torch.autograd.grad(scalar(lambda _: right)(x), x),
    )


@every_case
def test_torch_func_in_reverse(case):
    x, stack = fixed(*case.shape), torch.stack([fixed(*case.shape), fixed(*case.shape) * 0.5])
    ours, right = scalar(case.function), scalar(case.formula)
    same(func.grad(ours)(x), func.grad(right)(x))
    same(func.grad_and_value(ours)(x), func.grad_and_value(right)(x))
    same(func.jacrev(case.function)(x), func.jacrev(case.formula)(x))
    same(func.vmap(case.function)(stack), func.vmap(case.formula)(stack))
    per_sample = func.vmap(func.grad(right))(stack)
    same(func.vmap(func.grad(ours))(stack), per_sample)
    same(func.grad(lambda s: func.vmap(ours)(s).sum())(stack), per_sample)
    output, pull = func.vjp(case.function, x)
    same(output, case.formula(x))
    same(pull(torch.ones_like(output))[0], func.grad(lambda x: case.formula(x).sum())(x))


@every_case
def test_functional_call(case):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(case.shape, dtype=torch.float64))

        def forward(self):
            return scalar(case.function)(self.weight * 2)

    model, x = Model(), fixed(*case.shape)
    ours = func.grad(lambda parameters: func.functional_call(model, parameters, ()))({"weight": x})
    same(ours["weight"], func.grad(lambda x: scalar(case.formula)(x * 2))(x))


@every_case
def test_a_level_outside_that_does_not_see_the_op(case):
    """Derivatives in something else, with the op's gradient as a constant of theirs."""
    x, factor = fixed(*case.shape), torch.tensor(3.0).double()
    inner, right = func.grad(scalar(case.function)), func.grad(scalar(case.formula))
    same(func.grad(lambda c: (c**2 * inner(x)).sum())(factor), 6 * right(x).sum())
    tangent = torch.ones_like(factor)
    same(func.jvp(lambda c: (c**2 * inner(x)).sum(), (factor,), (tangent,))[1], 6 * right(x).sum())


# Second derivatives ------------------------------------------------------------------------------


@every_case
def test_second_derivatives_are_right_or_refused(case):
    x = fixed(*case.shape).requires_grad_()

    def twice(function):
        (first,) = torch.autograd.grad(scalar(function)(x), x, create_graph=True)
        return torch.autograd.grad((first**2).sum() + (x**2).sum(), x)[0]

    if case.second or case.refused is None:
        same(twice(case.function), twice(case.formula))
        same(
            func.jacrev(func.jacrev(scalar(case.function)))(x.detach()),
            func.jacrev(func.jacrev(scalar(case.formula)))(x.detach()),
        )
        return
    with pytest.raises(RuntimeError, match=f"{case.refused}.*(second derivative|differentiated)"):
        twice(case.function)
    # beside a term that has one
    with pytest.raises(RuntimeError, match=case.refused):
        twice(lambda x: torch.cat([case.function(x).flatten(), (x**2).flatten()]))
    for outer in (func.grad, func.jacrev):
        with pytest.raises(RuntimeError, match=case.refused):
            outer(lambda x: (func.grad(scalar(case.function))(x) ** 2).sum())(x.detach())


# Forward mode ------------------------------------------------------------------------------------


def dual(function, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


def dual_without_gradients(function, x, tangent):
    with torch.no_grad():
        return dual(function, x, tangent)


FORWARD = {
    "jvp": lambda f, x, t: func.jvp(f, (x,), (t,))[1],
    "jacfwd": lambda f, x, t: func.jacfwd(f)(x),
    "linearize": lambda f, x, t: func.linearize(f, x)[1](t),
    "dual": dual,
    "dual without gradients": dual_without_gradients,
    "dual that requires a gradient": lambda f, x, t: dual(f, x.clone().requires_grad_(), t),
    "hessian": lambda f, x, t: func.hessian(scalar(f))(x),
    "jvp of vmap": lambda f, x, t: func.jvp(func.vmap(f), (x[None],), (t[None],))[1],
    "vmap of jvp": lambda f, x, t: func.vmap(lambda x, t: func.jvp(f, (x,), (t,))[1])(
        x[None], t[None]
    ),
}
every_transform = pytest.mark.parametrize("transform", FORWARD.values(), ids=FORWARD)


@every_transform
@every_case
def test_forward_mode_is_right_or_refused(case, transform):
    x, tangent = fixed(*case.shape), fixed(*case.shape).cos()
    if case.refused is None:
        same(transform(case.function, x, tangent), transform(case.formula, x, tangent))
        return
    with pytest.raises(RuntimeError, match=f"{case.refused}.*forward-mode"):
        transform(case.function, x, tangent)


@every_transform
@pytest.mark.parametrize("name", DATA)
def test_forward_mode_through_data_is_refused(name, transform):
    function, shape = DATA[name]
    with pytest.raises(RuntimeError, match=f"{name.split()[0]}.*forward-mode"):
        transform(function, fixed(*shape), fixed(*shape).cos())


@pytest.mark.parametrize("name", DATA)
def test_data_passes_no_gradient(name):
    function, shape = DATA[name]
    x = fixed(*shape).requires_grad_()
    assert not function(x).requires_grad
    y = x.sum() * function(x).sum()  # beside a factor that does
    same(torch.autograd.grad(y, x)[0], function(x).sum().expand(shape))
    same(
        func.grad(lambda x: x.sum() * function(x).sum())(x.detach()),
        function(x).sum().expand(shape),
    )


@once_differentiable
def test_forward_mode_through_the_gradient_is_refused(case):
    """A tangent of the upstream gradient reaches the backward op and no other."""
    x = fixed(*case.shape).requires_grad_()

    def tangent(function):
        y = function(x)
        with forward_ad.dual_level():
            upstream = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
            return forward_ad.unpack_dual(torch.autograd.grad(y, x, upstream)[0]).tangent

    if case.function is CASES["hmm_log_likelihood"].function:  # a product with the posteriors
        same(tangent(case.function), tangent(case.formula))
        return
    with pytest.raises(RuntimeError, match=f"{case.refused}.*forward"):
        tangent(case.function)


@once_differentiable
def test_gradcheck_of_forward_mode_is_refused(case):
    x = fixed(*case.shape).requires_grad_()
    if case.function is CASES["token_logprobs in place"].function:
        pytest.skip("gradcheck takes a graph's gradient more than once")
    with pytest.raises(RuntimeError, match=case.refused):
        gradcheck(case.function, (x,), check_forward_ad=True)


@every_case
def test_forward_mode_of_something_else_passes(case):
    x, t = fixed(*case.shape), torch.tensor(2.0).double()
    value, tangent = func.jvp(lambda c: (c * case.function(x)).sum(), (t,), (torch.ones_like(t),))
    same(tangent, case.formula(x).sum())
    same(value, 2 * tangent)


def test_every_op_has_an_autograd_kernel():
    """What the tables above show for some ops holds for all: none falls through."""
    for name in references():
        packet = getattr(torch.ops.oneshot, name)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            key = name if overload == "default" else f"{name}.{overload}"
            assert op._schema.is_mutable or _library.has_kernel(key, "Autograd"), op


# What surrounds a model --------------------------------------------------------------------------


@once_differentiable
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(case, reentrant):
    x = fixed(*case.shape).requires_grad_()
    y = checkpoint(scalar(case.function), x, use_reentrant=reentrant)
    same(torch.autograd.grad(y, x) if not reentrant else (y.backward(), x.grad)[1:],
         torch.autograd.grad(scalar(case.formula)(x), x))  # fmt: skip


@every_case
def test_without_gradients(case):
    x = fixed(*case.shape)
    with torch.no_grad():
        assert not case.function(x.clone().requires_grad_()).requires_grad
        same(case.function(x), case.formula(x))
    with torch.inference_mode():
        same(case.function(x), case.formula(x))
        same(case.function(x.clone()), case.formula(x))
    assert not case.function(x).requires_grad


def test_a_graph_names_its_op():
    y = CASES["policy_loss"].function(fixed(2, 4).requires_grad_())
    assert y.grad_fn.name() == "PolicyLossBackward"


@once_differentiable
def test_results_are_copied_and_pickled(case):
    y = case.function(fixed(*case.shape).requires_grad_())
    assert torch.equal(pickle.loads(pickle.dumps(y.detach())), y)
    assert torch.equal(copy.deepcopy(y.detach()), y)


def test_tensors_of_inference_mode_are_data_like_any_other():
    with torch.inference_mode():
        old, ref, advantages, mask, ids = (x.clone() for x in (OLD, REF, ADVANTAGES, MASK, IDS))
        returns, rows, votes = RETURNS.clone(), ROWS.clone(), VOTES.clone()

    def gradient(function, shape):
        x = fixed(*shape).requires_grad_()
        return torch.autograd.grad(scalar(function)(x), x)

    for ours, right, shape in (
        (lambda x: ops.policy_loss(x, old, advantages, mask, ref_logprobs=ref, kl_coef=0.1).loss,
         lambda x: ops.policy_loss(x, OLD, ADVANTAGES, MASK, ref_logprobs=REF, kl_coef=0.1).loss,
         (2, 4)),
        (lambda x: ops.value_loss(x, old, returns, mask).loss,
         lambda x: ops.value_loss(x, OLD, RETURNS, MASK).loss, (2, 4)),
        (lambda x: ops.token_logprobs(x, ids), lambda x: ops.token_logprobs(x, IDS), (2, 3, 7)),
        (lambda x: ops.routed_lora(x, A, B, W, rows), lambda x: ops.routed_lora(x, A, B, W, ROWS),
         (3, 4)),
        (lambda x: ops.combine_emissions(x, votes), lambda x: ops.combine_emissions(x, VOTES),
         (1, 2, 2, 2, 3)),
    ):  # fmt: skip
        assert torch.equal(*gradient(ours, shape), *gradient(right, shape))


def edit(y):
    y[..., 0] = 0
    y *= 3
    return y


@pytest.mark.parametrize("name", ["token_logprobs", "token_entropy", "hmm_log_likelihood"])
def test_results_may_be_edited_in_place(name):
    case = CASES[name]
    x = fixed(*case.shape).requires_grad_()
    same(
        torch.autograd.grad(scalar(lambda x: edit(case.function(x)))(x), x),
        torch.autograd.grad(scalar(lambda x: edit(case.formula(x) * 1))(x), x),
    )


# Coefficients that require grad ------------------------------------------------------------------


COEFFICIENTS = {
    "kl_coef": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, ref_logprobs=REF, kl_coef=c),
    "entropy_coef": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, entropy=REF, entropy_coef=c),
    "policy_coef": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, policy_coef=c),
    "clip_low": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, clip_low=c),
    "clip_high": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, clip_high=c),
    "dual_clip": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, dual_clip=c + 3),
    "delta": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, delta=c + 3),
    "log_ratio_clamp": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, log_ratio_clamp=c),
    "kl_clamp": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, kl_clamp=c),
    "token_count": lambda c: ops.policy_loss(OLD, OLD, ADVANTAGES, token_count=c),
    "clip": lambda c: ops.value_loss(OLD, OLD, RETURNS, clip=c),
    "high": lambda c: ops.importance_weights(OLD, REF, high=c),
    "gamma": lambda c: ops.gae(OLD, REF, gamma=c),
    "lam": lambda c: ops.gae(OLD, REF, lam=c),
    "eps": lambda c: ops.whiten(OLD, eps=c),
    "temperature": lambda c: ops.token_logprobs(fixed(2, 3, 7), IDS, temperature=c),
    "scaling": lambda c: ops.routed_lora(X, A, B, W, ROWS, scaling=c),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_a_coefficient_that_requires_a_gradient_is_refused(name):
    """Its gradient would be None, which looks like a multiplier that has converged."""
    coefficient = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} must be a number or a tensor without gradient"):
        COEFFICIENTS[name](coefficient)
    COEFFICIENTS[name](coefficient.detach())

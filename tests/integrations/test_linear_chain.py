"""The distribution over paths against the enumeration of all paths."""

import pytest
import torch
from chain_oracle import Enumeration, padded

from oneshot.integrations.linear_chain import LinearChain

BATCH, STEPS, STATES = 4, 5, 3
LENGTHS = [5, 1, 0, 3]
FORMS = {
    "shared": ((STATES, STATES), None),
    "per token": ((BATCH, STEPS - 1, STATES, STATES), None),
    "sequence": ((BATCH, STATES, STATES), "sequence"),
    "step": ((STEPS - 1, STATES, STATES), "step"),
}
DTYPES = {torch.float32: 2e-6, torch.float64: 1e-12}


def chain_and_oracle(form, dtype, *, final=True, lengths=LENGTHS):
    """A random chain with garbage in its padding, and an enumeration for each sequence."""
    shape, axis = FORMS[form]
    init, emit = torch.randn(BATCH, STATES), torch.randn(BATCH, STEPS, STATES) * 2
    trans = torch.randn(shape)
    trans.view(-1)[1] = -torch.inf  # out of state 0 into state 1, at least once
    last = torch.randn(STATES) if final else None
    leaves = [x if x is None else x.to(dtype).requires_grad_() for x in (init, trans, emit, last)]
    exact = [x if x is None else x.double().requires_grad_() for x in (init, trans, emit, last)]
    four = exact[1].unsqueeze(1 if axis == "sequence" else 0) if axis else exact[1]
    four = four.expand(BATCH, STEPS - 1, STATES, STATES)
    oracles = [
        Enumeration(exact[0][b], four[b, : n - 1], exact[2][b, :n], exact[3]) if n else None
        for b, n in enumerate(lengths)
    ]
    garbage = torch.arange(STEPS) >= torch.tensor(lengths)[:, None]
    emit_in = leaves[2].masked_fill(garbage[..., None], torch.nan)
    trans_in = leaves[1]
    if form == "per token":
        trans_in = trans_in.masked_fill(garbage[:, 1:, None, None], torch.nan)
    chain = LinearChain(
        leaves[0], trans_in, emit_in, torch.tensor(lengths), leaves[3], trans_axis=axis
    )
    return chain, oracles, [x for x in leaves if x is not None], [x for x in exact if x is not None]


def expected(oracles, what):
    """One tensor for the batch: zeros for an empty sequence and behind the end."""
    values = [None if oracle is None else getattr(oracle, what) for oracle in oracles]
    shape = next(value for value in values if value is not None)
    if shape.dim() == 0:
        zero = torch.zeros((), dtype=torch.float64)
        return torch.stack([zero if value is None else value for value in values])
    size = STEPS - 1 if what == "xi" else STEPS
    rows = [shape.new_zeros(0, *shape.shape[1:]) if value is None else value for value in values]
    return padded(rows, size)


QUANTITIES = {
    "log_partition": "log_partition",
    "marginals": "gamma",
    "edge_marginals": "xi",
    "entropy": "entropy",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_values_and_gradients_equal_enumeration(form, quantity, dtype):
    chain, oracles, leaves, exact = chain_and_oracle(form, dtype)
    got, want = getattr(chain, quantity), expected(oracles, QUANTITIES[quantity])
    tolerance = {"rtol": 10 * DTYPES[dtype], "atol": 10 * DTYPES[dtype]}
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, **tolerance)
    cotangent = torch.randn(want.shape, dtype=torch.float64)
    grads = torch.autograd.grad(got, leaves, cotangent.to(dtype))
    wants = torch.autograd.grad(want, exact, cotangent, materialize_grads=True)
    for grad, expect in zip(grads, wants, strict=True):
        torch.testing.assert_close(grad.double(), expect, **tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("final", [False, True])
def test_best_path_its_score_and_the_score_s_gradient(form, final):
    chain, oracles, leaves, exact = chain_and_oracle(form, torch.float64, final=final)
    for row, oracle in enumerate(oracles):
        path = chain.argmax[row]
        assert (path[LENGTHS[row] :] == -1).all()
        if oracle is not None:
            assert torch.equal(path[: LENGTHS[row]], oracle.best)
    want = torch.stack(
        [exact[0].sum() * 0 if oracle is None else oracle.score.amax() for oracle in oracles]
    )
    torch.testing.assert_close(chain.max, want)
    cotangent = torch.randn(BATCH, dtype=torch.float64)
    grads = torch.autograd.grad(chain.max, leaves, cotangent)
    wants = torch.autograd.grad(want, exact, cotangent, materialize_grads=True)
    for grad, expect in zip(grads, wants, strict=True):
        torch.testing.assert_close(grad, expect)


@pytest.mark.parametrize("form", FORMS)
def test_log_prob_of_every_path(form):
    """All paths of the longest sequence at once, in two sample dimensions."""
    chain, oracles, leaves, exact = chain_and_oracle(form, torch.float64)
    paths = oracles[0].paths.view(9, -1, 1, STEPS).expand(-1, -1, BATCH, -1)
    got = chain.log_prob(torch.where(torch.arange(STEPS) < chain.lengths[:, None], paths, 99))
    assert got.shape == (9, 27, BATCH)
    log_probability = oracles[0].score - oracles[0].log_partition
    torch.testing.assert_close(got[..., 0].flatten(), log_probability)
    assert got[..., 0].isneginf().any()  # through the forbidden transition
    one = exact[0][1] + exact[2][1, 0] + exact[3]
    torch.testing.assert_close(
        got[..., 1].flatten(), one.log_softmax(0)[paths[..., 1, 0]].flatten()
    )
    assert (got[..., 2] == 0).all()  # the empty sequence has one path, surely

    possible = ~log_probability.isneginf()
    cotangent = torch.randn(int(possible.sum()), dtype=torch.float64)
    mine = torch.autograd.grad(got[..., 0].flatten()[possible], leaves, cotangent)
    theirs = torch.autograd.grad(log_probability[possible], exact, cotangent)
    for grad, expect in zip(mine, theirs, strict=True):
        torch.testing.assert_close(grad, expect)


@pytest.mark.parametrize("form", FORMS)
def test_samples_have_the_posterior_s_frequencies(form):
    chain, oracles, *_ = chain_and_oracle(form, torch.float64)
    draws = chain.sample((20, 150), seed=7)
    assert draws.shape == (20, 150, BATCH, STEPS)
    for row, length in enumerate(LENGTHS):
        assert (draws[..., row, length:] == -1).all()
    codes = draws[..., 0, :].reshape(-1, STEPS) @ (STATES ** torch.arange(STEPS - 1, -1, -1))
    counts = torch.bincount(codes, minlength=STATES**STEPS)
    mean = oracles[0].probability.detach() * len(codes)
    assert (counts[mean == 0] == 0).all()
    often = mean > 5
    chi_square = ((counts - mean)[often] ** 2 / mean[often]).sum().item()
    freedom = int(often.sum()) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_manual_seed_governs_draws_and_seed_overrides():
    chain, *_ = chain_and_oracle("shared", torch.float32)
    torch.manual_seed(5)
    first, second = chain.sample((8,)), chain.sample((8,))
    torch.manual_seed(5)
    assert torch.equal(first, chain.sample((8,)))
    assert not torch.equal(first, second)
    assert torch.equal(chain.sample((8,), seed=1), chain.sample((8,), seed=1))
    assert chain.sample().shape == (BATCH, STEPS)


def test_an_impossible_sequence_has_no_path_and_no_nan():
    emit = torch.randn(2, STEPS, STATES)
    emit[1, 2] = -torch.inf
    emit.requires_grad_()
    chain = LinearChain(torch.zeros(STATES), torch.zeros(STATES, STATES), emit)
    path = chain.argmax
    assert (path[1] == -1).all()
    assert chain.max[1] == chain.log_prob(path)[1] == chain.log_partition[1] == -torch.inf
    assert (chain.sample((3,))[:, 1] == -1).all()
    assert (chain.marginals[1] == 0).all()
    assert chain.entropy[1] == 0
    assert chain.log_prob(torch.zeros(2, STEPS, dtype=torch.int64))[1] == -torch.inf
    total = chain.log_prob(path)[0] + chain.entropy.sum() + chain.marginals.sum()
    total.backward()
    assert emit.grad[0].isfinite().all()
    assert (emit.grad[1] == 0).all()
    assert emit.grad[0].any()


def test_half_formats_are_computed_in_float32():
    emit, trans = torch.randn(2, STEPS, STATES), torch.randn(STATES, STATES)
    inputs = [x.bfloat16() for x in (torch.zeros(STATES), trans, emit)]
    half, full = LinearChain(*inputs), LinearChain(*(x.float() for x in inputs))
    path = full.argmax
    assert half.log_prob(path).dtype == torch.float32
    assert torch.equal(half.log_prob(path), full.log_prob(path))


def test_no_grad_is_respected():
    chain, *_ = chain_and_oracle("per token", torch.float32)
    with torch.no_grad():
        assert not chain.log_partition.requires_grad
    assert chain.log_partition.requires_grad


def test_bad_paths_are_explained():
    chain, *_ = chain_and_oracle("shared", torch.float32)
    path = chain.argmax
    with pytest.raises(TypeError, match="path must be int64 or int32"):
        chain.log_prob(path.float())
    with pytest.raises(ValueError, match=r"path must end in \[4, 5\], got the shape \[4, 4\]"):
        chain.log_prob(path[:, 1:])
    path[0, 1] = STATES
    with pytest.raises(ValueError, match=r"path must lie in \[-1, 3\) within the length"):
        chain.log_prob(path)
    with pytest.raises(ValueError, match="trans_axis"):
        LinearChain(torch.zeros(3), torch.zeros(4, 3, 3), torch.zeros(4, 5, 3))


def test_samples_of_any_shape():
    chain, *_ = chain_and_oracle("shared", torch.float32)
    assert torch.equal(chain.sample(5, seed=1), chain.sample((5,), seed=1))
    assert chain.sample((0,)).shape == (0, BATCH, STEPS)
    assert chain.sample((2, 0)).dtype == torch.int64


def test_lengths_and_paths_of_other_types():
    chain, *_ = chain_and_oracle("shared", torch.float64)
    init, trans, emit, lengths, final = chain._inputs
    narrow = LinearChain(init, trans, emit, lengths.int(), final)
    path = chain.argmax
    assert torch.equal(narrow.log_prob(path.int()), chain.log_prob(path))
    with pytest.raises(TypeError, match=r"lengths must be a torch\.Tensor, got list"):
        LinearChain(init, trans, emit, lengths.tolist(), final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_prob_is_never_above_zero(dtype):
    """Also of samples: each is relative to the first, none to its own score."""
    emit = (torch.randn(3, 300, 4) * 20 + 500).to(dtype).requires_grad_()
    trans = (torch.randn(4, 4) * 3).to(dtype)
    chain = LinearChain(torch.zeros(4).to(dtype), trans, emit)
    wide = LinearChain(torch.zeros(4).double(), trans.double(), emit.double())
    paths = torch.cat((chain.argmax[None], chain.sample(5, seed=2)))
    got, want = chain.log_prob(paths), wide.score(paths) - wide.log_partition
    assert (got <= 0).all()
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-8)
    grads = [torch.autograd.grad(x.sum(), emit)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)

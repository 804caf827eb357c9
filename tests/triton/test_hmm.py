"""Interpreted Triton kernels of the `hmm` family against the reference in float64."""

import math

import pytest
import torch

from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling
from oneshot.triton_kernels import hmm as kernels

INF, NAN = math.inf, math.nan


def make(batch, steps, states, form="tokens", lengths=True, dtype=torch.float32, scale=2.0):
    """Chains with garbage in every place behind an end; form says what shares a matrix."""
    rows = {"tokens": batch, "steps": 1, "sequences": batch, "shared": 1}[form]
    columns = steps - 1 if form in ("tokens", "steps") else 1
    init = torch.randn(1 if form == "shared" else batch, states) * scale
    trans = torch.randn(rows, columns, states, states) * scale
    emit = torch.randn(batch, steps, states) * scale
    final = torch.randn(batch if form == "tokens" else 1, states) if form != "steps" else None
    if not lengths:
        counts = None
    else:
        counts = torch.randint(steps + 1, (batch,))
        counts[0] = steps
        if batch > 1:
            counts[1] = 0
        behind = torch.arange(steps) >= counts[:, None]
        emit[behind] = torch.tensor([NAN, INF, -INF]).repeat(states)[:states]
        if form == "tokens":
            trans[behind[:, 1:]] = NAN
    return [x if x is None or x.dtype == torch.int64 else x.to(dtype)
            for x in (init, trans, emit, counts, final)]  # fmt: skip


def wide(x):
    return x.double() if x is not None and x.is_floating_point() else x


def close(got, true, atol=5e-6, rtol=5e-6):
    torch.testing.assert_close(got.double(), true.double(), atol=atol, rtol=rtol, equal_nan=True)


def check(inputs, atol=5e-6):
    """Posteriors, gradients, best path."""
    got = kernels.hmm_posteriors(*inputs, True, True, True)
    true = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    for mine, exact in zip(got, true, strict=True):
        assert mine.dtype == inputs[2].dtype
        close(mine, exact, atol)
    (only,) = kernels.hmm_posteriors(*inputs, False, False, False)[:1]
    assert torch.equal(only.nan_to_num(7), got[0].nan_to_num(7))

    up = [torch.randn(x.shape).to(inputs[2].dtype) for x in got]
    for given in (up, [None, up[1], None, up[3]]):
        mine = kernels.hmm_posteriors_backward(*given, *inputs)
        exact = reference.hmm_posteriors_backward(*map(wide, given), *map(wide, inputs))
        for own, value in zip(mine, exact, strict=True):
            close(own, value, 4 * atol, 1e-5)

    path, score = kernels.hmm_viterbi(*inputs)
    best, value = reference.hmm_viterbi(*inputs)
    assert torch.equal(path, best)
    close(score, value)
    return got


@pytest.mark.parametrize("form", ["tokens", "steps", "sequences", "shared"])
def test_forms_of_transitions(form):
    check(make(3, 5, 5, form))


@pytest.mark.parametrize(
    ("batch", "steps", "states"), [(1, 1, 1), (2, 1, 3), (1, 2, 2), (1, 11, 9)]
)
def test_sizes(batch, steps, states):
    check(make(batch, steps, states))


def test_no_lengths_and_nothing():
    check(make(2, 5, 3, "shared", lengths=False))
    check(make(0, 5, 3, lengths=False))


def test_float64():
    check(make(2, 4, 3, dtype=torch.float64), 1e-12)


@pytest.mark.gpu_free
@pytest.mark.parametrize("form", ["tokens", "steps", "sequences", "shared"])
@pytest.mark.parametrize("states", [2, 17, 33, 64, 65])
def test_many_states(form, states):
    check(make(3, 12, states, form))


@pytest.mark.gpu_free
@pytest.mark.parametrize("form", ["tokens", "shared"])
def test_long_sequences(form):
    check(make(1, 250, 7, form), 2e-5)


def test_chunks_of_summed_steps(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 4)
    inputs = make(1, 14, 2, "shared")
    got = kernels.hmm_posteriors(*inputs, False, False, True)
    close(got[3], reference.hmm_posteriors(*map(wide, inputs), False, False, True)[3], 3e-5)


def test_more_states_than_a_block_holds_go_to_the_reference():
    inputs = make(2, 3, 130)
    got = kernels.hmm_posteriors(*inputs, True, False, False)
    close(got[1], reference.hmm_posteriors(*map(wide, inputs), True, False, False)[1])


def test_structural_zeros():
    init, trans, emit, lengths, final = make(4, 6, 4)
    trans[torch.rand(trans.shape) < 0.5] = -INF
    trans[1] = -INF
    trans[..., 0, 0] = 0.0
    init[:, 1:] = -INF
    emit[2, 3] = -INF
    lengths = torch.tensor([6, 5, 6, 2])
    emit, trans = emit.nan_to_num(0.0, 0.0, -INF), trans.nan_to_num(0.0, 0.0, -INF)
    got = check([init, trans, emit, lengths, final])
    assert got[0][2] == -INF
    assert (got[1][2] == 0).all()


def test_a_survivor_of_a_deep_dip_and_large_potentials():
    init, trans, emit, _, _ = make(2, 12, 3, lengths=False)
    emit[0, 4, 0] -= 200.0
    emit[0, 8, 1:] = -INF
    emit[0, :8] += 1000.0
    trans[1] += 1000.0
    check([init, trans, emit, None, None], 2e-4)


def test_a_nan_or_infinity_spoils_its_own_sequence_only():
    init, trans, emit, _, final = make(4, 6, 3, lengths=False)
    emit[1, 2, 0], trans[2, 3, 1, 1], init[3, 0] = NAN, INF, NAN
    lengths = torch.tensor([6, 6, 6, 0])
    inputs = [init, trans, emit, lengths, final]
    got = kernels.hmm_posteriors(*inputs, True, False, False)
    close(got[1], reference.hmm_posteriors(*map(wide, inputs), True, False, False)[1])
    assert got[0].isnan().tolist() == [False, True, True, False]


def test_a_length_outside_the_steps_is_loud():
    init, trans, emit, _, final = make(3, 6, 3, lengths=False)
    got = kernels.hmm_posteriors(
        init, trans, emit, torch.tensor([6, 7, -1]), final, True, True, True
    )
    for x in got:
        assert x.isnan().flatten(1 if x.dim() > 1 else 0).reshape(3, -1).all(1).tolist() == [
            False, True, True,
        ]  # fmt: skip
    path, score = kernels.hmm_viterbi(init, trans, emit, torch.tensor([6, 7, -1]), final)
    assert score.isnan().tolist() == [False, True, True]
    assert (path[1:] == -1).all()


def test_ties_go_to_the_lowest_state():
    inputs = [torch.zeros(1, 3), torch.zeros(1, 1, 3, 3), torch.zeros(2, 5, 3), None, None]
    path, score = kernels.hmm_viterbi(*inputs)
    assert (path == 0).all()
    assert (score == 0).all()


def test_neighbours_and_padding_change_no_bit():
    init, trans, emit, _, final = make(3, 9, 4)
    emit, trans = emit.nan_to_num(0.0, 0.0, 0.0), trans.nan_to_num(0.0)
    lengths = torch.tensor([9, 5, 6])
    together = kernels.hmm_posteriors(init, trans, emit, lengths, final, True, True, True)
    one = slice(1, 2)
    alone = kernels.hmm_posteriors(
        init[one], trans[one, :4], emit[one, :5], None, final[one], True, True, True
    )
    assert torch.equal(together[0][one], alone[0])
    assert torch.equal(together[1][one, :5], alone[1])
    assert torch.equal(together[2][one, :4], alone[2])
    assert torch.equal(together[3][one], alone[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["tokens", "shared"])
def test_samples_are_those_of_the_generator(form, dtype):
    """Each draw is the state its uniform number points at, up to rounding of the weights."""
    inputs = make(3, 6, 4, form, dtype=dtype)
    ids, seed, samples = torch.tensor([5, 2**33 + 1, 7]), 2**40 + 3, 3
    got = kernels.hmm_sample(*inputs, ids, samples, seed)
    c = reference.chain(*map(wide, inputs))
    alphas, _ = reference.filtered(c)
    uniform = hmm_sampling.uniform(seed, ids, samples, 6, dtype)
    lengths = inputs[3]
    for b in range(3):
        assert (got[:, b, lengths[b] :] == -1).all()
        for s in range(samples):
            for t in range(int(lengths[b])):
                weights = alphas[t][b].clone()
                if t == lengths[b] - 1:
                    weights += c.final[0 if len(c.final) == 1 else b]
                else:
                    trans = c.trans[t][0 if len(c.trans[t]) == 1 else b]
                    weights += trans[:, got[s, b, t + 1]]
                cumulative = torch.softmax(weights, 0).cumsum(0)
                state, u = int(got[s, b, t]), uniform[s, b, t]
                below = cumulative[state - 1] if state else 0.0
                slack = 1e-5 if dtype == torch.float32 else 1e-12
                assert below - slack <= u < cumulative[state] + slack


def test_samples_of_nothing_possible():
    init, trans, emit, _, final = make(2, 4, 3, lengths=False)
    emit[1] = -INF
    paths = kernels.hmm_sample(init, trans, emit, None, final, None, 2, 1)
    assert (paths[:, 1] == -1).all()
    assert (paths[:, 0] >= 0).all()

"""The CUDA kernels of `hmm` on the emulator: best and sampled paths."""

from __future__ import annotations

import pytest
import torch
from hmm_device import sample, viterbi
from kernel_inputs import INF, NAN, wide
from kernel_inputs import chains as make

import oneshot.ops  # noqa: F401  (registers the ops of the CPU)
from oneshot._load import native
from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling

FORMS = ("tokens", "steps", "sequences", "shared")


def check_viterbi(inputs, seed=0):
    path, score = viterbi(inputs, seed)
    best, value = reference.hmm_viterbi(*inputs)
    assert torch.equal(path, best)
    # Both add up in float64 in the same order.
    torch.testing.assert_close(score, value, rtol=0, atol=0, equal_nan=True)
    return path, score


@pytest.mark.parametrize("form", FORMS)
def test_best_path_of_every_form(form):
    check_viterbi(make(4, 40, 5, form))


@pytest.mark.parametrize(
    ("batch", "steps", "states"), [(0, 3, 2), (1, 1, 1), (2, 90, 2), (3, 4, 33), (1, 3, 300)]
)
def test_best_path_of_every_size(batch, steps, states):
    check_viterbi(make(batch, steps, states, lengths=batch > 1), seed=states)


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("states", [1, 2, 7, 12, 16, 17, 22, 23, 31, 32, 33, 64, 65, 256, 257])
def test_best_path_full_sweep(states, form, dtype):
    check_viterbi(make(4, 70 if states < 33 else 9, states, form, dtype=dtype), seed=states)


@pytest.mark.gpu_free
@pytest.mark.parametrize("states", [513, 1025])
def test_best_path_among_more_states_than_threads(states):
    check_viterbi(make(2, 4, states, "shared"))


@pytest.mark.parametrize("states", [3, 40])
def test_ties_go_to_the_lowest_state(states):
    inputs = make(3, 9, states, lengths=False)
    inputs = [x if x is None else x.round() for x in inputs]
    inputs[4] = torch.zeros(3, states)
    inputs[0][2], inputs[1][2], inputs[2][2] = 0.0, 0.0, 0.0
    path, score = check_viterbi(inputs)
    assert (path[2] == 0).all()
    assert score[2] == 0


@pytest.mark.parametrize("states", [4, 33])
def test_best_path_of_nothing_possible_and_of_nan(states):
    init, trans, emit, _, final = make(5, 6, states, lengths=False)
    trans[torch.rand(trans.shape) < 0.3] = -INF
    trans[..., 0, :] = -1.0
    emit[1, 2], emit[2, 3, 1], trans[3, 4, 1, 2], final[4, 0] = -INF, NAN, INF, NAN
    path, score = check_viterbi([init, trans, emit, torch.tensor([6, 6, 6, 6, 6]), final])
    assert score[1] == -INF
    assert score.isnan().tolist() == [False, False, True, True, True]
    assert (path[1:] == -1).all()
    check_viterbi([init, trans, emit, torch.tensor([6, 2, 3, 5, 0]), final])


@pytest.mark.parametrize("states", [3, 40])
def test_a_length_outside_the_steps_is_refused(states):
    inputs = make(3, 6, states)
    inputs[3][1] = 7
    with pytest.raises(RuntimeError, match="refuses its input"):
        viterbi(inputs)
    with pytest.raises(RuntimeError, match="refuses its input"):
        sample(inputs, None, 1, 0)


def check_draws(inputs, ids, num_samples, key, seed=0):
    """Each draw is the state its uniform number points at, up to rounding of the weights."""
    got = sample(inputs, ids, num_samples, key, seed)
    batch, steps, _ = inputs[2].shape
    c = reference.chain(*map(wide, inputs))
    alphas, log_z = reference.filtered(c)
    every = torch.arange(batch) if ids is None else ids
    uniform = hmm_sampling.uniform(key, every, num_samples, steps, inputs[2].dtype)
    lengths = [steps] * batch if inputs[3] is None else inputs[3].tolist()
    for b, n in enumerate(lengths):
        n = n if log_z[b] > -INF else 0
        assert (got[:, b, n:] == -1).all()
        for s in range(num_samples):
            for t in range(n):
                weights = alphas[t][b].clone()
                if t == n - 1:
                    weights += c.final[0 if len(c.final) == 1 else b]
                else:
                    weights += c.trans[t][0 if len(c.trans[t]) == 1 else b][:, got[s, b, t + 1]]
                share = torch.softmax(weights, 0)
                cumulative, state, u = share.cumsum(0), int(got[s, b, t]), uniform[s, b, t]
                assert share[state] > 0
                below = cumulative[state - 1] if state else 0.0
                slack = 1e-6 if inputs[2].dtype == torch.float32 else 1e-13
                assert below - slack <= u < cumulative[state] + slack
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["tokens", "shared"])
@pytest.mark.parametrize("states", [4, 35])
def test_draws_are_those_of_the_generator(states, form, dtype):
    inputs = make(4, 35 if states < 33 else 5, states, form, dtype=dtype)
    check_draws(inputs, torch.tensor([5, 2**33 + 1, 7, -1]), 2, 2**40 + 3)


@pytest.mark.gpu_free
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("states", [1, 2, 9, 32, 33, 64, 70])
def test_draws_full_sweep(states, form):
    check_draws(make(4, 12, states, form), None, 3, states, seed=states)


@pytest.mark.parametrize("states", [5, 33])
def test_draws_are_those_of_the_cpu(states):
    """Two backends may differ where u lies within rounding of a border: not here."""
    if native()[0] is None:
        pytest.skip("needs the native library")
    inputs = make(5, 30 if states < 33 else 6, states)
    ids = torch.tensor([3, 2**40, 0, 9, 1])
    want = torch.ops.oneshot.hmm_sample(*inputs, ids, 6, 77)
    assert torch.equal(sample(inputs, ids, 6, 77), want)
    alone = [x[1:2] if x is not None and len(x) == 5 else x for x in inputs]
    alone[3] = torch.tensor([30 if states < 33 else 6])
    first = [x[:1] if x is not None and len(x) == 5 else x for x in inputs]
    assert torch.equal(sample(first, ids[:1], 6, 77, seed=4)[:, 0], want[:, 0])


@pytest.mark.parametrize("states", [4, 34])
def test_draws_beyond_the_linear_range(states):
    """Two halves of the states that never meet; the one that dips by 400 nats survives."""
    inputs = make(2, 12, states, lengths=False)
    _, trans, emit, _, _ = inputs
    half = states // 2
    trans[:, :, :half, half:], trans[:, :, half:, :half] = -INF, -INF
    emit[0, 3, :half] -= 400
    emit[0, 8, half:] = -INF
    got = check_draws(inputs, None, 4, 5)
    assert (got[:, 0] < half).all()


def test_draws_of_nothing_possible_and_of_nan():
    init, trans, emit, _, final = make(4, 5, 3, lengths=False)
    emit[1], emit[2, 1, 1] = -INF, NAN
    got = sample([init, trans, emit, torch.tensor([5, 5, 5, 0]), final], None, 3, 1)
    assert (got[:, 0] >= 0).all()
    assert (got[:, 1:] == -1).all()

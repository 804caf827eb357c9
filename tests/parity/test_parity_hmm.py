"""The hmm family on every backend: posteriors and their gradient, best path, samples, emissions."""

import pytest
import torch
from backends import DEVICE
from kernel_inputs import INF, NAN, wide
from kernel_inputs import chains as make
from parity import FULL, check, close, some

from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling

REAL = (torch.float32, torch.float64)
FORMS = ("tokens", "steps", "sequences", "shared")
STATES = [4, pytest.param(131, marks=FULL)]


def all_of(inputs, rtol=5e-6, atol=5e-6):
    """Posteriors, their gradient for several upstreams, the best path."""
    got = check("hmm_posteriors", *inputs, True, True, True, rtol=rtol, atol=atol)
    up = [torch.randn(pair.want.shape).to(inputs[2].dtype) for pair in got]
    for given in (up, [None, up[1], None, up[3]]):
        check("hmm_posteriors_backward", *given, *inputs, rtol=2 * rtol, atol=4 * atol)
    check("hmm_viterbi", *inputs, rtol=rtol, atol=atol)
    return got


@pytest.mark.parametrize("dtype", some(*REAL))
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_transitions(form, dtype):
    all_of(make(3, 5, 5, form, dtype=dtype))


@pytest.mark.parametrize(
    ("batch", "steps", "states"),
    [(1, 1, 1), (2, 1, 3), (1, 2, 2), (1, 11, 9), (0, 5, 3), pytest.param(7, 63, 9, marks=FULL)],
)
def test_sizes(batch, steps, states):
    all_of(make(batch, steps, states, lengths=states != 3))


@FULL
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("states", [2, 17, 33, 64, 65])
def test_many_states(form, states):
    all_of(make(3, 12, states, form))


@pytest.mark.parametrize("dtype", some(*REAL))
@pytest.mark.parametrize(
    "form", ["tokens", *(pytest.param(form, marks=FULL) for form in FORMS[1:])]
)
@pytest.mark.parametrize("states", [130, pytest.param(300, marks=FULL)])
def test_more_states_than_a_gpu_block_holds(states, form, dtype):
    inputs = make(3, 4, states, form, dtype=dtype)
    all_of(inputs)
    check("hmm_posteriors", *inputs, False, False, False)


@FULL
@pytest.mark.parametrize("form", ["tokens", "shared"])
def test_long_sequences(form):
    all_of(make(1, 250, 7, form), atol=2e-5)


@pytest.mark.parametrize("states", STATES)
def test_structural_zeros(states):
    init, trans, emit, lengths, final = make(4, 6, states)
    trans[torch.rand(trans.shape) < 0.5] = -INF
    trans[1] = -INF
    trans[..., 0, 0] = 0.0
    init[:, 1:] = -INF
    emit[2, 3] = -INF
    lengths = torch.tensor([6, 5, 6, 2])
    emit, trans = emit.nan_to_num(0.0, 0.0, -INF), trans.nan_to_num(0.0, 0.0, -INF)
    inputs = [init, trans, emit, lengths, final]
    check("hmm_posteriors", *inputs, False, False, False)
    log_likelihood, gamma, *_ = all_of(inputs)
    assert log_likelihood.got[2] == -INF
    assert (gamma.got[2] == 0).all()


@pytest.mark.parametrize("states", STATES)
def test_a_survivor_of_a_deep_dip_and_large_potentials(states):
    init, trans, emit, _, _ = make(2, 12, states, lengths=False)
    emit[0, 4, 0] -= 200.0
    emit[0, 8, 1:] = -INF
    emit[0, :8] += 1000.0
    trans[1] += 1000.0
    all_of([init, trans, emit, None, None], atol=2e-4)


@pytest.mark.parametrize("states", STATES)
def test_a_nan_or_infinity_spoils_its_own_sequence_only(states):
    init, trans, emit, _, final = make(4, 6, states, lengths=False)
    emit[1, 2, 0], trans[2, 3, 1, 1], init[3, 0] = NAN, INF, NAN
    inputs = [init, trans, emit, torch.tensor([6, 6, 6, 0]), final]
    log_likelihood, *_ = check("hmm_posteriors", *inputs, True, False, False)
    check("hmm_viterbi", *inputs)
    assert log_likelihood.got.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("form", ["tokens", "shared"])
@pytest.mark.parametrize("states", STATES)
def test_samples_are_those_of_the_generator(states, form, dtype):
    """Each draw is the state its uniform number points at, up to rounding of the weights."""
    inputs = make(3, 6, states, form, dtype=dtype)
    ids, seed, samples = torch.tensor([5, 2**33 + 1, 7]), 2**40 + 3, 3
    ((got, _),) = check(
        "hmm_sample", *inputs, ids, samples, seed, judge=lambda got, want: None
    )  # fmt: skip
    got = got.cpu()
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


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["constant", "tokens", "ids"])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1, 1), (3, 5, 4, 3, 2), (1, 7, 17, 9, 9)])
def test_combine_emissions(shape, kind, normalize, dtype):
    batch, steps, sources, states, labels = shape
    leading = (batch, steps) if kind == "tokens" else ()
    log_emissions = torch.randn(*leading, sources, states, labels).to(dtype)
    silent = torch.rand(batch, steps, sources) < 0.3
    if kind == "ids":
        observations = torch.randint(labels, silent.shape).masked_fill(silent, -1)
    else:
        observations = torch.rand(*silent.shape, labels).masked_fill(silent[..., None], 0)
        observations = observations.to(dtype)
    for weights in (None, (torch.rand(sources) + 0.5).to(dtype)):
        inputs = (log_emissions, observations, weights, normalize)
        ((got, _),) = check("combine_emissions", *inputs, rtol=1e-5, atol=2e-6)
        grad = torch.randn(got.shape).to(dtype)
        check("combine_emissions_backward", grad, *inputs, rtol=2e-5, atol=2e-5)


def test_public_gradients():
    from oneshot import ops

    init, trans, emit, lengths, _ = make(3, 6, 4, "shared", dtype=torch.float64)
    emit = emit.nan_to_num(0.0, 0.0, 0.0)
    grads = []
    for dtype, device in ((torch.float32, DEVICE), (torch.float64, "cpu")):
        tensors = [x.to(device, dtype).requires_grad_() for x in (init[0], trans[0, 0], emit)]
        ops.hmm_log_likelihood(*tensors, lengths=lengths.to(device)).sin().sum().backward()
        grads.append([x.grad for x in tensors])
    for got, want in zip(*grads, strict=True):
        close(got, want, rtol=2e-5, atol=2e-5)

"""The CHMM against enumeration of all label sequences, and against the authors' recursion."""

import itertools

import numpy as np
import pytest
import torch

from oneshot import ops
from oneshot.chmm.config import ModelConfig
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.batches import Examples, collate
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.model import CHMM, log_likelihood_per_token

LABELS = LabelSpace(("x",))
DIM, SOURCES, SIZE = 5, 2, 3


def make_examples(lengths, seed=0, labels=LABELS):
    generator = torch.Generator().manual_seed(seed)
    size = len(labels)
    sentences, embeddings, observations = [], [], []
    for n in lengths:
        sentences.append(Sentence(("w",) * n, np.zeros((n, SOURCES), np.int64)))
        embeddings.append(torch.randn(n + 1, DIM, generator=generator, dtype=torch.float64))
        x = torch.rand(n, SOURCES, size, generator=generator, dtype=torch.float64)
        x[torch.rand(n, SOURCES, generator=generator) < 0.3] = 0  # abstains
        observations.append(x)
    return Examples(sentences, embeddings, observations)


def make_model(config=None, labels=LABELS, seed=1):
    torch.manual_seed(seed)
    model = CHMM(DIM, SOURCES, labels, config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.7)
    return model


def matrices_of(model, examples, i):
    """start [L], A [T, L, L], phi [T, L] of one sentence, from the definition alone."""
    w = model.config.transition_network
    e = examples.embeddings[i]
    size = len(model.labels)

    def mixed(part, weight, inputs, shape):
        network = constant = 0.0
        if weight > 0:
            logits = inputs @ part.network.weight.T + part.network.bias
            network = weight * logits.reshape(-1, *shape).softmax(-1)
        if weight < 1:
            constant = (1 - weight) * part.constant.softmax(-1)
        return (network + constant).expand(len(e), *shape)

    with torch.no_grad():
        rows = size if model.config.markov else 1
        a = mixed(model.transitions, w, e, (1, rows, size))[:, 0].expand(-1, size, size)
        context = e if model.config.emission_context == "token" else e[:1].expand_as(e)
        v = model.config.emission_network
        phi = mixed(model.emissions, v, context, (SOURCES, size, size))
        begin = torch.zeros(1, SOURCES, size, dtype=e.dtype)
        begin[..., 0] = 1
        x = torch.cat([begin, examples.observations[i]])
        evidence = torch.einsum("tsij,tsj->tsi", phi, x)
        evidence[(x == 0).all(-1)] = 1
        return model.start.softmax(0).numpy(), a.numpy(), evidence.prod(1).numpy()


def enumerate_paths(start, a, phi):
    """log p(x), gamma [T, L], xi [T-1, L, L], best path."""
    steps, size = phi.shape
    total, gamma, xi = 0.0, np.zeros((steps, size)), np.zeros((steps - 1, size, size))
    best, best_p = None, -1.0
    for z in itertools.product(range(size), repeat=steps):
        p = start[z[0]] * phi[0, z[0]]
        for t in range(1, steps):
            p *= a[t, z[t - 1], z[t]] * phi[t, z[t]]
        total += p
        for t in range(steps):
            gamma[t, z[t]] += p
            if t:
                xi[t - 1, z[t - 1], z[t]] += p
        if p > best_p:
            best, best_p = z, p
    return np.log(total), gamma / total, xi / total, best


CONFIGS = [
    ModelConfig(),
    ModelConfig(transition_network=0.3, emission_network=0.6),
    ModelConfig(transition_network=0, emission_network=0),
    ModelConfig(transition_network=1, emission_network=0),
    ModelConfig(transition_network=0, emission_network=1),
    ModelConfig(markov=False),
    ModelConfig(markov=False, transition_network=0),
    ModelConfig(emission_context="sentence"),
    ModelConfig(emission_context="sentence", emission_network=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_everything_equals_enumeration(config):
    examples = make_examples([5, 1, 3, 4])
    model = make_model(config)
    found = model.predict(examples)
    chain = model.potentials(collate(examples, [0, 1, 2, 3]))
    xi = ops.hmm_posteriors(*chain, xi=True).xi
    for i, n in enumerate([5, 1, 3, 4]):
        log_p, gamma, pairs, path = enumerate_paths(*matrices_of(model, examples, i))
        assert found.log_likelihood[i] == pytest.approx(log_p, abs=1e-10)
        np.testing.assert_allclose(found.posteriors[i], gamma[1:], atol=1e-7)  # float32
        np.testing.assert_allclose(xi[i, :n].detach(), pairs, atol=1e-10)
        assert found.labels[i].tolist() == list(path[1:])


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradient_is_that_of_q_with_posteriors_held_fixed(config):
    """Fisher's identity: the update is the generalised EM step of the paper."""
    examples = make_examples([6, 1, 4], seed=2)
    model = make_model(config)
    batch = collate(examples, [0, 1, 2])
    parameters = list(model.parameters())
    direct = torch.autograd.grad(model.log_likelihood(batch).sum(), parameters)

    init, trans, emit, lengths = model.potentials(batch)
    with torch.no_grad():
        found = ops.hmm_posteriors(init, trans, emit, lengths, xi=True)
    q = (found.gamma[:, 0] * init).sum() + (found.gamma * emit).sum() + (found.xi * trans).sum()
    by_q = torch.autograd.grad(q, parameters)
    for x, y in zip(direct, by_q, strict=True):
        assert x.abs().max() > 1e-3
        torch.testing.assert_close(x, y, atol=1e-10, rtol=0)


def test_gradient_equals_finite_differences():
    examples = make_examples([3, 2], seed=4)
    model = make_model(ModelConfig(transition_network=0.4, emission_network=0.7))
    batch = collate(examples, [0, 1])
    names = [name for name, _ in model.named_parameters()]

    def value(*tensors):
        return torch.func.functional_call(
            _Objective(model), {f"model.{n}": t for n, t in zip(names, tensors, strict=True)}, batch
        )

    leaves = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(value, leaves, atol=1e-6)


class _Objective(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.log_likelihood(batch).sum()


def authors_posteriors(start, a, phi, padded_to):
    """The recursion of the authors' code: beta from A_t and phi_t, over padding, then rolled.

    Their batch holds, behind a sentence, observations of O only and whatever matrices the padding
    embedding gives; here the last ones are repeated.
    """
    steps = len(phi)
    extra = padded_to - steps
    a = np.concatenate([a, np.repeat(a[-1:], extra, 0)])
    phi = np.concatenate([phi, np.repeat(phi[-1:], extra, 0)])
    alpha = np.zeros_like(phi)
    alpha[0] = start * phi[0]
    for t in range(1, padded_to):
        alpha[t] = phi[t] * (alpha[t - 1] @ a[t])
    beta = np.ones_like(phi)
    for t in reversed(range(padded_to - 1)):
        beta[t] = a[t] @ (phi[t] * beta[t + 1])
    beta = np.roll(beta, -extra, 0)[:steps]
    gamma = alpha[:steps] * beta
    return gamma / gamma.sum(1, keepdims=True)


def test_the_authors_recursion_is_wrong_and_depends_on_padding():
    examples = make_examples([5], seed=3)
    model = make_model()
    start, a, phi = matrices_of(model, examples, 0)
    exact = enumerate_paths(start, a, phi)[1]
    ours = ops.hmm_posteriors(*model.potentials(collate(examples, [0]))).gamma[0].detach()
    assert np.abs(ours.numpy() - exact).max() < 1e-12
    theirs = authors_posteriors(start, a, phi, padded_to=6)
    padded = authors_posteriors(start, a, phi, padded_to=9)
    assert np.abs(theirs - exact).max() > 0.05
    assert np.abs(padded - theirs).max() > 0.01


@pytest.mark.parametrize("config", CONFIGS[:1] + CONFIGS[5:], ids=str)
def test_a_sentence_does_not_notice_its_batch(config):
    lengths = [63, 1, 7, 20]
    examples = make_examples(lengths, seed=6)
    model = make_model(config)
    together = model.predict(examples)
    for i in range(len(lengths)):
        alone = model.predict(
            Examples([examples.sentences[i]], [examples.embeddings[i]], [examples.observations[i]])
        )
        np.testing.assert_array_equal(alone.labels[0], together.labels[i])
        np.testing.assert_allclose(alone.posteriors[0], together.posteriors[i], atol=1e-7)
        assert alone.log_likelihood[0] == pytest.approx(together.log_likelihood[i], abs=1e-11)

    def gradient(rows):
        total = model.log_likelihood(collate(examples, rows)).sum()
        return torch.autograd.grad(total, list(model.parameters()))

    one_by_one = [sum(parts) for parts in zip(*(gradient([i]) for i in range(4)), strict=True)]
    for x, y in zip(gradient([2, 0, 3, 1]), one_by_one, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


def test_constrained_decoding_is_the_best_legal_path():
    labels = LabelSpace(("x", "y"))
    examples = make_examples([4, 4, 4, 1], seed=8, labels=labels)
    model = make_model(labels=labels)
    free, bound = (model.predict(examples, constrained=c) for c in (False, True))
    legal = labels.legal_transitions
    changed = 0
    for i in range(4):
        start, a, phi = matrices_of(model, examples, i)
        start = start * (np.arange(5) == 0)
        expected = enumerate_paths(start, a * legal, phi)[3]
        assert bound.labels[i].tolist() == list(expected[1:])
        changed += free.labels[i].tolist() != bound.labels[i].tolist()
        np.testing.assert_array_equal(free.posteriors[i], bound.posteriors[i])
    assert changed >= 2


def test_one_source_that_is_always_right_is_reproduced():
    n = 30
    ids = torch.randint(3, (n,))
    x = torch.nn.functional.one_hot(ids, 3).float()[:, None].repeat(1, SOURCES, 1)
    votes = ids[:, None].repeat(1, SOURCES).numpy()
    sentence = Sentence(("w",) * n, votes)
    examples = Examples([sentence], [torch.randn(n + 1, DIM)], [x])
    model = CHMM(DIM, SOURCES, LABELS, ModelConfig(transition_network=0, emission_network=0))
    with torch.no_grad():
        model.emissions.constant.copy_(torch.eye(3).mul(20).expand(SOURCES, 3, 3))
    found = model.predict(examples)
    np.testing.assert_array_equal(found.labels[0], votes[:, 0])
    assert log_likelihood_per_token(found) == pytest.approx(-np.log(3) * 31 / 30, abs=1e-3)


def test_constant_matrices_equal_hmmlearn():
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="pip install hmmlearn")
    config = ModelConfig(transition_network=0, emission_network=0)
    torch.manual_seed(0)
    model = CHMM(DIM, 1, LABELS, config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    lengths = [40, 1, 17]
    ids = [np.random.default_rng(n).integers(3, size=n) for n in lengths]
    examples = Examples(
        [Sentence(("w",) * len(x), x[:, None]) for x in ids],
        [torch.zeros(len(x) + 1, DIM, dtype=torch.float64) for x in ids],
        [torch.nn.functional.one_hot(torch.tensor(x), 3).double()[:, None] for x in ids],
    )
    theirs = hmmlearn.CategoricalHMM(3)
    theirs.startprob_ = model.start.softmax(0).detach().numpy()
    theirs.transmat_ = model.transitions.constant[0].softmax(-1).detach().numpy()
    theirs.emissionprob_ = model.emissions.constant[0].softmax(-1).detach().numpy()
    theirs.n_features = 3
    found = model.predict(examples)
    for i, x in enumerate(ids):
        with_begin = np.concatenate([[0], x])[:, None]
        assert found.log_likelihood[i] == pytest.approx(theirs.score(with_begin), abs=1e-9)
        gamma = theirs.predict_proba(with_begin)[1:]
        np.testing.assert_allclose(found.posteriors[i], gamma, atol=1e-6)
        np.testing.assert_array_equal(found.labels[i], theirs.decode(with_begin)[1][1:])


@pytest.mark.parametrize("n_sources", [1, 10, 25, 60])
def test_posteriors_of_sources_that_agree_do_not_underflow(n_sources):
    """One token, S sources that all say O: p(label) is a closed form, down to 1e-200."""
    config = ModelConfig(transition_network=0.0, emission_network=0.0)
    model = CHMM(DIM, n_sources, LABELS, config)
    right = 0.999
    rows = torch.full((SIZE, SIZE), (1 - right) / (SIZE - 1)).fill_diagonal_(right)
    model.emissions.start_at(rows.log().expand(n_sources, SIZE, SIZE))
    says_o = torch.zeros(1, n_sources, SIZE)
    says_o[:, :, 0] = 1
    sentence = Sentence(("w",), np.zeros((1, n_sources), np.int64))
    (found,) = model.predict(Examples([sentence], [torch.zeros(2, DIM)], [says_o])).posteriors
    ratio = n_sources * (np.log(right) - np.log((1 - right) / (SIZE - 1)))
    expected = np.full(SIZE, -ratio)
    expected[0] = 0
    expected -= np.log1p((SIZE - 1) * np.exp(-ratio))
    np.testing.assert_allclose(np.log(found[0]), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_mean_matrices_are_the_means_over_words(config):
    examples = make_examples([5, 1, 12], seed=9)
    model = make_model(config)
    transitions = [matrices_of(model, examples, i)[1][1:] for i in range(3)]
    expected = np.concatenate(transitions).mean(0)
    np.testing.assert_allclose(model.mean_transitions(examples), expected, atol=1e-12)
    # a source that says j with certainty picks column j of its matrix
    emissions = model.mean_emissions(examples)
    for j in range(SIZE):
        seen = []
        for i in range(3):
            x = torch.zeros_like(examples.observations[i])
            x[:, 1, j] = 1  # source 0 abstains
            probe = Examples([examples.sentences[i]], [examples.embeddings[i]], [x])
            seen.append(matrices_of(model, probe, 0)[2][1:])
        np.testing.assert_allclose(emissions[1][:, j], np.concatenate(seen).mean(0), atol=1e-12)
    np.testing.assert_allclose(emissions.sum(-1), 1, atol=1e-12)

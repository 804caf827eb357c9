"""The classical HMM: EM against hmmlearn and enumeration, and what it promises."""

import itertools

import numpy as np
import pytest
import torch

from oneshot import ops
from oneshot.chmm.baselines.hmm import ClassicalHMM, Parameters
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.synthetic.corpus import LABELS, generate

ONE = LabelSpace(("X",))


@pytest.fixture(scope="module")
def made():
    return generate(train=60, valid=1, test=20, min_length=1).dataset


def exact(labels, **options):
    """Maximum likelihood, a fixed number of steps."""
    options = {"smoothing": 0, "trust": 0, "tolerance": -1, "iterations": 6} | options
    return ClassicalHMM(labels, **options)


def single(columns):
    return [Sentence(("w",) * len(c), np.array(c)[:, None]) for c in columns]


@pytest.mark.parametrize("scheme", ["bio", "io"])
@pytest.mark.parametrize("rule", ["vote_o", "reference", "abstain"])
@pytest.mark.parametrize(("smoothing", "trust"), [(0, 0), (0.5, 10)])
def test_objective_never_decreases(made, rule, scheme, smoothing, trust):
    train = made.split("train")
    model = exact(LABELS, rule=rule, scheme=scheme, smoothing=smoothing, trust=trust).fit(train)
    steps = np.diff(model.history)
    assert len(steps) == 5
    assert (steps > -1e-12).all()
    assert steps.sum() > 1e-3
    if not smoothing:
        tokens = sum(map(len, train))
        model.parameters, before = model.parameters, model.history[-1]
        assert model.log_likelihood(train) / tokens >= before


def test_rows_are_distributions_and_bio_is_never_broken(made):
    model = ClassicalHMM(LABELS, iterations=3).fit(made.split("train"))
    for p in model.parameters:
        torch.testing.assert_close(p.exp().sum(-1), torch.ones(p.shape[:-1], dtype=torch.float64))
    assert torch.equal(model.parameters.log_init > -np.inf, torch.from_numpy(LABELS.legal_start))
    legal = torch.from_numpy(LABELS.legal_transitions)
    assert torch.equal(model.parameters.log_trans > -np.inf, legal)
    for ids in model.predict(made.split("test")):
        LABELS.from_names(LABELS.to_names(ids))  # raises on a stray I-
    for p in model.posteriors(made.split("test")):
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
        assert (p[0, ~LABELS.legal_start] == 0).all()


def test_expected_counts_are_posteriors(made):
    """The gradient is what forward and backward give."""
    train = made.split("train")[:7]
    model = exact(LABELS, rule="vote_o", smoothing=0.1, iterations=1).fit(train)
    counts, _ = model._expected_counts(model.parameters, train)
    log_init, log_trans, log_emissions = model.parameters
    expected = Parameters(*(torch.zeros_like(p) for p in model.parameters))
    for sentence in train:
        said = torch.from_numpy(np.maximum(sentence.votes, 0))
        log_emit = ops.combine_emissions(log_emissions, said[None])
        found = ops.hmm_posteriors(log_init, log_trans, log_emit, xi_sum=True)
        expected.log_init.add_(found.gamma[0, 0])
        expected.log_trans.add_(found.xi_sum[0])
        one_hot = torch.nn.functional.one_hot(said, 5).double()
        expected.log_emissions.add_(torch.einsum("ti,tsj->sij", found.gamma[0], one_hot))
    for x, y in zip(counts, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=0)


def test_posteriors_by_enumeration(made):
    sentence = next(s for s in made.split("test") if 3 <= len(s) <= 5)
    model = ClassicalHMM(LABELS, rule="abstain", iterations=2).fit(made.split("train"))
    init, trans, emissions = (p.exp().numpy() for p in model.parameters)
    marked = (sentence.votes > 0).any(1)
    weights = {}
    for path in itertools.product(range(5), repeat=len(sentence)):
        weight = init[path[0]] * np.prod([trans[i, j] for i, j in itertools.pairwise(path)])
        for t, s in np.ndindex(sentence.votes.shape):
            vote = sentence.votes[t, s]
            if vote >= 0 or not marked[t]:
                weight *= emissions[s, path[t], max(vote, 0)]
        weights[path] = weight
    total = sum(weights.values())
    gamma = np.zeros((len(sentence), 5))
    for path, weight in weights.items():
        gamma[np.arange(len(sentence)), path] += weight / total
    np.testing.assert_allclose(model.posteriors([sentence])[0], gamma, atol=1e-12)
    assert model.log_likelihood([sentence]) == pytest.approx(np.log(total))
    assert tuple(model.predict([sentence])[0]) == max(weights, key=weights.get)


def test_em_equals_hmmlearn_on_one_source():
    hmm = pytest.importorskip("hmmlearn.hmm", reason="needs hmmlearn")
    rng = np.random.default_rng(0)
    columns = [rng.choice(3, size=n, p=[0.6, 0.3, 0.1]) for n in (1, 7, 30, 12)]
    model = exact(ONE, rule="vote_o", scheme="bio", iterations=0).fit(single(columns))
    start, trans, emissions = (p.exp().numpy() for p in model.parameters)
    peer = hmm.CategoricalHMM(
        3, n_iter=4, tol=-np.inf, init_params="", params="ste", implementation="log"
    )
    peer.startprob_, peer.transmat_, peer.emissionprob_ = start, trans, emissions[0]
    x, lengths = np.concatenate(columns)[:, None], list(map(len, columns))
    peer.fit(x, lengths)

    model.iterations = 4
    model.fit(single(columns))
    np.testing.assert_allclose(model.parameters.log_init.exp(), peer.startprob_, atol=1e-9)
    np.testing.assert_allclose(model.parameters.log_trans.exp(), peer.transmat_, atol=1e-9)
    np.testing.assert_allclose(
        model.parameters.log_emissions[0].exp(), peer.emissionprob_, atol=1e-9
    )
    assert model.log_likelihood(single(columns)) == pytest.approx(peer.score(x, lengths))
    found = np.concatenate(model.posteriors(single(columns)))
    np.testing.assert_allclose(found, peer.predict_proba(x, lengths), atol=1e-9)
    decoded = np.concatenate(model.predict(single(columns)))
    assert np.array_equal(decoded, peer.decode(x, lengths)[1])


def test_one_source_that_is_trusted_is_repeated():
    sentences = single([[0, 1, 2, 0, 1], [-1, 1], [0]])
    model = ClassicalHMM(ONE, trust=1e9).fit(sentences)
    for ids, sentence in zip(model.predict(sentences), sentences, strict=True):
        assert np.array_equal(ids, np.maximum(sentence.votes[:, 0], 0))


def test_result_does_not_depend_on_neighbours(made):
    model = ClassicalHMM(LABELS, iterations=2).fit(made.split("train"))
    test = made.split("test")
    whole = model.posteriors(test)
    for i in (0, 7, 19):
        assert np.array_equal(model.posteriors([test[i]])[0], whole[i])


def test_errors(made):
    with pytest.raises(ValueError, match="scheme must be 'bio' or 'io', got 'iob'"):
        ClassicalHMM(LABELS, scheme="iob")
    with pytest.raises(RuntimeError, match="not fitted yet"):
        ClassicalHMM(LABELS).predict(made.split("test"))
    model = exact(ONE, rule="vote_o", iterations=2).fit(single([[0, 0, 1]]))
    with pytest.raises(ValueError, match="sentence 1: its votes have probability 0"):
        model.predict(single([[0], [2, 2]]))

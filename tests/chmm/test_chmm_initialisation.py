"""Initial matrices against small cases worked out by hand, and the two ways to start there."""

import numpy as np
import pytest
import torch

from oneshot.chmm.config import InitialConfig, ModelConfig
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.batches import Examples, collate
from oneshot.chmm.label_model.initialisation import initial_matrices, start
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.model import CHMM

ONE, TWO = LabelSpace(("x",)), LabelSpace(("x", "y"))
OUT, B, IN, BY, IY = range(5)


def matrices(labels, votes, config=None, priors=None):
    votes = [np.array(v, np.int64) for v in votes]
    sources = ["first", "second", "third"][: votes[0].shape[1]]
    return initial_matrices(labels, votes, sources, config or InitialConfig(), priors)


def test_start():
    assert matrices(TWO, [[[OUT]]]).start.tolist() == [0.96, 0.01, 0.01, 0.01, 0.01]


def test_transitions_are_counts_of_all_sources_and_one_for_each_legal_pair():
    # first: O B I I O, second: silent, O, B, B, silent; before the sentence: O
    votes = [[[OUT, -1], [B, OUT], [IN, B], [IN, B], [OUT, -1]]]
    found = matrices(ONE, votes).transitions
    counts = np.array(
        [
            [1 + 3 + 1, 1 + 2, 0],  # O: O O O B | O B ... and O at the very beginning of both
            [1 + 1, 1 + 1, 1 + 1],  # B: O B | I
            [1 + 1, 1, 1 + 1],
        ],
        float,
    )
    # O -> O: begin, begin, silent -> O; O -> B: first's B, second's first B
    counts[0] = [1 + 2 + 1, 1 + 2, 0]
    expected = np.maximum(counts / counts.sum(1, keepdims=True), 1e-6)
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-12)
    assert 0 < found[OUT, IN] < 2e-6


def test_transitions_of_the_majority_vote_know_neighbours_of_two_types():
    """Two sources of one type each: neither has ever seen the other's type follow its own."""
    votes = [[[B, -1], [-1, BY], [OUT, IY], [OUT, OUT], [-1, -1]]]
    apart = matrices(TWO, votes).transitions
    assert apart[B, BY] == pytest.approx(1 / 5, rel=1e-5)  # the pseudo-count of four, and B O
    together = matrices(TWO, votes, InitialConfig(transitions="vote")).transitions
    counts = np.ones(5)  # from B: one for each label that may follow, none for I-y
    counts[[BY, IY]] = 2, 0
    expected = np.maximum(counts / counts.sum(), 1e-6)
    np.testing.assert_allclose(together[B], expected / expected.sum(), rtol=1e-12)
    assert together[OUT] == pytest.approx([2 / 5, 2 / 5, 1e-6, 1 / 5, 1e-6], rel=1e-5)
    assert together[IY] == pytest.approx([2 / 5, 1 / 5, 1e-6, 1 / 5, 1 / 5], rel=1e-5)


def by_hand(labels, recall, precision, count):
    """The recipe, entry by entry."""
    size = len(labels)
    total = sum(count) + size
    names = labels.names
    rows = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if i == j:
                continue
            value = (1 - recall[i]) * (1 - precision[j]) * (0.001 + (count[j] + 1) / total)
            if "O" not in (names[i], names[j]):
                if names[i][2:] == names[j][2:]:
                    value *= 5
                elif names[i][0] == names[j][0]:
                    value *= 2
            rows[i, j] = value
        rows[i] *= (1 - recall[i]) / (rows[i].sum() + 1e-5)
        rows[i, i] = recall[i]
    rows = np.maximum(rows, 1e-6)
    return rows / rows.sum(1, keepdims=True)


def test_emissions():
    votes = [[[OUT, B], [B, -1], [IN, BY], [OUT, IY], [B, OUT], [OUT, OUT], [OUT, OUT]]]
    config = InitialConfig(recall=0.65, priors={"second": {"y": (0.5, 0.4)}})
    found = matrices(TWO, votes, config, {"first": {"x": (0.6, 0.8)}, "second": {"y": (0.1, 0.1)}})
    first = by_hand(TWO, [0.9, 0.8, 0.8, 0.65, 0.65], [0.8, 0.6, 0.6, 0.7, 0.7], [4, 2, 1, 0, 0])
    second = by_hand(TWO, [0.9, 0.65, 0.65, 0.4, 0.4], [0.8, 0.7, 0.7, 0.5, 0.5], [4, 1, 0, 1, 1])
    np.testing.assert_allclose(found.emissions, [first, second], rtol=1e-12)
    np.testing.assert_allclose(found.emissions.sum(-1), 1)
    assert found.emissions.min() > 0


def test_a_source_that_never_says_anything_speaks_against_nothing():
    """It gets the same rows for every type."""
    found = matrices(TWO, [[[-1], [-1]]]).emissions[0]
    np.testing.assert_allclose(found[B], found[BY][[OUT, BY, IY, B, IN]])
    assert found.diagonal() == pytest.approx([0.9, 0.7, 0.7, 0.7, 0.7], abs=1e-4)


def test_the_same_votes_give_the_same_matrices():
    votes = np.random.default_rng(0).integers(-1, 3, (50, 3))
    x, y = matrices(ONE, [votes]), matrices(ONE, [votes])
    np.testing.assert_array_equal(x.transitions, y.transitions)
    np.testing.assert_array_equal(x.emissions, y.emissions)


def examples(n=40, dim=6, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    sentences, embeddings, observed = [], [], []
    for _ in range(n):
        votes = torch.randint(3, (7, 2), generator=generator)
        sentences.append(Sentence(("w",) * 7, votes.numpy()))
        embeddings.append(scale * torch.randn(8, dim, generator=generator))
        observed.append(torch.nn.functional.one_hot(votes, 3).float())
    return Examples(sentences, embeddings, observed)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_bias_start_is_exact_at_every_token(weight):
    data = examples(scale=30)
    found = matrices(ONE, [s.votes for s in data.sentences])
    model = CHMM(6, 2, ONE, ModelConfig(transition_network=weight, emission_network=weight))
    assert start(model, found, data, InitialConfig(), 8, 0) == []
    batch = collate(data, range(8))
    init, trans, _, _ = model.potentials(batch)
    np.testing.assert_allclose(init.exp().detach(), found.start, rtol=1e-6)
    expected = np.broadcast_to(found.transitions, trans.shape)
    np.testing.assert_allclose(trans.exp().detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(model.mean_emissions(data), found.emissions, rtol=1e-5)
    rows = model._emission_logits(batch).softmax(-1)
    np.testing.assert_allclose(
        rows.detach(), np.broadcast_to(found.emissions, rows.shape), rtol=1e-5
    )


def test_independent_labels_start_at_what_the_chain_settles_at():
    data = examples()
    found = matrices(ONE, [s.votes for s in data.sentences])
    model = CHMM(6, 2, ONE, ModelConfig(markov=False))
    start(model, found, data, InitialConfig(), 8, 0)
    rows = model.mean_transitions(data)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[0], (3, 3)))
    np.testing.assert_allclose(rows[0] @ found.transitions, rows[0], rtol=1e-5)


def test_pretraining_comes_near_with_enough_epochs():
    data = examples()
    found = matrices(ONE, [s.votes for s in data.sentences])
    gaps = {}
    for epochs in (1, 60):
        torch.manual_seed(0)
        model = CHMM(6, 2, ONE, ModelConfig())
        config = InitialConfig(method="pretrain", pretrain_epochs=epochs, pretrain_lr=0.01)
        errors = start(model, found, data, config, 8, 0)
        assert len(errors) == epochs
        assert (np.diff(errors) < 0).mean() > 0.9 if epochs > 1 else True
        gaps[epochs] = np.abs(model.mean_emissions(data) - found.emissions).max()
        np.testing.assert_allclose(model.start.softmax(0).detach(), found.start, rtol=1e-6)
    assert gaps[60] < 0.05 < 0.1 < gaps[1]

"""The made-up set: its votes follow the behaviours, and a token-wise model can profit."""

import functools

import numpy as np
import pytest
import torch

from oneshot import ops
from oneshot.chmm.baselines.hmm import ClassicalHMM
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.label_model.observations import observations
from oneshot.chmm.labels import ABSTAIN
from oneshot.chmm.metrics import evaluate
from oneshot.chmm.synthetic import corpus as synthetic
from oneshot.chmm.synthetic.corpus import GUESSES, KNOWN, KNOWS, LABELS, generate
from oneshot.chmm.synthetic.runs import run_seeds, table


@pytest.fixture(scope="module")
def made():
    return generate()


def test_sizes_and_seeds(made):
    assert {name: len(x) for name, x in made.dataset.splits.items()} == {
        "train": 800,
        "valid": 100,
        "test": 300,
    }
    lengths = {len(s) for s in made.dataset.split("train")}
    assert (min(lengths), max(lengths)) == (10, 25)
    small = {"train": 3, "valid": 1, "test": 2, "n_features": 7}
    first, again, other = generate(**small), generate(**small), generate(seed=1, **small)
    assert first.dataset.digest() == again.dataset.digest() != other.dataset.digest()
    for x, sentence in zip(first.features["train"], first.dataset.split("train"), strict=True):
        assert x.shape == (len(sentence), 7)
        assert x.dtype == np.float32


def test_words_tell_domain_and_features(made):
    words = synthetic.vocabulary()
    assert len({w.lower() for w in words.words}) == len(words.words)
    place = {word: i for i, word in enumerate(words.words)}
    vectors = words.vectors(16)
    for sentence, x, domain in zip(
        made.dataset.split("test"), made.features["test"], made.domains["test"], strict=True
    ):
        ids = [place[token] for token in sentence.tokens]
        assert np.array_equal(vectors[ids], x)
        assert np.array_equal(words.domain[ids], domain)
        kind = words.kind[ids]
        assert np.array_equal(kind[kind < 3], (sentence.gold[kind < 3] + 1) // 2)
    assert len({word[-3:] for word in words.words}) == synthetic.N_DOMAINS
    # the domains can be told apart by a line: what a linear network needs
    targets = np.eye(4)[words.domain]
    design = np.column_stack([vectors, np.ones(len(vectors))])
    fit = design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    assert np.array_equal(fit.argmax(1), words.domain)


def test_votes_and_gold_are_legal_bio(made):
    for sentence in made.dataset.split("train"):
        for column in (sentence.gold, *sentence.votes.T):
            names = LABELS.to_names(np.maximum(column, 0))
            assert LABELS.from_names(names).tolist() == np.maximum(column, 0).tolist()


def test_sources_behave_as_told(made):
    train = made.dataset.split("train")
    gold = np.concatenate([s.gold for s in train])
    votes = np.concatenate([s.votes for s in train])
    domain = np.concatenate(made.domains["train"])
    begin = gold % 2 == 1
    for s, known in enumerate(KNOWN):
        for d in range(synthetic.N_DOMAINS):
            does = KNOWS if d in known else GUESSES
            here, said = domain == d, votes[:, s]
            right = (said == gold)[here & begin].mean()
            assert right == pytest.approx(does.right + does.shifted, abs=0.06)
            wrong = (said == (gold + 1) % 4 + 1)[here & begin].mean()
            assert wrong == pytest.approx(does.confused, abs=0.06)
            outside = said[here & (gold == 0)]
            assert (outside > 0).mean() == pytest.approx(does.invented, abs=0.03)
            quiet = outside[outside <= 0]
            assert (quiet == ABSTAIN).mean() == pytest.approx(does.silent, abs=0.07)


def test_each_model_has_room_above_the_last(made):
    """Vote < HMM < a model that knows the domains (here from gold), by 5 points of F1 each."""
    train, test = made.dataset.split("train"), made.dataset.split("test")
    votes = [
        evaluate(LABELS, test, MajorityVote(LABELS, c).predict(test))["f1"]
        for c in ("plain", "bio", "io", "abstain")
    ]
    hmm = ClassicalHMM(LABELS, rule="vote_o").fit(train)
    of_hmm = evaluate(LABELS, test, hmm.predict(test), hmm.posteriors(test))

    emissions = np.full((4, 4, 5, 5), 0.1)  # domain, source, true, said
    trans = np.full((5, 5), 0.1)
    for sentence, domain in zip(train, made.domains["train"], strict=True):
        np.add.at(trans, (sentence.gold[:-1], sentence.gold[1:]), 1)
        for s in range(4):
            said = np.maximum(sentence.votes[:, s], 0)
            np.add.at(emissions, (domain, s, sentence.gold, said), 1)
    log_trans = torch.from_numpy(trans / trans.sum(-1, keepdims=True)).log()
    emissions = torch.from_numpy(emissions / emissions.sum(-1, keepdims=True)).log()
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    domains = pad([torch.from_numpy(d) for d in made.domains["test"]])
    log_emit = ops.combine_emissions(
        emissions[domains], pad(observations(test, 5, "vote_o")).double()
    )
    chain = log_trans[0], log_trans, log_emit, torch.tensor([len(x) for x in test])
    paths, gamma = ops.hmm_viterbi(*chain).path.numpy(), ops.hmm_posteriors(*chain).gamma.numpy()
    predicted = [path[: len(x)] for path, x in zip(paths, test, strict=True)]
    posteriors = [p[: len(x)] for p, x in zip(gamma, test, strict=True)]
    of_domains = evaluate(LABELS, test, predicted, posteriors)

    assert max(votes) + 0.05 < of_hmm["f1"]
    assert of_hmm["f1"] + 0.05 < of_domains["f1"]
    assert of_domains["nll"] < 0.8 * of_hmm["nll"]


@pytest.mark.slow
def test_chmm_above_hmm_above_vote_by_five_points_on_five_seeds(tmp_path):
    found = run_seeds(range(5), tmp_path, say=lambda _: None)
    f1, nll, likelihood = (
        {name: np.array(row[key]) for name, row in found.items() if key in row}
        for key in ("f1", "nll", "log_likelihood_per_token")
    )
    assert (f1["CHMM"] > f1["HMM"] + 0.05).all()
    assert (f1["HMM"] > f1["majority vote"] + 0.05).all()
    assert (nll["CHMM"] < nll["HMM"]).all()
    assert (nll["HMM"] < nll["majority vote"]).all()
    assert (likelihood["CHMM"] > likelihood["HMM"]).all()


def test_table_of_seeds():
    rows = {"vote": {"f1": [0.5, 0.6], "nll": [float("inf"), 1.0]}, "HMM": {"f1": [0.7]}}
    assert table(rows).splitlines()[2:] == [
        "| vote | 55.0 ± 7.1 |  |  | inf |  |  |",
        "| HMM | 70.0 |  |  |  |  |  |",
    ]


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_must_differ(seeds, tmp_path):
    with pytest.raises(ValueError, match="seeds must be different numbers"):
        run_seeds(seeds, tmp_path)

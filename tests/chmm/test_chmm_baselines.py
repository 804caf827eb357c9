"""Votes, Dawid-Skene, best source, and the wrappers of peers: small cases and released files."""

import functools
import sys

import numpy as np
import pytest
import torch

from oneshot.chmm.baselines import dawid_skene
from oneshot.chmm.baselines.dawid_skene import DawidSkene
from oneshot.chmm.baselines.hmm import ClassicalHMM
from oneshot.chmm.baselines.source import BestSource
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.data import load
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.metrics import entity_scores, gold_of
from oneshot.chmm.synthetic.corpus import LABELS, SOURCES, generate

TWO = LabelSpace(("X", "Y"))


@pytest.fixture(scope="module")
def made():
    return generate(train=60, valid=1, test=20).dataset


@functools.cache
def released(folder):
    return load(folder)


def f1(model, dataset):
    test = dataset.split("test")
    return 100 * entity_scores(dataset.labels, gold_of(test), model.predict(test))["micro"].f1


@pytest.mark.parametrize(
    ("votes", "plain", "bio", "io", "abstain"),
    [
        ([-1, -1, 1], 0, 1, 1, 1),  # one voice against silence
        ([0, 0, 1], 0, 1, 1, 0),  # one voice against O said
        ([0, 1, 3], 0, 1, 1, 0),  # a tie: the lowest id
        ([4, 3, -1], 0, 3, 3, 3),
        ([1, 3, 4], 1, 1, 3, 1),  # types outvote at IO level
        ([-1, -1, -1], 0, 0, 0, 0),
    ],
)
def test_conventions(votes, plain, bio, io, abstain):
    sentence = Sentence(("w",), np.array([votes]))
    for convention, expected in {"plain": plain, "bio": bio, "io": io, "abstain": abstain}.items():
        model = MajorityVote(TWO, convention).fit([])
        assert model.predict([sentence])[0].tolist() == [expected]
        (p,) = model.posteriors([sentence])
        assert p.shape == (1, 5)
        assert p.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="convention must be one of plain, bio, io, abstain, got"):
        MajorityVote(TWO, "io-level")


def test_shares_of_votes():
    sentence = Sentence(("a", "b"), np.array([[1, 1, 3, -1], [2, 2, -1, 0]]))
    (bio,) = MajorityVote(TWO, "bio").posteriors([sentence])
    np.testing.assert_allclose(bio, [[0, 2 / 3, 0, 1 / 3, 0], [0, 0, 1, 0, 0]])
    (io,) = MajorityVote(TWO, "io").posteriors([sentence])
    np.testing.assert_allclose(io, [[0, 2 / 3, 0, 1 / 3, 0], [0, 1 / 3, 2 / 3, 0, 0]])


# F1 on the test split with recommended sources, measured with other code: (plain, bio, io)
VOTES = {
    "LaptopReview": (30.20, 62.09, 73.27),
    "NCBI-Disease": (6.73, 65.74, 78.44),
    "BC5CDR": (0.04, 80.61, 83.45),
}
SINGLE = {
    "LaptopReview": ("tag-CoreDictionary", 60.34),
    "NCBI-Disease": ("tag-CoreDictionaryUncased", 54.79),
    "BC5CDR": ("tag-Organic Chemical", 45.68),
}


@pytest.mark.parametrize("name", VOTES)
def test_votes_on_released_files(shared_data, name):
    dataset = released(shared_data / "chmm" / name)
    for convention, expected in zip(("plain", "bio", "io"), VOTES[name], strict=True):
        assert f1(MajorityVote(dataset.labels, convention), dataset) == pytest.approx(
            expected, abs=0.005
        )
    best = BestSource(dataset.labels, dataset.sources).fit(dataset.split("test"))
    assert best.name == SINGLE[name][0]
    assert f1(best, dataset) == pytest.approx(SINGLE[name][1], abs=0.005)


def test_best_source_needs_gold(made):
    best = BestSource(LABELS, SOURCES)
    with pytest.raises(RuntimeError, match="call fit first"):
        best.predict(made.split("test"))
    with pytest.raises(ValueError, match="sentence 0 has no gold"):
        best.fit([Sentence(("a",), np.zeros((1, 4), np.int64))])
    assert best.fit(made.split("train")).name in ("gazetteer", "pattern")  # know two domains each


def tokens(votes):
    return [Sentence(("w",) * len(votes), np.array(votes))]


def test_dawid_skene_climbs_and_finds_the_confusions(monkeypatch):
    rng = np.random.default_rng(0)
    gold = rng.choice(3, size=4000, p=[0.5, 0.3, 0.2])
    confusion = np.array(
        [
            [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9]],
            [[0.8, 0.1, 0.1], [0.1, 0.85, 0.05], [0.1, 0.2, 0.7]],
            [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.0, 0.7]],
            [[0.85, 0.1, 0.05], [0.2, 0.75, 0.05], [0.1, 0.1, 0.8]],
        ]
    )
    said = np.stack([(c[gold].cumsum(1) < rng.random((4000, 1))).sum(1) for c in confusion], 1)
    votes = np.where(said > 0, 2 * said - 1, 0)
    model = DawidSkene(TWO, smoothing=0.1)
    # the table as it is: WRENCH's rule would take most O votes out
    monkeypatch.setattr(
        dawid_skene, "io_table", lambda s: (np.concatenate([x.votes for x in s]) + 1) // 2
    )
    model.fit(tokens(votes))
    assert (np.diff(model.history) > -1e-12).all()
    assert len(model.history) > 3
    np.testing.assert_allclose(model.confusion, confusion, atol=0.06)
    np.testing.assert_allclose(model.prior, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.filterwarnings("ignore")  # of pandas, about crowd-kit
def test_dawid_skene_equals_crowd_kit(made):
    aggregation = pytest.importorskip("crowdkit.aggregation", reason="needs crowd-kit")
    pandas = pytest.importorskip("pandas")
    from oneshot.chmm.baselines.tokens import io_table

    train = made.split("train")
    table = io_table(train)
    rows = [(n, s, int(v)) for (n, s), v in np.ndenumerate(table) if v >= 0]
    frame = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    peer = aggregation.DawidSkene(n_iter=5, tol=0).fit(frame)
    exact = {"tolerance": -1, "smoothing": 0}
    model = DawidSkene(LABELS, iterations=5, **exact).fit(train)
    expected = peer.probas_.sort_index()[[0, 1, 2]].to_numpy()
    np.testing.assert_allclose(np.concatenate(model._by_sentence(train)), expected, atol=1e-6)
    model = DawidSkene(LABELS, iterations=6, **exact).fit(train)  # crowd-kit ends with an M step
    np.testing.assert_allclose(model.prior, peer.priors_.sort_index(), atol=1e-6)


def test_dawid_skene_posteriors(made):
    model = DawidSkene(LABELS).fit(made.split("train"))
    test = made.split("test")
    for p, sentence in zip(model.posteriors(test), test, strict=True):
        assert p.shape == (len(sentence), 5)
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    with pytest.raises(RuntimeError, match="call fit first"):
        DawidSkene(LABELS).predict(test)


@pytest.mark.parametrize(("module", "package"), [("snorkel", "snorkel"), ("skweak", "skweak")])
def test_a_missing_package_is_named(monkeypatch, module, package):
    from oneshot.chmm.baselines.skweak import Skweak
    from oneshot.chmm.baselines.snorkel import Snorkel

    monkeypatch.setitem(sys.modules, "snorkel.labeling.model", None)
    monkeypatch.setitem(sys.modules, "skweak.generative", None)
    make = {"snorkel": lambda: Snorkel(TWO), "skweak": lambda: Skweak(TWO, ["a"])}[module]
    with pytest.raises(ImportError, match=rf"pip install '?{package}"):
        make()


def test_snorkel(made):
    pytest.importorskip("snorkel", reason="needs snorkel")
    from oneshot.chmm.baselines.snorkel import Snorkel

    state = torch.get_rng_state()
    model = Snorkel(LABELS, n_epochs=20).fit(made.split("train"))
    assert torch.equal(state, torch.get_rng_state())
    for p, ids in zip(
        model.posteriors(made.split("test")), model.predict(made.split("test")), strict=True
    ):
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
        assert len(p) == len(ids)


def test_skweak_wrapper(made, capfd):
    pytest.importorskip("skweak", reason="needs skweak")
    from oneshot.chmm.baselines.skweak import Skweak

    model = Skweak(LABELS, SOURCES, iterations=2).fit(made.split("train"))
    test = made.split("test")
    for p, ids in zip(model.posteriors(test), model.predict(test), strict=True):
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
        assert len(p) == len(ids)
    assert f1(model, made) > 30
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "snorkel", "skweak"),
    [
        ("LaptopReview", 73.27, 73.63),
        ("NCBI-Disease", 78.44, 53.36),
        ("BC5CDR", 83.47, 69.02),
    ],
)
def test_peers_on_released_files(shared_data, name, snorkel, skweak):
    pytest.importorskip("snorkel", reason="needs snorkel")
    pytest.importorskip("skweak", reason="needs skweak")
    from oneshot.chmm.baselines.skweak import Skweak
    from oneshot.chmm.baselines.snorkel import Snorkel

    dataset = released(shared_data / "chmm" / name)
    train = dataset.split("train")
    assert f1(Snorkel(dataset.labels).fit(train), dataset) == pytest.approx(snorkel, abs=0.1)
    model = Skweak(dataset.labels, dataset.sources).fit(train)
    assert f1(model, dataset) == pytest.approx(skweak, abs=1)


# A constant HMM with the same rule, trained by gradient in other code: 73.27, 78.85, 80.87.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("LaptopReview", {}, 73.27),
        ("NCBI-Disease", {}, 78.85),
        ("BC5CDR", {"trust": 10_000}, 83.4),
    ],
)
def test_hmm_on_released_files(shared_data, name, options, expected):
    dataset = released(shared_data / "chmm" / name)
    model = ClassicalHMM(dataset.labels, **options).fit(dataset.split("train"))
    assert f1(model, dataset) == pytest.approx(expected, abs=0.3)


def test_nothing_to_learn_from():
    labels = LabelSpace(("X",))
    for model in (ClassicalHMM(labels), DawidSkene(labels)):
        with pytest.raises(ValueError, match="sentences must be at least one, got none"):
            model.fit([])

"""Entity scores against counting and published pitfalls; calibration against closed forms."""

import json

import numpy as np
import pytest

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.metrics import (
    NoGoldError,
    calibration,
    entity_scores,
    evaluate,
    gold_of,
    source_scores,
    without_gold,
)

LABELS = LabelSpace(("X", "Y"))


def ids(text):
    return np.array([LABELS.ids[name] for name in text.split()])


def test_counting_by_hand():
    gold = [ids("B-X I-X O B-Y"), ids("B-X B-X O")]
    predicted = [ids("B-X I-X O B-X"), ids("B-X I-X O")]
    scores = entity_scores(LABELS, gold, predicted)
    assert list(scores) == ["micro", "X", "Y"]
    micro, x, y = scores.values()
    assert (micro.precision, micro.recall, micro.gold) == (1 / 3, 1 / 4, 4)
    assert micro.f1 == pytest.approx(2 / 7)
    assert (x.precision, x.recall, x.gold) == (1 / 3, 1 / 3, 3)
    assert (y.precision, y.recall, y.f1, y.gold) == (0, 0, 0, 1)
    assert all(type(v) is float for v in (micro.precision, micro.recall, micro.f1))


def test_stray_inside_is_no_entity():
    scores = entity_scores(LABELS, [ids("B-X I-X O B-X")], [ids("I-X I-X O B-X")])
    assert scores["micro"].f1 == pytest.approx(2 / 3)  # lenient counting says 1


def test_random_labels_against_sets_of_spans():
    rng = np.random.default_rng(0)
    gold = [rng.integers(5, size=n) for n in (1, 7, 63, 200)]
    predicted = [np.where(rng.random(len(x)) < 0.6, x, rng.integers(5, size=len(x))) for x in gold]
    spans = [
        {(i, s) for i, x in enumerate(side) for s in LABELS.to_spans(x)}
        for side in (gold, predicted)
    ]
    for name, score in entity_scores(LABELS, gold, predicted).items():
        g, p = ({s for s in side if name in ("micro", s[1].type)} for side in spans)
        hits = len(g & p)
        assert score.gold == len(g)
        assert score.precision == pytest.approx(hits / len(p))
        assert score.recall == pytest.approx(hits / len(g))
        assert score.f1 == pytest.approx(2 * hits / (len(g) + len(p)))


def test_nothing_there():
    empty = [ids("O O")]
    assert all(s.f1 == s.gold == 0 for s in entity_scores(LABELS, empty, empty).values())
    assert entity_scores(LABELS, empty, [ids("B-X O")])["micro"].precision == 0


def test_sources():
    sentence = Sentence(("a", "b"), np.array([[1, -1], [2, 3]]), ids("B-X I-X"))
    scores = source_scores(LABELS, ("one", "two"), [sentence])
    assert scores["one"]["micro"].f1 == 1
    assert scores["two"]["Y"].precision == 0


def test_calibration_closed_form():
    gold = [np.array([0, 1]), np.array([1, 1])]
    p = [np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([[0.35, 0.65], [0.0, 1.0]])]
    found = calibration(gold, p, n_bins=10)
    assert found.nll == pytest.approx(-np.log([0.9, 0.4, 0.65, 1.0]).mean())
    # bins: [0.6, 0.7) has 0.6 wrong and 0.65 right; 0.9 right; 1.0 right
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.625) + 2 * abs(1 - 0.95)) / 4)
    assert found.bins["tokens"] == [2, 2]
    assert found.bins["accuracy"] == [0.5, 1]
    assert found.bins["confidence"] == pytest.approx([0.625, 0.95])
    assert calibration(gold, [p[0], p[1][:, ::-1]]).nll == np.inf


def test_calibrated_posteriors_have_no_error():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=200_000)
    gold = (p.cumsum(1) < rng.random((len(p), 1))).sum(1)
    assert calibration([gold], [p]).ece < 0.005
    sharper = p**2 / (p**2).sum(1, keepdims=True)
    assert calibration([gold], [sharper]).ece > 0.1


def test_everything_of_a_split():
    sentences = [
        Sentence(("a", "b"), np.zeros((2, 1), np.int64), ids("B-X O")),
        Sentence(("c",), np.zeros((1, 1), np.int64), ids("B-Y")),
    ]
    predicted = [ids("B-X O"), ids("O")]
    p = [np.full((2, 5), 0.2), np.full((1, 5), 0.2)]
    result = json.loads(json.dumps(evaluate(LABELS, sentences, predicted, p, -6.0)))
    assert (result["precision"], result["recall"]) == (1, 0.5)
    assert result["by_type"]["Y"] == {"precision": 0, "recall": 0, "f1": 0, "gold": 1}
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["nll"] == pytest.approx(np.log(5))
    assert result["log_likelihood_per_token"] == -2
    assert "nll" not in evaluate(LABELS, sentences, predicted)


@pytest.mark.parametrize("row", [[np.nan, 0.5], [np.inf, 0.0], [0.5, 0.4], [1.5, -0.5]])
def test_rows_that_are_no_distribution(row):
    p = [np.full((1, 2), 0.5), np.array([[0.5, 0.5], row])]
    with pytest.raises(ValueError, match="posteriors, sentence 1, token 1: expected probabilities"):
        calibration([np.array([0]), np.array([0, 1])], p)


def test_without_gold():
    result = without_gold(LABELS, [ids("B-X I-X O"), ids("B-X B-Y")], -10.0)
    assert result == {"entities": {"X": 2, "Y": 1}, "log_likelihood_per_token": -2.0}
    assert without_gold(LABELS, [ids("I-X")]) == {"entities": {"X": 0, "Y": 0}}


def test_wrong_input():
    with pytest.raises(ValueError, match="predicted must be of 1 sentences like gold, got 2"):
        entity_scores(LABELS, [ids("O")], [ids("O"), ids("O")])
    with pytest.raises(
        ValueError, match="predicted, sentence 0: expected 1 tokens like gold, got 2"
    ):
        entity_scores(LABELS, [ids("O")], [ids("O O")])
    with pytest.raises(ValueError, match="posteriors, sentence 0: expected 1 tokens"):
        calibration([ids("O")], [np.full((2, 5), 0.2)])
    with pytest.raises(NoGoldError, match="split 'test', sentence 0 has no gold labels"):
        gold_of([Sentence(("a",), np.zeros((1, 1), np.int64))], "test")
    with pytest.raises(ValueError, match="sentence 0 has no gold labels"):
        gold_of([Sentence(("a",), np.zeros((1, 1), np.int64))])
    with pytest.raises(ValueError, match="sentences is empty"):
        gold_of([])

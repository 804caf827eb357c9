"""Sentences and data sets: checks, selection, digest, and the released files."""

import json

import numpy as np
import pytest

from oneshot.chmm.data import load
from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.labels import LabelSpace


def sentence(votes, gold=None):
    votes = np.array(votes)
    return Sentence(("w",) * len(votes), votes, None if gold is None else np.array(gold))


def test_wrong_arrays():
    with pytest.raises(ValueError, match="expected at least one token"):
        Sentence((), np.zeros((0, 1), np.int64))
    with pytest.raises(ValueError, match=r"votes must be int64 \[tokens, sources\] for 1 tokens"):
        Sentence(("a",), np.zeros((1, 1)))
    with pytest.raises(
        ValueError, match=r"gold must be int64 \[tokens\] for 1 tokens, got int64 \[2\]"
    ):
        Sentence(("a",), np.zeros((1, 1), np.int64), np.zeros(2, np.int64))
    labels = LabelSpace(("X",))
    with pytest.raises(ValueError, match="train, sentence 1: expected votes of 2 sources, got 1"):
        WeakDataset(labels, ("a", "b"), {"train": (sentence([[0, 0]]), sentence([[0]]))})
    with pytest.raises(
        ValueError, match=r"test, sentence 0: votes must be label ids -1 \.\. 2, got 3"
    ):
        WeakDataset(labels, ("a",), {"test": (sentence([[0], [3]]),)})
    with pytest.raises(ValueError, match=r"must not have the name 'tagger', .*; rename it"):
        WeakDataset(labels, ("tagger",), {"test": (sentence([[0]]),)})
    with pytest.raises(ValueError, match="split 'test' has no sentence"):
        WeakDataset(labels, ("a",), {"test": ()})
    with pytest.raises(ValueError, match=r"gold must be label ids 0 \.\. 2, got -1"):
        WeakDataset(labels, ("a",), {"test": (sentence([[0]], [-1]),)})


def test_selection_and_digest():
    labels = LabelSpace(("X",))
    priors = {"b": {"X": (0.5, 0.5)}}
    rows = {"train": (sentence([[0, 1], [-1, 2]], [1, 0]),), "test": (sentence([[0, 0]]),)}
    dataset = WeakDataset(labels, ("a", "b"), rows, priors)
    swapped = dataset.select_sources(["b", "a"])
    assert swapped.split("train")[0].votes.tolist() == [[1, 0], [2, -1]]
    assert swapped.priors == priors
    assert dataset.select_sources(["a"]).priors == {}
    for wrong in (["c"], ["a", "a"], []):
        with pytest.raises(ValueError, match=r"no source 'c'|sources must be different names"):
            dataset.select_sources(wrong)
    with pytest.raises(ValueError, match="no split 'valid'; the data set has train, test"):
        dataset.split("valid")

    assert swapped.select_sources(["a", "b"]).digest() == dataset.digest()
    others = [
        swapped,
        WeakDataset(labels, ("a", "b"), rows),
        WeakDataset(LabelSpace(("Y",)), ("a", "b"), rows, priors),
        WeakDataset(labels, ("a", "b"), {"train": rows["train"]}, priors),
        WeakDataset(labels, ("a", "b"), {**rows, "test": (sentence([[0, 1]]),)}, priors),
        WeakDataset(labels, ("a", "b"), {**rows, "test": (sentence([[0, 0]], [0]),)}, priors),
    ]
    assert len({x.digest() for x in [dataset, *others]}) == 7


# Counts of tokens and gold entities by split, from the sheet of the released files.
COUNTS = {
    "LaptopReview": (3, [2436, 609, 800], [40904, 10298, 11809], [1863, 489, 653]),
    "NCBI-Disease": (5, [592, 99, 99], [128280, 22455, 22901], [5105, 780, 947]),
    "BC5CDR": (9, [500, 500, 500], [107480, 106713, 112315], [9315, 9508, 9719]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_released_files(shared_data, name):
    dataset = load(shared_data / "chmm" / name)
    sources, sentences, tokens, entities = COUNTS[name]
    assert list(dataset.splits) == ["train", "valid", "test"]
    assert len(dataset.sources) == sources
    assert [len(x) for x in dataset.splits.values()] == sentences
    assert [sum(map(len, x)) for x in dataset.splits.values()] == tokens
    found = [[dataset.labels.to_spans(s.gold) for s in x] for x in dataset.splits.values()]
    assert [sum(map(len, x)) for x in found] == entities
    first = json.loads((shared_data / "chmm" / name / "test.json").read_text())["0"]
    assert [list(span) for span in found[2][0]] == first["label"]

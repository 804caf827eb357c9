"""BIO ids against seqeval and against enumeration."""

import itertools

import numpy as np
import pytest

from oneshot.chmm.labels import (
    ABSTAIN,
    LabelSpace,
    Span,
    bio_to_io,
    io_to_bio,
    io_to_bio_posteriors,
)

LABELS = LabelSpace(("X", "Y"))


def ids(text):
    return LABELS.from_names(text.split(), "begin")


def test_order_of_labels():
    assert LABELS.names == ("O", "B-X", "I-X", "B-Y", "I-Y")
    assert len(LABELS) == 5
    assert LABELS.to_names(np.array([4, 0, 1])) == ["I-Y", "O", "B-X"]
    with pytest.raises(ValueError, match=r"entity_types must differ, got \['X', 'X'\]"):
        LabelSpace(("X", "X"))
    for wrong in ((), ("",)):
        with pytest.raises(ValueError, match="entity_types must be names, at least one"):
            LabelSpace(wrong)


def test_names_to_ids():
    assert LABELS.from_names(["-", "B-X", "I-X", "I-X", "", "O"]).tolist() == [-1, 1, 2, 2, -1, 0]
    with pytest.raises(ValueError, match=r"token 1: expected one of O, B-X, .*, got 'B-Z'"):
        LABELS.from_names(["O", "B-Z"])
    for before in (["O"], ["-"], ["B-Y"], ["I-Y"], []):
        names = [*(["B-Y"] if before == ["I-Y"] else []), *before, "I-X"]
        with pytest.raises(ValueError, match=rf"token {len(names) - 1}: I-X must follow B-X"):
            LABELS.from_names(names)
        assert LABELS.from_names(names, "begin")[-1] == 1
    assert ids("I-X I-X O I-Y").tolist() == [1, 2, 0, 3]


def test_spans_to_ids_and_back():
    spans = [Span(0, 2, "X"), Span(2, 3, "X"), Span(4, 7, "Y")]
    found = LABELS.from_spans([spans[2], spans[0], list(spans[1])], 7)
    assert LABELS.to_names(found) == ["B-X", "I-X", "B-X", "O", "B-Y", "I-Y", "I-Y"]
    assert LABELS.to_spans(found) == spans
    assert LABELS.from_spans([], 2, ABSTAIN).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 4, "X"]], r"span \[0, 4, 'X'\]: expected 0 <= start < end <= 3"),
        ([[2, 2, "X"]], "expected 0 <= start < end"),
        ([[-1, 2, "X"]], "expected 0 <= start < end"),
        ([[0, 1, "Z"]], r"span \[0, 1, 'Z'\]: expected a type of X, Y, got 'Z'"),
        ([[0, 1, None]], "expected a type of X, Y, got None"),
        ([[0, 1.0, "X"]], "start and end must be whole numbers"),
        ([[0, True, "X"]], "start and end must be whole numbers"),
        ([[0, 1]], r"expected a span \[start, end, type\], got \[0, 1\]"),
        (["0-1"], "expected a span"),
        ([[0, 2, "X"], [1, 3, "Y"]], r"span \[1, 3, 'Y'\] overlaps another"),
        ([[0, 2, "X"], [0, 2, "X"]], "overlaps another"),
    ],
)
def test_wrong_spans(spans, message):
    with pytest.raises(ValueError, match=message):
        LABELS.from_spans(spans, 3)


@pytest.mark.parametrize(
    ("spans", "first", "longest"),
    [
        ([[0, 2, "X"], [0, 2, "X"]], [1, 2, 0, 0], [1, 2, 0, 0]),
        ([[0, 2, "X"], [0, 2, "Y"]], [1, 2, 0, 0], [1, 2, 0, 0]),
        ([[1, 2, "Y"], [0, 3, "X"], [3, 4, "Y"]], [0, 3, 0, 3], [1, 2, 2, 3]),
        ([[2, 4, "Y"], [1, 3, "X"], [0, 2, "X"]], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([[3, 4, "X"], [0, 4, "Y"], [0, 1, "X"]], [1, 0, 0, 1], [3, 4, 4, 4]),
    ],
)
def test_overlapping_spans(spans, first, longest):
    assert LABELS.from_spans(spans, 4, overlaps="first").tolist() == first
    assert LABELS.from_spans(spans, 4, overlaps="longest").tolist() == longest


def test_entities_are_those_of_seqeval():
    """All sequences of 4 labels, legal or not."""
    scheme = pytest.importorskip("seqeval.scheme")
    sequences = [np.array(x) for x in itertools.product(range(5), repeat=4)]
    theirs = scheme.Entities([LABELS.to_names(x) for x in sequences], scheme.IOB2).entities
    for x, entities in zip(sequences, theirs, strict=True):
        assert LABELS.to_spans(x) == [Span(e.start, e.end, e.tag) for e in entities]


def test_legal_sequences_are_those_without_a_stray_inside():
    for x in itertools.product(range(5), repeat=3):
        legal = LABELS.legal_start[x[0]] and all(
            LABELS.legal_transitions[i, j] for i, j in itertools.pairwise(x)
        )
        names = LABELS.to_names(np.array(x))
        if legal:
            assert LABELS.from_names(names).tolist() == list(x)
        else:
            with pytest.raises(ValueError, match="must follow"):
                LABELS.from_names(names)


def test_io():
    bio = ids("B-X I-X B-X O B-Y B-X I-X")
    assert bio_to_io(bio).tolist() == [1, 1, 1, 0, 2, 1, 1]
    assert bio_to_io(np.array([[ABSTAIN, 4]])).tolist() == [[ABSTAIN, 2]]
    # neighbours of one type become one
    assert io_to_bio(bio_to_io(bio)).tolist() == ids("B-X I-X I-X O B-Y B-X I-X").tolist()
    for x in itertools.product(range(3), repeat=4):  # WRENCH's rule, token by token
        expected = [
            0 if i == 0 else 2 * i if t and x[t - 1] == i else 2 * i - 1 for t, i in enumerate(x)
        ]
        assert io_to_bio(np.array(x)).tolist() == expected


def test_io_posteriors_are_the_mean_of_the_rule():
    """Sum over all IO paths of independent tokens."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    expected = np.zeros((4, 5))
    for path in itertools.product(range(3), repeat=4):
        weight = np.prod([p[t, i] for t, i in enumerate(path)])
        expected[np.arange(4), io_to_bio(np.array(path))] += weight
    np.testing.assert_allclose(io_to_bio_posteriors(p), expected, atol=1e-15)


@pytest.mark.parametrize("tiny", [1e-10, 1e-17, 1e-40, 1e-200])
def test_io_posteriors_keep_small_probabilities(tiny):
    """A B- right after a type that is all but certain has a probability, not 0."""
    p = np.array([[tiny, 1.0, tiny], [tiny, 1.0, tiny]])
    found = io_to_bio_posteriors(p)
    np.testing.assert_allclose(found[1, 1:], [2 * tiny, 1, tiny, tiny**2], rtol=1e-9)

"""Batches: every example once, similar lengths together, an order that the seed alone decides."""

import pytest
import torch

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.batches import Examples, collate, in_order, shuffled

LENGTHS = [(7 * i) % 63 + 1 for i in range(200)]


def padded(batches):
    return sum(len(b) * max(LENGTHS[i] for i in b) for b in batches)


def test_shuffled_takes_every_example_once_and_pads_little():
    batches = shuffled(LENGTHS, 8, seed=1)
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert [len(b) for b in batches].count(8) >= 24
    assert padded(batches) < 1.2 * sum(LENGTHS)
    assert batches == shuffled(LENGTHS, 8, seed=1)
    assert batches != shuffled(LENGTHS, 8, seed=2)


def test_in_order_keeps_to_the_budget():
    batches = list(in_order(LENGTHS, 100))
    assert sorted(i for b in batches for i in b) == list(range(200))
    assert all(len(b) * max(LENGTHS[i] for i in b) <= 100 for b in batches)
    assert [len(b) for b in in_order([5, 500, 3], 100)] == [2, 1]
    assert list(in_order([], 100)) == []


def examples():
    sizes = [3, 1, 2]
    sentences = [Sentence(("w",) * n, torch.zeros(n, 2, dtype=torch.int64).numpy()) for n in sizes]
    embeddings = [torch.full((n + 1, 4), float(n)) for n in sizes]
    return sentences, embeddings, [torch.full((n, 2, 3), float(n)) for n in sizes]


def test_collate_packs_sentences_behind_their_begins():
    batch = collate(Examples(*examples()), [2, 0])
    assert batch.lengths.tolist() == [3, 4]
    assert batch.embeddings[:, 0].tolist() == [2, 2, 2, 3, 3, 3, 3]
    begin = [[1, 0, 0]] * 2
    assert batch.observations[0].tolist() == begin
    assert batch.observations[3].tolist() == begin
    assert batch.observations[[1, 2, 4, 5, 6], 0, 0].tolist() == [2, 2, 3, 3, 3]


def test_parts_that_do_not_fit_are_refused():
    sentences, embeddings, observations = examples()
    with pytest.raises(ValueError, match="3 sentences, but 2 embeddings and 3 observations"):
        Examples(sentences, embeddings[:2], observations)
    embeddings[1] = embeddings[1][:1]
    with pytest.raises(
        ValueError, match="sentence 1: expected 2 embeddings and 1 observations, got 1 and 1"
    ):
        Examples(sentences, embeddings, observations)

"""Generated sentences whose sources are reliable on some words and not on others.

Two entity types (L = 5), four sources. Every word of a small vocabulary belongs to one of four
*domains*, and what a source does at a token depends on the token's domain alone: in a domain it
knows, it finds nearly all entities and says O elsewhere; in another, it overlooks, confuses types,
cuts entities short, invents some, and is often silent. A model with the same parameters at every
token can only learn the average; one that sees the features can learn where to trust whom.

The domain is in the word vector of the token (`features`, for a CHMM without an encoder) and in
the ending of the word (for one with an encoder). Words of the two types differ, too, but for some
that can be either or none, so a tagger can learn the entities from the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.labels import ABSTAIN, Ids, LabelSpace, Span

LABELS = LabelSpace(("PLANT", "STONE"))
SOURCES = ("gazetteer", "pattern", "model", "crowd")
N_DOMAINS = 4

_ENDINGS = ("ban", "sel", "tix", "bou")  # of the words of each domain
_KINDS = (14, 8, 8, 3)  # words a domain has: common, PLANT, STONE, any of them
_ENTITY_RATE = 0.16  # chance that an entity begins after a token outside of any
_SAME_AGAIN = 0.1  # chance that the next entity follows at once
_LENGTHS = (0.5, 0.35, 0.15)  # of an entity: 1, 2, 3 tokens
_AMBIGUOUS = 0.15  # chance that a token is one of the words of any kind


class Behaviour(NamedTuple):
    """What a source does in a domain, as probabilities at each token by itself."""

    right: float  # in an entity: says the right label
    confused: float  # ... that of the other type
    shifted: float  # ... B- for I- (and the right label for B-); else it finds nothing
    invented: float  # outside: says B- of some type
    silent: float  # where it finds nothing, says nothing instead of O


KNOWS = Behaviour(right=0.9, confused=0.02, shifted=0.02, invented=0.01, silent=0.1)
GUESSES = Behaviour(right=0.35, confused=0.25, shifted=0.1, invented=0.1, silent=0.4)
# Domains each source knows. The last one knows none.
KNOWN = ((0, 1), (1, 2), (3,), ())


@dataclass(frozen=True)
class Synthetic:
    """A set and its word vectors.

    Attributes:
        dataset: Splits train, valid and test, with gold.
        features: float32 [T, D] for each sentence of each split: the word vectors of its tokens.
        domains: int64 [T] likewise: the domain of each token, which no model sees.
    """

    dataset: WeakDataset
    features: dict[str, list[npt.NDArray[np.float32]]]
    domains: dict[str, list[Ids]]


class Vocabulary(NamedTuple):
    """The words, the same in every set: domain by domain, kind by kind."""

    words: tuple[str, ...]
    domain: Ids  # [V]
    kind: Ids  # [V]: 0 common, 1 PLANT, 2 STONE, 3 any of them

    def draw(self, rng: np.random.Generator, domain: Ids, kind: Ids) -> Ids:
        """A word for each token, of its domain and kind."""
        size = np.array(_KINDS)
        first = np.concatenate([[0], np.cumsum(size)[:-1]])
        return domain * size.sum() + first[kind] + rng.integers(size[kind])

    def vectors(self, size: int) -> npt.NDArray[np.float32]:
        """[V, size]: a direction for each domain, and as much noise of the word's own."""
        rng = np.random.default_rng(1)
        directions = np.linalg.qr(rng.normal(size=(size, N_DOMAINS)))[0].T
        noise = rng.normal(size=(len(self.words), size)) / np.sqrt(size)
        return (2 * directions[self.domain] + 0.5 * noise).astype(np.float32)


def vocabulary() -> Vocabulary:
    """All words that can occur: two syllables and the ending of their domain; names are capital."""
    rng = np.random.default_rng(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    pairs = rng.permutation(len(syllables) ** 2)
    words: list[str] = []
    domain, kind = [], []
    for d in range(N_DOMAINS):
        for k, count in enumerate(_KINDS):
            for _ in range(count):
                first, second = divmod(int(pairs[len(words)]), len(syllables))
                word = syllables[first] + syllables[second] + _ENDINGS[d]
                words.append(word if k == 0 else word.capitalize())
                domain.append(d)
                kind.append(k)
    return Vocabulary(tuple(words), np.array(domain), np.array(kind))


def generate(
    *,
    seed: int = 0,
    train: int = 800,
    valid: int = 100,
    test: int = 300,
    min_length: int = 10,
    max_length: int = 25,
    n_features: int = 16,
) -> Synthetic:
    """Draws a set.

    Args:
        seed: Of the sentences and votes. Vocabulary and word vectors are always the same.
        train: Number of sentences; likewise `valid` and `test`.
        valid: See `train`.
        test: See `train`.
        min_length: Tokens of the shortest sentence.
        max_length: Tokens of the longest.
        n_features: D, at least 4.
    """
    words = vocabulary()
    vectors = words.vectors(n_features)
    splits, features, domains = {}, {}, {}
    for number, (name, size) in enumerate({"train": train, "valid": valid, "test": test}.items()):
        rng = np.random.default_rng([seed, number])
        generated = [
            _sentence(rng, words, int(n)) for n in rng.integers(min_length, max_length + 1, size)
        ]
        splits[name] = tuple(sentence for sentence, _ in generated)
        features[name] = [vectors[ids] for _, ids in generated]
        domains[name] = [words.domain[ids] for _, ids in generated]
    return Synthetic(WeakDataset(LABELS, SOURCES, splits), features, domains)


def _sentence(rng: np.random.Generator, words: Vocabulary, length: int) -> tuple[Sentence, Ids]:
    spans = _spans(rng, length)
    gold = LABELS.from_spans(spans, length)
    domain = rng.integers(N_DOMAINS, size=length)
    for span in spans:
        domain[span.start : span.end] = domain[span.start]
    kind = np.where(rng.random(length) < _AMBIGUOUS, 3, (gold + 1) // 2)
    ids = words.draw(rng, domain, kind)
    votes = np.stack([_votes(rng, known, domain, gold) for known in KNOWN], axis=1)
    return Sentence(tuple(words.words[i] for i in ids), votes, gold), ids


def _spans(rng: np.random.Generator, length: int) -> list[Span]:
    spans: list[Span] = []
    t = 0
    while t < length:
        follows = bool(spans) and spans[-1].end == t
        if rng.random() < (_SAME_AGAIN if follows else _ENTITY_RATE):
            end = min(t + 1 + int(rng.choice(len(_LENGTHS), p=_LENGTHS)), length)
            spans.append(Span(t, end, LABELS.entity_types[rng.integers(2)]))
            t = end
        else:
            t += 1
    return spans


def _votes(rng: np.random.Generator, known: tuple[int, ...], domain: Ids, gold: Ids) -> Ids:
    """What one source says."""
    does = np.where(np.isin(domain, known)[:, None], KNOWS, GUESSES).T
    right, confused, shifted, invented, silent = does
    u, v = rng.random((2, len(gold)))
    swapped = (gold - 1 + 2) % 4 + 1  # B-x <-> B-y, I-x <-> I-y
    cut = gold - (gold % 2 == 0)  # I-x -> B-x
    inside = np.select(
        [u < right, u < right + confused, u < right + confused + shifted], [gold, swapped, cut], 0
    )
    outside = np.where(u < invented, np.where(v < 0.5, 1, 3), 0)
    said = np.where(gold > 0, inside, outside)
    before = np.concatenate([[0], said[:-1]])
    stray = (said > 0) & (said % 2 == 0) & (before != said) & (before != said - 1)
    said = said - stray  # an I- that continues nothing is a B-
    return np.where((said == 0) & (v < silent), ABSTAIN, said)

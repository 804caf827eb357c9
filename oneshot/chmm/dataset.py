"""Sentences with the votes of weak sources, and the data sets they form.

A vote is a label id; `labels.ABSTAIN` says that the source is silent at the token.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oneshot.chmm.labels import ABSTAIN, Ids, LabelSpace

SPLITS = ("train", "valid", "test")
TAGGER_SOURCE = "tagger"  # the name of CHMM-ALT's tagger among the sources; no other may have it

Priors = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence or document, at least one token long. The arrays are made read-only.

    Attributes:
        tokens: T words.
        votes: int64 [T, S]: the label id each source gives each token, or `ABSTAIN`.
        gold: int64 [T]: true label ids, or None where there are none.
        id: Name of its record in the file it comes from.

    Raises:
        ValueError: No token, or an array of the wrong shape or dtype.
    """

    tokens: tuple[str, ...]
    votes: Ids
    gold: Ids | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("expected at least one token, got none")
        for name, array, shape in (("votes", self.votes, 2), ("gold", self.gold, 1)):
            if array is None:
                continue
            if array.dtype != np.int64 or array.ndim != shape or len(array) != len(self.tokens):
                expected = "tokens, sources" if name == "votes" else "tokens"
                raise ValueError(
                    f"{name} must be int64 [{expected}] for {len(self.tokens)} tokens, "
                    f"got {array.dtype} {list(array.shape)}"
                )
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class WeakDataset:
    """Sentences with weak labels, by split.

    Attributes:
        labels: The label space of all votes and gold labels.
        sources: Names of the S sources, in the order of the columns of `Sentence.votes`.
        splits: Sentences by name of the split: any of train, valid, test.
        priors: {source: {type: (precision, recall)}} if the files set them.
        o_is_silence: Whether an O of the files was read as silence.
        notes: What the reader assumed or left out, a sentence each.

    Raises:
        ValueError: Names that repeat or are reserved, a sentence with another number of sources, or
            a label id outside the label space (split and sentence named).
    """

    labels: LabelSpace
    sources: tuple[str, ...]
    splits: Mapping[str, tuple[Sentence, ...]]
    priors: Priors | None = None
    o_is_silence: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ValueError(
                f"sources must be different names, at least one, got {list(self.sources)}"
            )
        if TAGGER_SOURCE in self.sources:
            raise ValueError(
                f"sources must not have the name {TAGGER_SOURCE!r}, which CHMM-ALT gives its own "
                "tagger; rename it in the files"
            )
        for split, sentences in self.splits.items():
            if not sentences:
                raise ValueError(f"split {split!r} has no sentence")
            for number, sentence in enumerate(sentences):
                self._check(f"{split}, sentence {number}", sentence)

    def _check(self, where: str, sentence: Sentence) -> None:
        if sentence.votes.shape[1] != len(self.sources):
            raise ValueError(
                f"{where}: expected votes of {len(self.sources)} sources, "
                f"got {sentence.votes.shape[1]}"
            )
        for name, array, lowest in (("votes", sentence.votes, ABSTAIN), ("gold", sentence.gold, 0)):
            if array is not None and (array.min() < lowest or array.max() >= len(self.labels)):
                wrong = array[(array < lowest) | (array >= len(self.labels))][0]
                raise ValueError(
                    f"{where}: {name} must be label ids {lowest} .. {len(self.labels) - 1}, "
                    f"got {wrong}"
                )

    def split(self, name: str) -> tuple[Sentence, ...]:
        """The sentences of a split; a ValueError names those that exist."""
        if name not in self.splits:
            raise ValueError(f"no split {name!r}; the data set has {', '.join(self.splits)}")
        return self.splits[name]

    def select_sources(self, names: Sequence[str]) -> WeakDataset:
        """The same sentences with the votes of these sources only, in this order."""
        unknown = [name for name in names if name not in self.sources]
        if unknown:
            raise ValueError(
                f"no source {unknown[0]!r}; the data set has {', '.join(self.sources)}"
            )
        columns = [self.sources.index(name) for name in names]
        splits = {
            split: tuple(dataclasses.replace(s, votes=s.votes[:, columns]) for s in sentences)
            for split, sentences in self.splits.items()
        }
        priors = self.priors and {n: self.priors[n] for n in names if n in self.priors}
        return dataclasses.replace(self, sources=tuple(names), splits=splits, priors=priors)

    def has_gold(self, split: str) -> bool:
        """Whether every sentence of a split has gold labels."""
        return all(sentence.gold is not None for sentence in self.split(split))

    def read_o_as_silence(self) -> WeakDataset:
        """The same sentences where a source that says O is silent."""
        splits = {
            split: tuple(
                dataclasses.replace(s, votes=np.where(s.votes == 0, ABSTAIN, s.votes))
                for s in sentences
            )
            for split, sentences in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits, o_is_silence=True)

    def digest(self) -> str:
        """SHA-256 of everything in it, as hexadecimal text."""
        digest = hashlib.sha256()
        digest.update(json.dumps([self.labels.entity_types, self.sources, self.priors]).encode())
        for split, sentences in self.splits.items():
            digest.update(json.dumps([split, [s.tokens for s in sentences]]).encode())
            for s in sentences:
                digest.update(s.votes.tobytes())
                digest.update(b"none" if s.gold is None else s.gold.tobytes())
        return digest.hexdigest()

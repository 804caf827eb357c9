"""Sentences with the votes of weak sources, and the sets they form.

`load` reads four forms (see `oneshot.chmm.readers`). A vote is a label id; `ABSTAIN` says that the
source is silent at the token. Most files have one sign for silence and O: spans leave both out,
WRENCH writes O for both. There it is read as silence, and the abstention rule of
`oneshot.chmm.label_model.observations` decides what silence means to a model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from oneshot.chmm.labels import ABSTAIN, Ids, LabelSpace, Overlaps, Span

__all__ = ["ABSTAIN", "SPLITS", "LabelSpace", "Priors", "Sentence", "Span", "WeakDataset", "load"]

SPLITS = ("train", "valid", "test")
TAGGER_SOURCE = "tagger"  # the name of CHMM-ALT's tagger among the sources; no other may have it

Form = Literal["auto", "chmm_json", "wrench", "conll", "skweak"]
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
        priors: {source: {type: (precision, recall)}} where somebody has set them.
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


def load(
    path: str | Path,
    *,
    form: Form = "auto",
    sources: Literal["recommended", "all"] | Sequence[str] = "recommended",
    entity_types: Sequence[str] | None = None,
    stray_inside: Literal["error", "begin"] = "error",
    overlaps: Overlaps = "error",
    empty: Literal["error", "skip"] = "error",
    o_is_silence: bool | None = None,
) -> WeakDataset:
    """Reads a folder with one file for each split it has: train, valid, test.

    Args:
        path: The folder.
        form: "chmm_json" (the JSON of the CHMM-ALT repository), "wrench" (WRENCH's JSON), "conll"
            (columns), "skweak" (spaCy's DocBin), or "auto": by the names and contents of the files.
        sources: The sources to keep: those that meta.json recommends (all, if it recommends none),
            all, or these, in this order.
        entity_types: The types and their order. Default: those of meta.json, else the sorted
            types that occur.
        stray_inside: How BIO text (WRENCH, CoNLL) with an I- that continues no entity is read: not
            at all, or as if it were a B-.
        overlaps: Of spans of one source that share a token: an error, or keep the first or the
            longest of them. Spans of gold labels must not overlap.
        empty: A document without tokens is an error, or is left out.
        o_is_silence: Whether a source that says O is silent. Default: unless the files have both,
            O and a sign for silence.

    Returns:
        The data set; its `notes` name what was assumed or left out.

    Raises:
        FileNotFoundError: No such folder, or none of the files that belong there.
        ValueError: A malformed record; the message has file and record, what was expected and what
            came.
        ImportError: form "skweak" without spaCy.
    """
    from oneshot.chmm import readers

    folder = Path(path)
    if folder.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder that holds {', '.join(SPLITS)} (or some of them), got a "
            "file"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of weak labels")
    if isinstance(sources, str) and sources not in ("recommended", "all"):
        raise ValueError(
            f"sources must be 'recommended', 'all' or a list of names, got {sources!r}"
        )
    types = None if entity_types is None else tuple(entity_types)
    dataset, recommended = readers.read(
        folder, form, readers.Reading(types, stray_inside, overlaps, empty)
    )
    if o_is_silence is None:
        said = np.unique(
            np.concatenate([s.votes.ravel() for x in dataset.splits.values() for s in x])
        )
        o_is_silence = not {ABSTAIN, 0} <= set(said.tolist())
        if o_is_silence and 0 in said:
            note = (
                "no source is ever silent, so O is read as silence (data.o_is_silence: false "
                "makes it a vote for O)"
            )
            dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
    if o_is_silence:
        dataset = dataset.read_o_as_silence()
    if sources == "recommended":
        sources = recommended or dataset.sources
    elif sources == "all":
        sources = dataset.sources
    return dataset.select_sources(sources)

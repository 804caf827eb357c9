"""Majority votes: four conventions of which votes count, and at which level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.observations import resolve
from oneshot.chmm.labels import Ids, LabelSpace, bio_to_io, io_to_bio, io_to_bio_posteriors

Convention = Literal["plain", "bio", "io", "abstain"]


class MajorityVote:
    """The label with most votes at each token; of equals, the lowest id.

    Conventions:
        "plain": silence is a vote for O, and O wins like any label.
        "bio": votes for O count only where nobody votes for anything else.
        "io": the same, over types without B- and I-, as WRENCH does; see `labels.io_to_bio`.
        "abstain": BIO labels; O said counts as a vote, silence as none (O where all are silent).
            On files of spans, which know no O, the same as "bio".

    Args:
        labels: The label space.
        convention: One of the above.
    """

    def __init__(self, labels: LabelSpace, convention: Convention = "io") -> None:
        if convention not in get_args(Convention):
            raise ValueError(
                f"convention must be one of {', '.join(get_args(Convention))}, got {convention!r}"
            )
        self.labels = labels
        self.convention = convention

    def fit(self, sentences: Sequence[Sentence]) -> MajorityVote:
        """Nothing to learn."""
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids [T] of each sentence."""
        ids = [self._counts(s).argmax(1) for s in sentences]
        return [io_to_bio(x) for x in ids] if self.convention == "io" else ids

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Shares of the votes that count, [T, L] each."""
        counts = [self._counts(s) for s in sentences]
        shares = [x / x.sum(1, keepdims=True) for x in counts]
        return [io_to_bio_posteriors(x) for x in shares] if self.convention == "io" else shares

    def _counts(self, sentence: Sentence) -> npt.NDArray[np.int64]:
        votes = sentence.votes
        if self.convention == "plain":
            votes = np.maximum(votes, 0)
        else:
            votes = resolve(votes, o_is_silence=self.convention != "abstain")
        n_labels = len(self.labels)
        if self.convention == "io":
            votes, n_labels = bio_to_io(votes), len(self.labels.entity_types) + 1
        return (votes[:, :, None] == np.arange(n_labels)).sum(1)

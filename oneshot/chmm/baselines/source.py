"""The single source that does best on gold labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.metrics import source_scores


class BestSource:
    """The labels of one source, silence as O.

    Args:
        labels: The label space.
        sources: Names of the sources, in the order of the votes.

    Attributes:
        name: The chosen source. Set by `fit`.
    """

    def __init__(self, labels: LabelSpace, sources: Sequence[str]) -> None:
        self.labels = labels
        self.sources = tuple(sources)
        self.name: str | None = None

    def fit(self, sentences: Sequence[Sentence]) -> BestSource:
        """Chooses by entity F1; of equals, the first. The only baseline that needs gold."""
        scores = source_scores(self.labels, self.sources, sentences)
        self.name = max(self.sources, key=lambda name: scores[name]["micro"].f1)
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids [T] of each sentence."""
        if self.name is None:
            raise RuntimeError("no source is chosen yet: call fit first")
        column = self.sources.index(self.name)
        return [np.maximum(s.votes[:, column], 0) for s in sentences]

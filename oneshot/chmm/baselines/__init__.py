"""Label models to compare with: votes, a classical HMM, Dawid-Skene, Snorkel, skweak, one source.

All are used alike (`LabelModel`); `fit` looks at no gold, but for the best single source. Those
with probabilities also have `posteriors(sentences)`, [T, L] for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids


class LabelModel(Protocol):
    """What every baseline can do."""

    def fit(self, sentences: Sequence[Sentence]) -> Any:
        """Learns from the votes; returns itself."""

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids [T] of each sentence."""

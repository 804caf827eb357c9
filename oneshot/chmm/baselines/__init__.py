"""Label models to compare with: votes, a classical HMM, Dawid-Skene, Snorkel, skweak, one source.

All are used alike (`LabelModel`); `fit` looks at no gold, but for the best single source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from oneshot.chmm.data import Sentence
from oneshot.chmm.labels import Ids


class LabelModel(Protocol):
    """What every baseline can do. Those with probabilities also have `posteriors`, [T, L] each."""

    def fit(self, sentences: Sequence[Sentence]) -> Any:
        """Learns from the votes; returns itself."""

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids [T] of each sentence."""


class ProbabilisticLabelModel(LabelModel, Protocol):
    """A baseline with probabilities."""

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Probabilities of the labels, [T, L] each."""

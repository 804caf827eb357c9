"""Dawid and Skene 1979: every source has its confusion matrix, tokens are independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oneshot.chmm.baselines.tokens import by_sentence, io_table
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import ABSTAIN, Ids, LabelSpace, io_to_bio, io_to_bio_posteriors


class DawidSkene:
    """EM for class shares and confusion matrices, on IO labels of tokens (see `tokens`).

    Args:
        labels: The label space.
        iterations: At most so many steps of EM.
        tolerance: Stop when a step gains less log-likelihood, in nats per token.
        smoothing: Pseudo-count of every entry of a confusion matrix.

    Attributes:
        prior: [C], shares of the C = E + 1 classes. Set by `fit`, as is
        confusion: [S, C, C]: p(source says j | class i, it does not abstain).
        history: Objective after each step as in `hmm.ClassicalHMM`.

    Source:
        Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM
        algorithm", equations 2.3-2.5.
    """

    def __init__(
        self,
        labels: LabelSpace,
        *,
        iterations: int = 100,
        tolerance: float = 1e-6,
        smoothing: float = 0.01,
    ) -> None:
        self.labels = labels
        self.iterations = iterations
        self.tolerance = tolerance
        self.smoothing = smoothing
        self.prior: npt.NDArray[np.float64] | None = None
        self.confusion: npt.NDArray[np.float64] = np.empty(0)
        self.history: list[float] = []

    def fit(self, sentences: Sequence[Sentence]) -> DawidSkene:
        """EM from the majority vote; gold is not looked at."""
        # tokens with the same votes are one row with a weight: a few dozen of a hundred thousand
        table, weight = np.unique(io_table(sentences), axis=0, return_counts=True)
        classes = np.arange(len(self.labels.entity_types) + 1)
        said = (table[:, :, None] == classes).astype(np.float64)  # [N, S, C]
        posterior = said.sum(1) / said.sum((1, 2))[:, None]
        self.history = []
        for _ in range(self.iterations):
            expected = posterior * weight[:, None]
            self.prior = expected.sum(0) / weight.sum()
            counts = np.einsum("ni,nsj->sij", expected, said) + self.smoothing
            self.confusion = counts / counts.sum(-1, keepdims=True)
            posterior, log_likelihood = self._posterior(table)
            objective = (log_likelihood * weight).sum()
            objective += self.smoothing * np.log(self.confusion).sum()
            self.history.append(float(objective / weight.sum()))
            if len(self.history) > 1 and self.history[-1] - self.history[-2] < self.tolerance:
                break
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """The most probable label of each token, [T] of each sentence."""
        return [io_to_bio(p.argmax(1)) for p in self._by_sentence(sentences)]

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Probabilities of the labels given the votes on the token, [T, L] each."""
        return [io_to_bio_posteriors(p) for p in self._by_sentence(sentences)]

    def _by_sentence(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        table, inverse = np.unique(io_table(sentences), axis=0, return_inverse=True)
        return by_sentence(self._posterior(table)[0][inverse], sentences)

    def _posterior(self, table: Ids) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """p(class | votes) [N, C] and log p(votes) [N]."""
        if self.prior is None:
            raise RuntimeError("the model is not fitted yet: call fit first")
        with np.errstate(divide="ignore"):
            score = np.tile(np.log(self.prior), (len(table), 1))
            log_confusion = np.log(self.confusion)
        for s, votes in enumerate(table.T):
            speaks = votes != ABSTAIN
            score[speaks] += log_confusion[s, :, votes[speaks]]
        log_likelihood = np.logaddexp.reduce(score, axis=1)
        return np.exp(score - log_likelihood[:, None]), log_likelihood

"""Snorkel's LabelModel on the IO labels of tokens, as the WRENCH benchmark uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oneshot.chmm.baselines.tokens import by_sentence, io_table
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids, LabelSpace, io_to_bio, io_to_bio_posteriors


class Snorkel:
    """`snorkel.labeling.model.LabelModel` (Ratner et al. 2019); needs at least 3 sources.

    Args:
        labels: The label space.
        seed: Of its initialisation. The state of torch's own generator stays as it is.
        options: Passed to `LabelModel.fit`, such as n_epochs (100), lr (0.01), l2, prec_init.

    Raises:
        ImportError: snorkel is not installed.
    """

    def __init__(self, labels: LabelSpace, *, seed: int = 0, **options: Any) -> None:
        try:
            from snorkel.labeling.model import LabelModel
        except ImportError as error:
            raise ImportError("the Snorkel baseline needs `pip install 'snorkel>=0.10'`") from error
        self.labels = labels
        self.options = {"progress_bar": False, **options, "seed": seed}
        self.model = LabelModel(cardinality=len(labels.entity_types) + 1, verbose=False)

    def fit(self, sentences: Sequence[Sentence]) -> Snorkel:
        """Learns the accuracies of the sources; gold is not looked at."""
        with torch.random.fork_rng(devices=[]):
            self.model.fit(io_table(sentences), **self.options)
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """The most probable label of each token, [T] of each sentence."""
        return [io_to_bio(p.argmax(1)) for p in self._by_sentence(sentences)]

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Probabilities of the labels given the votes on the token, [T, L] each."""
        return [io_to_bio_posteriors(p) for p in self._by_sentence(sentences)]

    def _by_sentence(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        return by_sentence(self.model.predict_proba(io_table(sentences)), sentences)

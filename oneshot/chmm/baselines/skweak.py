"""skweak's HMM (Lison et al. 2021), through spaCy documents."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oneshot.chmm.baselines.tokens import require_sentences
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids, LabelSpace

_NAME = "oneshot"  # of the span group skweak writes


class Skweak:
    """`skweak.generative.HMM`: constant parameters, EM, sources weighted by redundancy.

    It reads spans only: O and silence are the same to it, a silent source votes for O, and a source
    without any span in a sentence is left out of it.

    Args:
        labels: The label space.
        sources: Names of the sources, in the order of the votes; skweak takes sources of like
            names to be redundant.
        iterations: Steps of EM.
        options: Passed to HMM, such as prefixes ("BIO"), initial_weights, redundancy_factor (0.1).

    Raises:
        ImportError: skweak is not installed.
    """

    def __init__(
        self, labels: LabelSpace, sources: Sequence[str], *, iterations: int = 4, **options: Any
    ) -> None:
        try:
            from skweak.generative import HMM
        except ImportError as error:
            raise ImportError("the skweak baseline needs `pip install skweak`") from error
        self.labels = labels
        self.sources = tuple(sources)
        self.iterations = iterations
        self.model = HMM(_NAME, list(labels.entity_types), **options)

    def fit(self, sentences: Sequence[Sentence]) -> Skweak:
        """EM on the votes; gold is not looked at. A ValueError where there is no sentence."""
        require_sentences(sentences)
        silence = io.StringIO()  # it reports by print, and hmmlearn on stderr
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            self.model.fit(self._documents(sentences), n_iter=self.iterations)
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids [T] of each sentence."""
        return [
            self.labels.from_spans(
                [(span.start, span.end, span.label_) for span in doc.spans[_NAME]], len(doc)
            )
            for doc in self.model.pipe(self._documents(sentences))
        ]

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Probabilities of the labels, [T, L] each; skweak drops those under 0.1."""
        result = []
        for doc in self.model.pipe(self._documents(sentences)):
            p = np.zeros((len(doc), len(self.labels)))
            for t, of_token in doc.spans[_NAME].attrs.get("probs", {}).items():
                for name, probability in of_token.items():
                    p[t, self.labels.ids[name]] = probability
            p[:, 0] = 1 - p[:, 1:].sum(1)
            result.append(p)
        return result

    def _documents(self, sentences: Sequence[Sentence]) -> list[Any]:
        from spacy.tokens import Doc, Span
        from spacy.vocab import Vocab

        vocab = Vocab()
        documents = []
        for sentence in sentences:
            doc = Doc(vocab, list(sentence.tokens))
            for s, name in enumerate(self.sources):
                spans = self.labels.to_spans(sentence.votes[:, s])
                doc.spans[name] = [Span(doc, x.start, x.end, x.type) for x in spans]
            documents.append(doc)
        return documents

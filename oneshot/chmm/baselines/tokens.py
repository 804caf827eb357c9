"""Sentences as a table of tokens, for label models that know no sequences.

They work on IO ids under the abstention rule of WRENCH: where a source finds an entity, those that
say O or nothing abstain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.observations import resolve
from oneshot.chmm.labels import Ids, bio_to_io


def require_sentences(sentences: Sequence[Sentence]) -> None:
    """A ValueError if there is nothing to learn from."""
    if not sentences:
        raise ValueError("sentences must be at least one, got none")


def io_table(sentences: Sequence[Sentence]) -> Ids:
    """IO votes [tokens, S] of all sentences, `ABSTAIN` where a source says nothing.

    Raises:
        ValueError: No sentence.
    """
    require_sentences(sentences)
    return bio_to_io(resolve(np.concatenate([s.votes for s in sentences]), o_is_silence=True))


def by_sentence(
    table: npt.NDArray[np.float64], sentences: Sequence[Sentence]
) -> list[npt.NDArray[np.float64]]:
    """The rows of a table of tokens, sentence by sentence."""
    return np.split(table, np.cumsum([len(s) for s in sentences])[:-1])

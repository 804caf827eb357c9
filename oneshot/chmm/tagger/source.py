"""A tagger's predictions as one more source of the CHMM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from oneshot.chmm.config import DataConfig
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.prepare import observe
from oneshot.chmm.tagger.model import hard_labels


def with_tagger(
    examples: Examples,
    probabilities: Sequence[npt.NDArray[np.floating]],
    labels: LabelSpace,
    config: DataConfig,
    soft: bool,
) -> Examples:
    """The examples with the tagger as the last source.

    Its most probable labels, reduced to whole entities, are votes like any others: they take part
    in the abstention rule, so where it alone sees an entity the silence of the rest counts as
    little as everywhere. Rows that the rule makes (almost) silent stay so.

    Args:
        examples: Without it.
        probabilities: Of the tagger, [T, L] for each sentence.
        labels: The label space.
        config: The rule.
        soft: Observations are the probabilities after `soft_frequency`, instead of one-hot rows.
    """
    if soft:
        probabilities = [soft_frequency(p) for p in probabilities]
    votes = hard_labels(labels, probabilities)
    sentences = [
        dataclasses.replace(s, votes=np.column_stack([s.votes, ids]))
        for s, ids in zip(examples.sentences, votes, strict=True)
    ]
    observed = observe(sentences, len(labels), config)
    if soft:
        for x, p in zip(observed, probabilities, strict=True):
            speaks = x[:, -1].amax(-1, keepdim=True) == 1
            x[:, -1] = torch.where(speaks, torch.from_numpy(p), x[:, -1])
    return Examples(sentences, examples.embeddings, observed)


def soft_frequency(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """p^2 / (sum of p over the sentence), rows normalised again: surer, and fairer to rare labels.

    Source: Xie, Girshick and Farhadi 2016 (DEC), equation 3, inside each sentence.
    """
    p = probabilities.astype(np.float64)
    weighted = p**2 / p.sum(0)
    return (weighted / weighted.sum(1, keepdims=True)).astype(np.float32)

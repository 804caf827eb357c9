"""Where a CHMM starts: start, transition and emission matrices from votes and priors, no gold.

The recipe is that of Lison et al. 2020 as the authors of CHMM use it, without three quirks of their
code: transition rows are the counts themselves, not a draw from a Dirichlet distribution around
them; the pseudo-counts go to every pair of labels that BIO allows (I-x to O and to B- got none);
and the pseudo-count of a type a source knows goes to that type's labels (it fell one column to the
left). A probability of 0 becomes 1e-6, since no gradient leads away from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot.chmm.config import InitialConfig
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.model import CHMM

Floats = npt.NDArray[np.float64]

ELSEWHERE = 0.01  # start probability of each label but O
SAME_TYPE, SAME_PREFIX = 5.0, 2.0  # how much likelier confusions inside a type, a prefix are
FLOOR = 1e-6


@dataclass(frozen=True)
class Matrices:
    """Probabilities, all positive, rows that sum to 1: [L], [L, L] and [S, L, L]."""

    start: Floats
    transitions: Floats
    emissions: Floats


def initial_matrices(
    labels: LabelSpace,
    votes: Sequence[Ids],
    sources: Sequence[str],
    config: InitialConfig,
    priors: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Matrices:
    """Matrices to start from.

    Args:
        labels: The label space.
        votes: Label ids [T, S] of the sentences of train and valid; silence counts as O.
        sources: Names of the S sources.
        config: Priors of those types that have none below, and of O.
        priors: {source: {type: (precision, recall)}}; `config.priors` wins.
    """
    told = [np.maximum(v, 0) for v in votes]
    counts = sum(np.stack([np.bincount(c, minlength=len(labels)) for c in v.T]) for v in told)
    emissions = []
    for name, count in zip(sources, np.asarray(counts, np.float64), strict=True):
        pairs = {**(priors or {}).get(name, {}), **config.priors.get(name, {})}
        emissions.append(_emissions(labels, count, pairs, config))
    return Matrices(_start(labels), _transitions(labels, told), np.stack(emissions))


def initialise(model: CHMM, matrices: Matrices, *, networks: bool = True) -> None:
    """Puts a model at some matrices.

    Args:
        model: Is changed in place.
        matrices: In the model's sizes.
        networks: Also the networks, by their biases; False leaves them random, to be pretrained.
    """
    start, transitions, emissions = (
        torch.from_numpy(x).log().to(model.start)
        for x in (matrices.start, matrices.transitions, matrices.emissions)
    )
    with torch.no_grad():
        model.start.copy_(start)
    model.transitions.start_at(_rows_for(model, transitions)[None], networks)
    model.emissions.start_at(emissions, networks)


def _rows_for(model: CHMM, log_transitions: Tensor) -> Tensor:
    """All rows for a Markov chain; else one: the distribution the chain settles at."""
    if model.config.markov:
        return log_transitions
    power = torch.linalg.matrix_power(log_transitions.double().exp(), 2**20)
    return power[:1].log().to(log_transitions)


def _start(labels: LabelSpace) -> Floats:
    start = np.full(len(labels), ELSEWHERE)
    start[0] = 1 - ELSEWHERE * (len(labels) - 1)
    return start


def _transitions(labels: LabelSpace, told: Sequence[Ids]) -> Floats:
    """Pairs of neighbouring labels of all sources; a sentence begins after an O."""
    size = len(labels)
    counts = labels.legal_transitions.astype(np.float64)
    for votes in told:
        before = np.vstack([np.zeros_like(votes[:1]), votes[:-1]])
        counts += np.bincount((before * size + votes).ravel(), minlength=size**2).reshape(
            size, size
        )
    return _stochastic(counts / counts.sum(1, keepdims=True))


def _emissions(
    labels: LabelSpace,
    count: Floats,
    priors: Mapping[str, tuple[float, float]],
    config: InitialConfig,
) -> Floats:
    """One source: recalls on the diagonal, the rest spread by precisions and frequencies."""
    size = len(labels)
    precision, recall = np.ones(size), np.zeros(size)  # of a type the source never gives
    precision[0], recall[0] = config.out_precision, config.out_recall
    known = np.zeros(size, bool)
    known[0] = True
    for number, name in enumerate(labels.entity_types):
        both = slice(2 * number + 1, 2 * number + 3)
        if count[both].any():
            known[both] = True
            precision[both], recall[both] = priors.get(name, (config.precision, config.recall))
    frequency = (count + known) / (count + known).sum()

    rest = np.outer(1 - recall, (1 - precision) * (0.001 + frequency))
    kind = (np.arange(size) + 1) // 2
    prefix = np.where(kind > 0, 1 + np.arange(size) % 2, 0)
    same_type = kind[:, None] == kind
    rest[same_type] *= SAME_TYPE
    rest[~same_type & (prefix[:, None] == prefix)] *= SAME_PREFIX
    np.fill_diagonal(rest, 0)
    rest *= ((1 - recall) / (rest.sum(1) + 1e-5))[:, None]
    return _stochastic(rest + np.diag(recall))


def _stochastic(rows: Floats) -> Floats:
    rows = np.maximum(rows, FLOOR)
    return rows / rows.sum(1, keepdims=True)

"""Where a CHMM starts: start, transition and emission matrices from votes and priors, no gold.

The recipe is that of Lison et al. 2020 as the authors of CHMM use it, without three quirks of their
code: transition rows are the counts themselves, not a draw from a Dirichlet distribution around
them; the pseudo-counts go to every pair of labels that BIO allows (I-x to O and to B- got none);
and the pseudo-counts of what a source says go to every label (they fell one column to the left). A
probability of 0 becomes 1e-6, since no gradient leads away from 0.

Every source has priors for every type, by default 0.7 even for types it never names. That matters:
were the recall of a type 0 there, the source's silence would speak against that type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot.chmm.config import InitialConfig
from oneshot.chmm.label_model.batches import Examples, collate, shuffled
from oneshot.chmm.label_model.networks import Mixed
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.model import CHMM
from oneshot.training.seeding import derive_seed

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
    said = [np.maximum(v, 0) for v in votes]
    counts = sum(np.stack([np.bincount(c, minlength=len(labels)) for c in v.T]) for v in said)
    emissions = []
    for name, count in zip(sources, np.asarray(counts, np.float64), strict=True):
        pairs = {**(priors or {}).get(name, {}), **config.priors.get(name, {})}
        emissions.append(_emissions(labels, count, pairs, config))
    if config.transitions == "vote":
        said = [_majority(v, len(labels)) for v in votes]
    return Matrices(_start(labels), _transitions(labels, said), np.stack(emissions))


def start(
    model: CHMM,
    matrices: Matrices,
    train: Examples,
    config: InitialConfig,
    batch_size: int,
    seed: int,
) -> list[float]:
    """Puts a model at its initial matrices.

    Method "bias" is exact: weights 0, biases the logs of the matrices. "pretrain" leaves the
    weights random and lets Adam reduce the squared error of the networks' output (the paper's way;
    embeddings of small norm need many more than its 5 epochs).

    Args:
        model: Changed in place.
        matrices: In the model's sizes.
        train: Embeddings to pretrain on.
        config: Method, epochs and learning rate.
        batch_size: Sentences per update.
        seed: Of their order.

    Returns:
        The mean squared error of each epoch of pretraining; empty for method "bias".
    """
    by_bias = config.method == "bias"
    with torch.no_grad():
        model.start.copy_(torch.from_numpy(matrices.start).log())
    transitions = torch.from_numpy(matrices.transitions)
    if not model.config.markov:  # one row: the distribution the chain settles at
        transitions = torch.linalg.matrix_power(transitions, 2**20)[:1]
    targets = [
        (model.transitions, transitions[None].to(model.start)),
        (model.emissions, torch.from_numpy(matrices.emissions).to(model.start)),
    ]
    for part, target in targets:
        part.start_at(target.log(), network=by_bias)
    return [] if by_bias else _pretrain(model, targets, train, config, batch_size, seed)


def _pretrain(
    model: CHMM,
    targets: Sequence[tuple[Mixed, Tensor]],
    train: Examples,
    config: InitialConfig,
    batch_size: int,
    seed: int,
) -> list[float]:
    networks = [(part.network, target) for part, target in targets if part.network is not None]
    if not networks:
        return []
    trained = [p for network, _ in networks for p in network.parameters()]
    optimizer = torch.optim.Adam(trained, lr=config.pretrain_lr, weight_decay=1e-5)
    lengths, errors = [len(x) for x in train.embeddings], []
    for epoch in range(1, config.pretrain_epochs + 1):
        total = 0.0
        for rows in shuffled(lengths, batch_size, derive_seed(seed, "pretraining", epoch)):
            embeddings = collate(train, rows).embeddings.to(model.device)
            loss = torch.stack(
                [
                    (network(embeddings).unflatten(-1, target.shape).softmax(-1) - target)
                    .square()
                    .mean()
                    for network, target in networks
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(embeddings)
        errors.append(total / sum(lengths))
    return errors


def _start(labels: LabelSpace) -> Floats:
    start = np.full(len(labels), ELSEWHERE)
    start[0] = 1 - ELSEWHERE * (len(labels) - 1)
    return start


def _transitions(labels: LabelSpace, said: Sequence[Ids]) -> Floats:
    """Pairs of neighbouring labels in each column [T, ...]; a sentence begins after an O."""
    size = len(labels)
    counts = labels.legal_transitions.astype(np.float64)
    for votes in said:
        before = np.vstack([np.zeros_like(votes[:1]), votes[:-1]])
        counts += np.bincount((before * size + votes).ravel(), minlength=size**2).reshape(
            size, size
        )
    return _stochastic(counts / counts.sum(1, keepdims=True))


def _majority(votes: Ids, size: int) -> Ids:
    """[T, 1]: the label with most votes that are not silence or O, else O."""
    counts = (votes[:, :, None] == np.arange(size)).sum(1)
    counts[:, 0] = 0
    return counts.argmax(1)[:, None]


def _emissions(
    labels: LabelSpace,
    count: Floats,
    priors: Mapping[str, tuple[float, float]],
    config: InitialConfig,
) -> Floats:
    """One source: recalls on the diagonal, the rest spread by precisions and frequencies."""
    size = len(labels)
    pairs = [priors.get(name, (config.precision, config.recall)) for name in labels.entity_types]
    by_label = [(config.out_precision, config.out_recall), *np.repeat(pairs, 2, axis=0)]
    precision, recall = np.transpose(by_label)
    frequency = (count + 1) / (count + 1).sum()

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

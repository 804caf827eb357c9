"""What the routing of trained adapters says about the skills that tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from oneshot.poly import storage
from oneshot.poly.experiments.compositional.string_tasks import Composition
from oneshot.poly.plots import task_distances
from oneshot.poly.router import Router


def routing_correlation(weights: torch.Tensor, tasks: Sequence[Composition]) -> float:
    """Rank correlation of the distance of two tasks' routing with the number of shared skills.

    Args:
        weights: [groups, tasks, heads, skills].
        tasks: The tasks.

    Returns:
        -1 where tasks are routed the closer the more skills they share.
    """
    a, b = torch.triu_indices(len(tasks), len(tasks), offset=1)
    shared = [tasks[i].shared(tasks[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    return rank_correlation(task_distances(weights)[a, b], torch.tensor(shared))


def read_weights(checkpoint: Path) -> torch.Tensor | None:
    """Routing of saved adapters, [groups, tasks, heads, skills]; None if it is not learned."""
    logits = load_file(checkpoint / storage.TENSORS).get("router.logits")
    if logits is None:
        return None
    router = Router(storage.read_config(checkpoint), len(logits))
    assert router.logits is not None
    router.logits.data = logits
    return router.weights()


def rank_correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Spearman's rank correlation of two vectors; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(x.numpy(), y.numpy()).statistic)


def scaled(distances: torch.Tensor) -> torch.Tensor:
    """Points in the plane that keep distances [n, n] as well as two axes can: [n, 2].

    Source:
        Classical multidimensional scaling (Torgerson 1952).
    """
    squares = distances.double().square()
    centred = squares - squares.mean(0) - squares.mean(1, keepdim=True) + squares.mean()
    values, vectors = torch.linalg.eigh(-centred / 2)
    return vectors[:, -2:] * values[-2:].clamp(min=0).sqrt()

"""Every path of a small chain, one by one, in float64: no recursion, and autograd can follow."""

from __future__ import annotations

import itertools

import torch


class Enumeration:
    """One sequence of n >= 1 steps: init [K], trans [n-1, K, K] (source first), emit [n, K]."""

    def __init__(self, init, trans, emit, final=None):
        steps, self.states = emit.shape
        self.paths = torch.tensor(list(itertools.product(range(self.states), repeat=steps)))
        score = init[self.paths[:, 0]] + emit[torch.arange(steps), self.paths].sum(1)
        score = score + trans[torch.arange(steps - 1), self.paths[:, :-1], self.paths[:, 1:]].sum(1)
        self.score = score if final is None else score + final[self.paths[:, -1]]
        self.log_partition = self.score.logsumexp(0)
        self.probability = (self.score - self.log_partition).exp()

    @property
    def gamma(self):
        return torch.einsum("p,ptk->tk", self.probability, self._one_hot)

    @property
    def xi(self):
        return torch.einsum(
            "p,pti,ptj->tij", self.probability, self._one_hot[:, :-1], self._one_hot[:, 1:]
        )

    @property
    def entropy(self):
        p = self.probability
        return -torch.where(
            p > 0, p * torch.where(p > 0, self.score - self.log_partition, 0), 0
        ).sum()

    @property
    def best(self):
        return self.paths[self.score.argmax()]

    @property
    def _one_hot(self):
        return torch.nn.functional.one_hot(self.paths, self.states).to(self.probability)


def padded(rows, size):
    """Rows of different length as one tensor, zeros behind their end."""
    rows = [torch.cat((row, row.new_zeros(size - len(row), *row.shape[1:]))) for row in rows]
    return torch.stack(rows)


def edge_chains(edges, lengths):
    """Enumerations of the sequences that destination-first edge potentials describe."""
    states = edges.shape[-1]
    return [
        Enumeration(
            edges.new_zeros(states),
            edges[row, : length - 1].mT,
            edges.new_zeros(length, states),
        )
        for row, length in enumerate(lengths)
    ]

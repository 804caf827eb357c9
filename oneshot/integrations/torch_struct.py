"""Linear chains with the interface of torch-struct, on the hmm ops.

``from torch_struct import LinearChainCRF`` becomes
``from oneshot.integrations.torch_struct import LinearChainCRF``.

What differs: the caller's tensors stay as they were (torch-struct sets their ``requires_grad``),
-inf is -inf (not -1e9), nothing past a sequence's length is read, no sequence has to fill all N
tokens, and N may be 1. `kmax`, `topk` and `gumbel_crf` are not offered.

New code that thinks in initial, transition and emission potentials uses :class:`LinearChain`,
without folding anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from oneshot.integrations.linear_chain import LinearChain, at_most_zero, check_states

__all__ = ["LinearChain", "LinearChainCRF", "Parts"]


def _mean_score(
    marginals: torch.Tensor, edges: torch.Tensor, subtracted: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean score of a path under `edges` (less that under `subtracted`), [B], given its marginals.

    `marginals` have the source first, `edges` the destination.
    """
    marginals = marginals.transpose(-1, -2)
    # Where no path goes the score may be -inf (or garbage, past the length).
    reached = marginals > 0
    score = torch.where(reached, edges.double(), 0)
    if subtracted is not None:
        score = score - torch.where(reached, subtracted.double(), 0)
    return (marginals * score).sum((1, 2, 3))


class Parts:
    """Between paths and *parts*: indicators of edges, destination first, [..., N-1, C, C]."""

    @staticmethod
    def to_parts(
        sequence: torch.Tensor, extra: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Edges of paths.

        Args:
            sequence: int64 [..., B, N], states in [0, C); past the length anything.
            extra: C, the number of states.
            lengths: int64 [B], tokens of each sequence; default: N.

        Returns:
            int64 [..., B, N-1, C, C]: 1 at ``[..., b, t, sequence[b, t+1], sequence[b, t]]`` for
            each edge within the length, else 0.

        Raises:
            ValueError: A state outside [0, C) within the length.
        """
        tokens = sequence.shape[-1]
        position = torch.arange(tokens, device=sequence.device)
        if lengths is not None:
            sequence = torch.where(position < lengths.unsqueeze(-1), sequence, 0)
        check_states("sequence", sequence, 0, extra, "within the length", ValueError)
        source, destination = sequence[..., :-1], sequence[..., 1:]
        parts = sequence.new_zeros((*source.shape, extra * extra))
        present = torch.ones_like(source)
        if lengths is not None:
            present = present * (position[1:] < lengths.unsqueeze(-1))
        parts.scatter_(-1, (destination * extra + source).unsqueeze(-1), present.unsqueeze(-1))
        return parts.unflatten(-1, (extra, extra))

    @staticmethod
    def from_parts(edge: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Paths of edges; the inverse of :meth:`to_parts` but for sequences of one token.

        Args:
            edge: [..., N-1, C, C], not 0 where the path goes.

        Returns:
            The path, int64 [..., N], 0 past its end; and C.
        """
        present = edge != 0
        destination = present.any(-1).long().argmax(-1)
        first = present[..., :1, :, :].any(-2).long().argmax(-1)
        if edge.shape[-3] == 0:
            first = edge.new_zeros((*edge.shape[:-3], 1), dtype=torch.int64)
        return torch.cat((first, destination), -1), edge.shape[-1]


class LinearChainCRF(Distribution):
    """Distribution over paths given by edge potentials; the class of this name in torch-struct.

    An event is a path as *parts* (see :class:`Parts`). Initial, final and emission scores are part
    of the edges: the first token's belong into edge 0. Everything but `argmax`, `count` and
    `sample` is differentiable, `marginals` and `entropy` included.

    Args:
        log_potentials: Destination first, [B, N-1, C, C]: entry ``[b, t, j, i]`` scores state i at
            token t followed by state j at token t + 1.
        lengths: int64 [B], *tokens* of each sequence (one more than its edges); default: N.
        args: Unused, as in torch-struct.

    Raises:
        ValueError: `log_potentials` is not [B, N-1, C, C].
    """

    struct = Parts
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        log_potentials: torch.Tensor,
        lengths: torch.Tensor | None = None,
        args: dict[str, Any] | None = None,
    ) -> None:
        if log_potentials.dim() != 4 or log_potentials.shape[2] != log_potentials.shape[3]:
            raise ValueError(
                f"log_potentials must have the shape [B, N-1, C, C], got "
                f"{list(log_potentials.shape)}"
            )
        self.log_potentials, self.lengths, self.args = log_potentials, lengths, args or {}
        super().__init__(log_potentials.shape[:1], log_potentials.shape[1:], validate_args=False)
        self._chain = self._chain_of(log_potentials)

    def _chain_of(self, edges: torch.Tensor) -> LinearChain:
        batch, count, states = edges.shape[:3]
        return LinearChain(
            edges.new_zeros(states),
            edges.transpose(-1, -2),
            edges.new_zeros(batch, count + 1, states),
            self.lengths,
        )

    @lazy_property
    def partition(self) -> torch.Tensor:
        """Log-partition function, [B]."""
        return self._chain.log_partition

    @lazy_property
    def marginals(self) -> torch.Tensor:
        """Probability of each edge, [B, N-1, C, C]; 0 past the length."""
        return self._chain.edge_marginals.transpose(-1, -2)

    @lazy_property
    def max(self) -> torch.Tensor:
        """Score of the best path, [B]."""
        return self._chain.max

    @lazy_property
    def argmax(self) -> torch.Tensor:
        """The best path as parts, [B, N-1, C, C]; all 0 where no path is possible."""
        return self._parts(self._chain.argmax)

    @property
    def mode(self) -> torch.Tensor:
        """`argmax`."""
        return self.argmax

    @lazy_property
    def count(self) -> torch.Tensor:
        """Number of possible paths, [B]: those without an edge of -inf."""
        with torch.no_grad():
            edges = self.log_potentials
            legal = torch.where(edges.isneginf(), edges, 0).double()
            count = self._chain_of(legal).log_partition.exp().round()
            return count.to(edges.dtype)

    @lazy_property
    def entropy(self) -> torch.Tensor:  # type: ignore[override]  # a method in torch
        """Entropy in nats, [B]."""
        return self._chain.entropy

    def cross_entropy(self, other: LinearChainCRF) -> torch.Tensor:
        """Expectation of ``-other.log_prob`` under this distribution, [B], by way of float64."""
        mean = _mean_score(self._wide().edge_marginals, other.log_potentials)
        return self._narrow(other._wide().log_partition - mean)

    def kl(self, other: LinearChainCRF) -> torch.Tensor:
        """Kullback-Leibler divergence of this distribution from `other`, [B], by way of float64."""
        mine, others = self._wide(), other._wide()
        difference = _mean_score(mine.edge_marginals, self.log_potentials, other.log_potentials)
        return self._narrow(difference - (mine.log_partition - others.log_partition))

    def _wide(self) -> LinearChain:
        """The chain in float64: differences of scores and partitions of many tokens cancel."""
        return self._chain_of(self.log_potentials.double())

    def _narrow(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.partition.dtype)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of paths.

        Args:
            value: Parts, `[*sample_shape, B, N-1, C, C]`; those past the length are not read.

        Returns:
            `[*sample_shape, B]`, never above 0; -inf for an impossible path. Computed in float64
            as in `LinearChain.log_prob`.
        """
        present = value != 0
        if self.lengths is not None:
            edge = torch.arange(self.log_potentials.shape[1], device=value.device)
            within = edge < (self.lengths - 1).unsqueeze(1)
            present = present & within[..., None, None]
        edges = self.log_potentials.double()
        touched = torch.where(present, edges, 0).sum((-1, -2))
        first = touched.detach().reshape(-1, *touched.shape[-2:])[:1].sum(0)
        shift = torch.where(first.isfinite(), first, 0)
        log_partition = self._chain_of(edges - shift[..., None, None]).log_partition
        score = (touched - shift).sum(-1)
        impossible = score.isneginf() | log_partition.isneginf()
        log_prob = torch.where(impossible, -torch.inf, score - log_partition)
        return self._narrow(at_most_zero(log_prob))

    def sample(
        self, sample_shape: int | Sequence[int] = (), *, seed: int | None = None
    ) -> torch.Tensor:
        """Draw independent paths.

        Args:
            sample_shape: Shape of the draws.
            seed: Of the counter-based generator; default: drawn from torch's global one.

        Returns:
            Parts, `[*sample_shape, B, N-1, C, C]`.
        """
        return self._parts(self._chain.sample(sample_shape, seed=seed))

    def _parts(self, path: torch.Tensor) -> torch.Tensor:
        """Parts of paths in the dtype of the potentials; -1 (no path) has none."""
        nowhere = (path[..., 0] < 0)[..., None, None, None]
        parts = self.to_event(path.clamp(min=0), self.log_potentials.shape[-1], self.lengths)
        return torch.where(nowhere, 0, parts).to(self.log_potentials.dtype)

    def to_event(
        self, sequence: torch.Tensor, extra: int, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Parts of a path: :meth:`Parts.to_parts`."""
        return self.struct.to_parts(sequence, extra, lengths)

    def from_event(self, event: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Path of parts: :meth:`Parts.from_parts`."""
        return self.struct.from_parts(event)

"""The hmm ops as a distribution over state paths; what the drop-in fronts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from oneshot import ops
from oneshot.ops.hmm_inputs import potentials


def draw_seed() -> int:
    """A seed from torch's global generator, so that ``torch.manual_seed`` governs sampling."""
    return int(torch.randint(2**63 - 1, ()))


def check_states(
    name: str, states: torch.Tensor, low: int, high: int, where: str, error: type[Exception]
) -> None:
    """Raise `error` unless all of `states` lie in [low, high)."""
    if states.numel() and (int(states.min()) < low or int(states.max()) >= high):
        raise error(
            f"{name} must lie in [{low}, {high}) {where}, "
            f"got {int(states.min())} to {int(states.max())}"
        )


class LinearChain:
    """Distribution over the state paths of a batch of linear-chain CRFs or HMMs.

    ``p(path) = exp(score(path) - log_partition)``; the score of a path is the sum of the potentials
    it touches. B sequences, T steps, K states. Properties are computed at each access.
    Everything but `argmax` and `sample` is differentiable in every potential.

    Args:
        log_init: [K] or [B, K].
        log_trans: Source state first: [K, K] shared, or 4-D ``[1|B, 1|T-1, K, K]``; 3-D with
            `trans_axis`.
        log_emit: [B, T, K].
        lengths: int64 [B], steps of each sequence; default: all T. Whatever lies past a sequence's
            length influences nothing.
        log_final: [K] or [B, K]; default: none.
        trans_axis: What the first axis of a 3-D `log_trans` is: "sequence" or "step".

    Raises:
        TypeError, ValueError: As :func:`oneshot.ops.hmm_log_likelihood`.
    """

    def __init__(
        self,
        log_init: torch.Tensor,
        log_trans: torch.Tensor,
        log_emit: torch.Tensor,
        lengths: torch.Tensor | None = None,
        log_final: torch.Tensor | None = None,
        *,
        trans_axis: Literal["sequence", "step"] | None = None,
    ) -> None:
        self.lengths, self.trans_axis = lengths, trans_axis
        self._inputs = (log_init, log_trans, log_emit, lengths, log_final)
        self._potentials = potentials(*self._inputs, trans_axis)

    @property
    def log_partition(self) -> torch.Tensor:
        """Log of the sum of ``exp(score)`` over all paths, [B]; -inf where no path is possible."""
        return ops.hmm_log_likelihood(*self._inputs, trans_axis=self.trans_axis)

    @property
    def marginals(self) -> torch.Tensor:
        """Probability of each state at each step, [B, T, K]; 0 past the length."""
        return ops.hmm_posteriors(*self._inputs, trans_axis=self.trans_axis).gamma

    @property
    def edge_marginals(self) -> torch.Tensor:
        """Probability of each pair of neighbouring states, [B, T-1, K, K], source first."""
        found = ops.hmm_posteriors(*self._inputs, trans_axis=self.trans_axis, xi=True)
        assert found.xi is not None
        return found.xi

    @property
    def argmax(self) -> torch.Tensor:
        """The most likely path, int64 [B, T]; -1 past the length and where no path is possible.

        The lowest state wins ties.
        """
        with torch.no_grad():
            return ops.hmm_viterbi(*self._inputs, trans_axis=self.trans_axis).path

    @property
    def max(self) -> torch.Tensor:
        """Score of `argmax`, [B]; its gradient is 1 at each potential that path touches."""
        return self.score(self.argmax)

    @property
    def entropy(self) -> torch.Tensor:
        """Entropy of the distribution over whole paths in nats, [B]."""
        return ops.hmm_entropy(*self._inputs, trans_axis=self.trans_axis)

    def sample(self, sample_shape: Sequence[int] = (), *, seed: int | None = None) -> torch.Tensor:
        """Draw independent paths.

        Args:
            sample_shape: Shape of the draws.
            seed: Of the counter-based generator; default: drawn from torch's global one.

        Returns:
            int64 `[*sample_shape, B, T]`, -1 past the length and where no path is possible.
        """
        shape = torch.Size(sample_shape)
        seed = draw_seed() if seed is None else seed
        paths = ops.hmm_sample(
            *self._inputs, trans_axis=self.trans_axis, seed=seed, num_samples=shape.numel()
        )
        return paths.view(*shape, *paths.shape[1:])

    def log_prob(self, path: torch.Tensor) -> torch.Tensor:
        """Log-probability of paths in the form :meth:`sample` returns them.

        Args:
            path: int64 `[*sample_shape, B, T]`; past the length it may hold anything.

        Returns:
            `[*sample_shape, B]`; -inf for an impossible path.
        """
        score = self.score(path)
        # An impossible sequence has partition -inf: its paths stay at -inf instead of NaN.
        return torch.where(score.isneginf(), -torch.inf, score - self.log_partition)

    def score(self, path: torch.Tensor) -> torch.Tensor:
        """Sum of the potentials that each path touches.

        Args:
            path: int64 `[*sample_shape, B, T]`; past the length it may hold anything.

        Returns:
            `[*sample_shape, B]`; -inf for a path with a -1 within the length, as `argmax` and
            :meth:`sample` return it for an impossible sequence.

        Raises:
            TypeError: `path` is not int64.
            ValueError: `path` has the wrong shape, or a state outside [-1, K) within the length.
        """
        log_init, log_trans, log_emit, lengths, log_final = self._potentials
        batch, steps, states = log_emit.shape
        if path.dtype != torch.int64:
            raise TypeError(f"path must be int64, got {path.dtype}")
        if path.dim() < 2 or path.shape[-2:] != (batch, steps):
            raise ValueError(f"path must end in {[batch, steps]}, got the shape {list(path.shape)}")
        step = torch.arange(steps, device=path.device)
        if lengths is None:
            lengths = path.new_full((batch,), steps)
        used = step < lengths.unsqueeze(1)
        path = torch.where(used, path, 0)
        check_states("path", path, -1, states, "within the length", ValueError)
        nowhere = (path < 0).any(-1)
        path = path.clamp(min=0)

        row = torch.arange(batch, device=path.device)
        ends = log_init.expand(batch, -1)[row, path[..., 0]]
        if log_final is not None:
            last = (lengths - 1).clamp(min=0).expand(path.shape[:-1]).unsqueeze(-1)
            ends = ends + log_final.expand(batch, -1)[row, path.gather(-1, last).squeeze(-1)]
        emit = log_emit[row.unsqueeze(1), step, path]
        edges = log_trans[
            row.unsqueeze(1) if log_trans.shape[0] == batch else 0,
            step[1:] - 1 if log_trans.shape[1] == steps - 1 else 0,
            path[..., :-1],
            path[..., 1:],
        ]
        total = (
            torch.where(lengths > 0, ends, 0)
            + torch.where(used, emit, 0).sum(-1)
            + torch.where(used[:, 1:], edges, 0).sum(-1)
        )
        return torch.where(nowhere, -torch.inf, total)

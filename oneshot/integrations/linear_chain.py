"""The hmm ops as a distribution over state paths; what the drop-in fronts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from oneshot import ops
from oneshot.ops._checks import as_int64, check_values
from oneshot.ops.hmm_inputs import Potentials, potentials


def draw_seed() -> int:
    """A seed from torch's global generator, so that ``torch.manual_seed`` governs sampling."""
    return int(torch.randint(2**63 - 1, ()))


def check_states(
    name: str, states: torch.Tensor, low: int, high: int, where: str, error: type[Exception]
) -> None:
    """Raise `error` unless all of `states` lie in [low, high)."""
    allowed = (states >= low) & (states < high)
    # A compiled message cannot hold a number that varies.
    bound = "the number of states" if torch.compiler.is_compiling() else high
    check_values(allowed, f"{name} must lie in [{low}, {bound}) {where}", states, error)


def at_most_zero(log_prob: torch.Tensor) -> torch.Tensor:
    """Takes the rounding off that lifts the logarithm of a probability above 0; gradient as is."""
    return log_prob - log_prob.detach().clamp(min=0)


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
        lengths: int32 or int64 [B], steps of each sequence; default: all T. Whatever lies past a
            sequence's length influences nothing.
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
        self._inputs = (log_init, log_trans, log_emit, lengths, log_final)
        self._potentials = potentials(*self._inputs, trans_axis)
        self.lengths, self.trans_axis = self._potentials.lengths, trans_axis

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

    def sample(
        self, sample_shape: int | Sequence[int] = (), *, seed: int | None = None
    ) -> torch.Tensor:
        """Draw independent paths.

        Args:
            sample_shape: Shape of the draws; a number is one dimension. A dimension may be 0.
            seed: Of the counter-based generator; default: drawn from torch's global one.

        Returns:
            int64 `[*sample_shape, B, T]`, -1 past the length and where no path is possible.
        """
        shape = torch.Size((sample_shape,) if isinstance(sample_shape, int) else sample_shape)
        if shape.numel() == 0:
            batch, steps = self._potentials.log_emit.shape[:2]
            return self._potentials.log_emit.new_empty((*shape, batch, steps), dtype=torch.int64)
        seed = draw_seed() if seed is None else seed
        paths = ops.hmm_sample(
            *self._inputs, trans_axis=self.trans_axis, seed=seed, num_samples=shape.numel()
        )
        return paths.view(*shape, *paths.shape[1:])

    def log_prob(self, path: torch.Tensor) -> torch.Tensor:
        """Log-probability of paths in the form :meth:`sample` returns them.

        Computed in float64 for every dtype, with each step's scores relative to those of the path
        (the first of several): score and log-partition grow with T and almost cancel. So the result
        of a nearly certain path keeps its digits and is never above 0.

        Args:
            path: int32 or int64 `[*sample_shape, B, T]`; past the length it may hold anything.

        Returns:
            `[*sample_shape, B]`; -inf for an impossible path.

        Raises:
            TypeError, ValueError: As :meth:`score`.
        """
        x = Potentials(
            *(y if y is None or y is self.lengths else y.double() for y in self._potentials)  # type: ignore[arg-type]
        )
        touched = _touched(x, path)
        first = touched.detach().reshape(-1, *touched.shape[-2:])[:1].sum(0)
        shift = torch.where(first.isfinite(), first, 0)
        emit = x.log_emit - shift.unsqueeze(-1)
        log_init, log_final = (y[0] if y is not None and len(y) == 1 else y for y in (x[0], x[4]))
        assert log_init is not None
        log_partition = ops.hmm_log_likelihood(log_init, x.log_trans, emit, x.lengths, log_final)
        score = (touched - shift).sum(-1)
        # An impossible sequence has partition -inf: its paths stay at -inf instead of NaN.
        log_prob = torch.where(score.isneginf(), -torch.inf, score - log_partition)
        return at_most_zero(log_prob).to(self._potentials.log_emit.dtype)

    def score(self, path: torch.Tensor) -> torch.Tensor:
        """Sum of the potentials that each path touches.

        Args:
            path: int32 or int64 `[*sample_shape, B, T]`; past the length it may hold anything.

        Returns:
            `[*sample_shape, B]`; -inf for a path with a -1 within the length, as `argmax` and
            :meth:`sample` return it for an impossible sequence.

        Raises:
            TypeError: `path` is neither int32 nor int64.
            ValueError: `path` has the wrong shape, or a state outside [-1, K) within the length.
        """
        return _touched(self._potentials, path).sum(-1)


def _touched(potentials: Potentials, path: torch.Tensor) -> torch.Tensor:
    """What each step adds to the score of a path, [*sample_shape, B, T]; 0 past the length.

    A step has its emission, the edge that leads to it, and the initial and final potential at the
    ends; -inf at every step of a path with a -1.
    """
    log_init, log_trans, log_emit, lengths, log_final = potentials
    batch, steps, states = log_emit.shape
    path = as_int64("path", path)
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
    touched = torch.where(used, log_emit[row.unsqueeze(1), step, path], 0)
    first = log_init.expand(batch, -1)[row, path[..., 0]]
    touched = touched + torch.where(used & (step == 0), first.unsqueeze(-1), 0)
    if log_final is not None:
        end = (lengths - 1).clamp(min=0).expand(path.shape[:-1]).unsqueeze(-1)
        last = log_final.expand(batch, -1)[row, path.gather(-1, end).squeeze(-1)]
        is_last = step == (lengths - 1).unsqueeze(1)
        touched = touched + torch.where(is_last, last.unsqueeze(-1), 0)
    edges = log_trans[
        row.unsqueeze(1) if log_trans.shape[0] == batch else 0,
        step[1:] - 1 if log_trans.shape[1] == steps - 1 else 0,
        path[..., :-1],
        path[..., 1:],
    ]
    edges = torch.where(used[:, 1:], edges, 0)
    touched = touched + torch.nn.functional.pad(edges, (1, 0))
    return torch.where(nowhere.unsqueeze(-1), -torch.inf, touched)

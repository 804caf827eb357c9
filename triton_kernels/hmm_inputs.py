"""How the kernels of the `hmm` family read a chain: potentials, lengths, normalised log weights.

Everything is in log space with every message normalised, so the size of log Z never meets the
digits of a posterior, -inf is exact and no state underflows. Arithmetic is in the dtype of the
inputs; +inf becomes NaN, which takes its sequence along.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import power_of_two

NEVER = tl.constexpr(float("-inf"))
MOST_STATES = 128  # that one program holds
TILE, BLOCK = 64, 32  # of a matrix with more states: own ones of a program, those it walks along


@triton.jit
def clean(x):
    """+inf has no posterior either."""
    return tl.where(x == float("inf"), float("nan"), x)


@triton.jit
def length_of(lengths, b, steps, HAS_LENGTHS: tl.constexpr):
    """Steps of a sequence, and 0 (NaN where the length lies outside [0, steps])."""
    if HAS_LENGTHS:
        length = tl.load(lengths + b)
        bad = (length < 0) | (length > steps)
        return tl.where(bad, 0, length), tl.where(bad, float("nan"), 0.0)
    return b * 0 + steps, 0.0


@triton.jit
def vector(x, row, states, k):
    """Log weights [K] of one row, -inf in lanes past the states."""
    return clean(tl.load(x + row * states + k, mask=k < states, other=NEVER))


@triton.jit
def final_of(
    log_final, b, states, k, HAS_FINAL: tl.constexpr, final_rows
):  # fmt: skip
    """Final weights of a sequence; 0 where none were given."""
    if HAS_FINAL:
        return vector(log_final, b * final_rows, states, k)
    return tl.where(k < states, 0.0, NEVER).to(log_final.dtype.element_ty)


@triton.jit
def matrix(
    log_trans, b, t, steps, states, i, j, trans_rows, HOMOGENEOUS: tl.constexpr
):  # fmt: skip
    """Log weights [I, J] that lead from states i of step t to states j of step t + 1."""
    row = b * trans_rows
    if not HOMOGENEOUS:
        row = row * (steps - 1) + t
    at = row * states * states + i[:, None] * states + j[None, :]
    inside = (i < states)[:, None] & (j < states)[None, :]
    return clean(tl.load(log_trans + at, mask=inside, other=NEVER))


@triton.jit
def shift_of(high):
    """What may be subtracted: 0 where there is nothing but -inf."""
    return tl.where(high == NEVER, 0.0, high)


@triton.jit
def highest(x):
    """The largest of a matrix, or 0 if there is nothing but -inf."""
    return shift_of(tl.max(tl.max(x, 1), 0))


@triton.jit
def normalise(x):
    """Log weights [K] that sum to one, and the log of their sum; all -inf stay all -inf."""
    shift = shift_of(tl.max(x, 0))
    log_sum = tl.log(tl.sum(tl.exp(x - shift), 0)) + shift
    return x - shift_of(log_sum), log_sum


@triton.jit
def shares(x):
    """Probabilities [K] in proportion to exp(x); all 0 where nothing is possible."""
    high = tl.max(x, 0)
    e = tl.exp(x - shift_of(high))
    return e / tl.where(high == NEVER, 1.0, tl.sum(e, 0))


class Chain(NamedTuple):
    """Dense inputs of an op, and the switches of the kernels."""

    log_init: torch.Tensor
    log_trans: torch.Tensor
    log_emit: torch.Tensor
    lengths: torch.Tensor | None
    log_final: torch.Tensor | None

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Pointers in the order of the kernels; a missing tensor is any tensor."""
        return tuple(self.log_emit if x is None else x for x in self)

    def sizes(self) -> tuple[int, int]:
        """Steps and states."""
        return self.log_emit.shape[1], self.log_emit.shape[2]

    def _switches(self) -> dict[str, int | bool]:
        """What both kinds of kernels take; ..._rows is 0 for an input that all sequences share."""
        return {
            "HAS_LENGTHS": self.lengths is not None,
            "HAS_FINAL": self.log_final is not None,
            "init_rows": int(self.log_init.shape[0] > 1),
            "final_rows": int(self.log_final is not None and self.log_final.shape[0] > 1),
            "trans_rows": int(self.log_trans.shape[0] > 1),
            "HOMOGENEOUS": self.log_trans.shape[1] == 1,
        }

    def flags(self) -> dict[str, int | bool]:
        """Switches and launch options where one program holds all states."""
        lanes = power_of_two(self.log_emit.shape[2], 2)
        warps = {64: 4, 128: 8}.get(lanes, 1 if lanes < 16 else 2)
        return {**self._switches(), "K": lanes, "num_warps": self._warps(warps)}

    def tile_flags(self) -> dict[str, int | bool]:
        """The same where it holds a tile."""
        return {**self._switches(), "TILE": TILE, "BLOCK": BLOCK, "num_warps": self._warps(4)}

    def _warps(self, warps: int) -> int:
        """Doubles take two registers each: among more threads they do not spill."""
        return 2 * warps if self.log_emit.dtype == torch.float64 else warps


def chain(
    log_init: torch.Tensor,
    log_trans: torch.Tensor,
    log_emit: torch.Tensor,
    lengths: torch.Tensor | None,
    log_final: torch.Tensor | None,
) -> Chain:
    """Dense tensors of the arguments of an op."""
    tensors = (log_init, log_trans, log_emit, lengths, log_final)
    return Chain(*(x if x is None else x.contiguous() for x in tensors))

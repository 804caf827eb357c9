"""Launches of the message passes, and of what is made from messages at every step."""

from __future__ import annotations

from typing import Any

import torch

from oneshot.triton_kernels._launch import ceil_div
from oneshot.triton_kernels.hmm_inputs import BLOCK, MOST_STATES, TILE, Chain
from oneshot.triton_kernels.hmm_messages import messages_kernel
from oneshot.triton_kernels.hmm_posteriors import pairs_kernel, states_kernel
from oneshot.triton_kernels.hmm_tiles import levels_kernel, pair_tiles_kernel, step_kernel

CHUNK = 256  # steps that one program sums; fixed, so that padding changes no bit


def warps_of(lanes: int) -> int:
    """Warps for a few vectors of so many lanes."""
    return min(max(lanes // 256, 1), 16)


class Messages:
    """Messages of all sequences, with what a gradient collects; `upstream` is that of the op."""

    dtype: torch.dtype | None = None  # of messages; None: that of the inputs

    def __init__(self, c: Chain, both: bool, upstream: Any = None, keep: bool = True):
        self.chain = c
        self.keep = keep
        self.both = both
        self.gradient = upstream is not None
        grad_log_likelihood, *self.upstream = upstream or (None,) * 4
        like = c.log_emit
        self.grad_log_likelihood = grad_log_likelihood
        self.log_likelihood = like.new_empty(like.shape[0])
        self.alpha = torch.empty_like(like, dtype=self.dtype) if keep else like
        self.beta = torch.empty_like(like, dtype=self.dtype) if both else like
        self.before = torch.empty_like(like) if self.gradient else like
        self.after = torch.empty_like(like) if self.gradient else like
        if like.shape[0]:
            self._pass(like.shape[0] * (2 if both else 1))

    def _pass(self, programs: int) -> None:
        messages_kernel[(programs,)](
            *self.chain.arguments(), self.alpha, self.beta, self.before, self.after,
            self.log_likelihood, *self._upstream(), *self.chain.sizes(), **self.chain.flags(),
            BOTH=self.both, KEEP=self.keep, GRADIENT=self.gradient, **self._upstream_flags(),
        )  # fmt: skip

    def _upstream(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.chain.log_emit if x is None else x for x in self.upstream)

    def _upstream_flags(self) -> dict[str, bool]:
        names = ("HAS_GAMMA", "HAS_XI", "HAS_XI_SUM")
        return {name: x is not None for name, x in zip(names, self.upstream, strict=True)}

    def _shared(self) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        like = self.log_likelihood
        scale = like if self.grad_log_likelihood is None else self.grad_log_likelihood
        messages = (self.alpha, self.beta, self.before, self.after, self.log_likelihood, scale)
        has_grad = self.grad_log_likelihood is not None
        return messages, {
            "HAS_LENGTHS": self.chain.lengths is not None,
            "HAS_GRAD": has_grad,
            "GRADIENT": self.gradient,
        }

    def _lengths(self) -> torch.Tensor:
        return self.chain.log_emit if self.chain.lengths is None else self.chain.lengths

    def states(self) -> torch.Tensor:
        """gamma, or the gradient of the emissions."""
        like = self.chain.log_emit
        out = torch.empty_like(like)
        messages, flags = self._shared()
        lanes = self.chain.flags()["K"]
        if out.numel():
            states_kernel[(like.shape[0] * like.shape[1],)](
                *messages, self._lengths(), out, *self.chain.sizes(), **flags, K=lanes,
                num_warps=warps_of(lanes),
            )  # fmt: skip
        return out

    def pairs(self, shared: bool, constant: bool) -> torch.Tensor:
        """Xi or the gradient of the transitions; summed over the batch, over the steps."""
        like = self.chain.log_emit
        batch, steps, states = like.shape
        chunk = CHUNK if constant else 1
        chunks = max(ceil_div(steps - 1, chunk), 1 if constant else 0)
        shared = shared and batch > 1
        over_batch = shared and not constant
        rows = 1 if over_batch else batch
        # Sums of many are float64.
        dtype = torch.float64 if shared or constant else like.dtype
        out = like.new_empty((rows, chunks, states, states), dtype=dtype)
        if out.numel():
            self._pairs(out, rows * chunks, (batch, steps, states, chunk, chunks), over_batch)
        if constant:
            out = out.sum(1, keepdim=True)
            out = out.sum(0, keepdim=True) if shared else out
        return out.to(like.dtype)

    def _pairs(
        self, out: torch.Tensor, programs: int, sizes: tuple[int, ...], over_batch: bool
    ) -> None:
        messages, flags = self._shared()
        chain_flags = self.chain.flags()
        pairs_kernel[(programs,)](
            self.chain.log_trans, self.chain.log_emit, self._lengths(), *messages,
            *self._upstream(), out, *sizes, **flags, **self._upstream_flags(),
            **{key: chain_flags[key] for key in ("trans_rows", "HOMOGENEOUS", "K", "num_warps")},
            OVER_BATCH=over_batch,
        )  # fmt: skip


class TiledMessages(Messages):
    """The same for more states than one program holds: a launch for each step."""

    dtype = torch.float64

    def _pass(self, programs: int) -> None:
        like = self.chain.log_emit
        batch, steps, states = like.shape
        message = like.new_empty((2, programs, states), dtype=torch.float64)
        value = like.new_empty((2, programs, states) if self.gradient else 0)
        totals = like.new_empty(batch, dtype=torch.float64)
        self.levels = like.new_empty((batch, steps), dtype=torch.float64)
        self.means = like.new_empty((batch, steps))
        for n in range(steps + 1):
            step_kernel[(programs, ceil_div(states, TILE))](
                *self.chain.arguments(), self.alpha, self.beta, self.before, self.after, message,
                value, totals, self.levels, self.means, self.log_likelihood, *self._upstream(),
                n, batch, *self.chain.sizes(), **self.chain.tile_flags(), BOTH=self.both,
                KEEP=self.keep, GRADIENT=self.gradient, **self._upstream_flags(),
            )  # fmt: skip
        if self.both:
            levels_kernel[(batch * steps,)](
                self.alpha, self.beta, self.before, self.after, self._lengths(), self.levels,
                self.means, *self.chain.sizes(), HAS_LENGTHS=self.chain.lengths is not None,
                GRADIENT=self.gradient,
            )  # fmt: skip

    def _pairs(
        self, out: torch.Tensor, programs: int, sizes: tuple[int, ...], over_batch: bool
    ) -> None:
        messages, flags = self._shared()
        tile_flags = self.chain.tile_flags()
        tiles = ceil_div(self.chain.sizes()[1], BLOCK)
        pair_tiles_kernel[(programs, tiles, tiles)](
            self.chain.log_trans, self.chain.log_emit, self._lengths(), *messages, self.levels,
            self.means, *self._upstream(), out, *sizes, **flags, **self._upstream_flags(),
            **{key: tile_flags[key] for key in ("trans_rows", "HOMOGENEOUS", "BLOCK")},
            OVER_BATCH=over_batch,
        )  # fmt: skip


def messages(c: Chain, both: bool, upstream: Any = None, keep: bool = True) -> Messages:
    """Run the passes in the way that fits the number of states."""
    kind = Messages if c.sizes()[1] <= MOST_STATES else TiledMessages
    return kind(c, both, upstream, keep)

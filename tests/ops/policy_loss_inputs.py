"""A ragged batch for the tests of the `policy_loss` family."""

import math

import pytest
import torch

from oneshot._load import native

INF = math.inf
needs_native = pytest.mark.skipif(native()[0] is None, reason="the native library is off")


class Batch:
    """Ragged random batch with NaN, inf and huge numbers wherever the mask is False."""

    def __init__(self, lengths, width, dtype=torch.float32, spread=0.4, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        batch = len(lengths)
        self.mask = torch.zeros(batch, width, dtype=torch.bool)
        for b, length in enumerate(lengths):
            self.mask[b, torch.randperm(width, generator=generator)[:length]] = True
        new = -draw(batch, width).abs()
        self.new = self._garbage(new, dtype)
        self.old = self._garbage(new + spread * draw(batch, width), dtype)
        self.ref = self._garbage(new + spread * draw(batch, width), dtype)
        self.entropy = self._garbage(draw(batch, width).abs(), dtype)
        self.advantages = self._garbage(draw(batch, width), dtype)
        self.advantage = draw(batch).to(dtype)
        self.weights = self._garbage(draw(batch, width).exp(), dtype)
        self.width = width

    def _garbage(self, x, dtype):
        bad = torch.tensor([math.nan, INF, -INF, -1e30, 1e30], dtype=torch.float64)
        bad = bad.repeat(x.numel() // 5 + 1)[: x.numel()].reshape(x.shape)
        return torch.where(self.mask, x, bad).to(dtype)

    def lists(self, x, leaf=False):
        """Counted tokens of each sequence as float64 scalars (leaves if asked)."""
        rows = []
        for b in range(self.mask.shape[0]):
            row = (
                x[b].double()[self.mask[b]]
                if x.dim() == 2
                else x[b].double().repeat(int(self.mask[b].sum()))
            )
            rows.append([v.clone().requires_grad_() if leaf else float(v) for v in row])
        return rows

    def scatter(self, rows):
        """Gradients of leaves back to [B, T], zero where masked."""
        out = torch.zeros(self.mask.shape, dtype=torch.float64)
        for b, row in enumerate(rows):
            out[b][self.mask[b]] = torch.tensor(
                [0.0 if v.grad is None else float(v.grad) for v in row], dtype=torch.float64
            )
        return out

    def packed(self, x):
        """The same values as flat tokens, and cu_seqlens (rows cut behind their last token)."""
        keep = torch.zeros_like(self.mask)
        for b in range(self.mask.shape[0]):
            where = self.mask[b].nonzero()
            keep[b, : int(where.max()) + 1 if len(where) else 0] = True
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), keep.sum(1).cumsum(0)])
        return x[keep], cu_seqlens

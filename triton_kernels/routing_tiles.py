"""The task tile table: rows listed mixture by mixture, in tiles of one mixture; made on the device.

The number of tiles that are used depends on the data, so the grid is an upper bound that does not:
rows / size + one for each mixture. Tiles past the end have no row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div


class Tiles(NamedTuple):
    """S groups of `repeat` adjacent rows; a group has one mixture, number U if it is not known."""

    order: torch.Tensor  # [S] groups, mixture by mixture
    starts: torch.Tensor  # [U + 1] first place of each mixture in `order`
    counts: torch.Tensor  # [U + 1] groups of each mixture
    tile_of: torch.Tensor  # [tiles] the mixture of each tile; U + 1 where there is none
    first_of: torch.Tensor  # [U + 2] first tile of each mixture
    count: int
    size: int
    repeat: int
    mixtures: int

    def table(self) -> tuple[torch.Tensor, ...]:
        """What `locate` takes."""
        return self.tile_of, self.first_of, self.order, self.starts, self.counts


def tiles_of(rows: torch.Tensor, repeat: int, mixtures: int) -> Tiles:
    """The table for mixtures `rows` [S] of groups of `repeat` rows, without a wait."""
    total = rows.numel() * repeat
    # Few rows for each mixture: small tiles; 16 is the least that a tensor core takes.
    size = 16 if total <= 32 * mixtures else 64
    ids = torch.where((rows >= 0) & (rows < mixtures), rows, mixtures)
    ordered, order = torch.sort(ids, stable=True)
    bounds = torch.arange(mixtures + 2, device=rows.device)
    starts = torch.searchsorted(ordered, bounds)
    counts = starts.diff()
    last_of = ((counts * repeat + size - 1) // size).cumsum(0)
    count = ceil_div(total, size) + mixtures + 1
    tiles = torch.arange(count, device=rows.device)
    tile_of = torch.searchsorted(last_of, tiles, right=True)
    first_of = torch.cat((last_of.new_zeros(1), last_of))
    return Tiles(order, starts, counts, tile_of, first_of, count, size, repeat, mixtures)


@triton.jit
def locate(
    tile, tile_of, first_of, order, starts, counts, repeat, mixtures, ROWS: tl.constexpr
):  # fmt: skip
    """The mixture of a tile, its rows, and which of them exist."""
    u = tl.load(tile_of + tile)
    used = u <= mixtures
    u = tl.where(used, u, mixtures)
    local = (tile - tl.load(first_of + u)) * ROWS + tl.arange(0, ROWS)
    inside = local < tl.where(used, tl.load(counts + u) * repeat, 0)
    group = tl.load(order + tl.load(starts + u) + local // repeat, mask=inside, other=0)
    return u, group * repeat + local % repeat, inside

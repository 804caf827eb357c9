"""The head without logits: `hidden @ weight.T` in tiles, folded by the `logprob` kernels.

A tile is a block of rows against a range of the vocabulary. The vocabulary is the outer loop: the
weight is read once, its gradient is complete after one range and never leaves that loop in float32,
and only the gradient of the hidden states, which is small, is added up across ranges.

Behind its logits a tile has one spare column that holds `FLOOR`. Targets of other tiles point to
it: the kernels count their gradient in the sum of the row and write it into that column, which no
product reads. The column also gives a maximum to a tile that is -inf everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from oneshot.ops.linear_logprob_merge import (
    COUNT,
    ENTROPY,
    FIELDS,
    FLOOR,
    HIGH,
    LOGITS,
    MEAN,
    SQUARES,
    TOP,
    TOTAL,
    merge,
    merge_over_ranks,
    process_group,
)

LEAST_COLUMNS = 1024  # narrower products waste a core
COLUMN_STEP = 128  # whole panels of a matrix product
ALIGNMENT = 32  # elements between the beginnings of rows: whole vectors, aligned products
LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453


class Transform(NamedTuple):
    """From products to logits: v = scale y, or c tanh(scale y / c); the softmax is of v / T."""

    temperature: float
    logit_scale: float
    softcap: float  # 0: none

    @property
    def divisor(self) -> float:
        """What the tile's entries are divided by inside the softmax."""
        return self.temperature if self.softcap else self.temperature / self.logit_scale


class Extras(NamedTuple):
    """Which outputs beyond log-probabilities and entropy are wanted."""

    log_sum_sq_probs: bool
    mean_logits: bool
    is_top1: bool


class Shard(NamedTuple):
    """Which part of the vocabulary the weight holds, and whose the other parts are."""

    group: str | None
    start: int
    vocab: int  # of all shards


class Kept(NamedTuple):
    """The tokens that count, of the rows that count: a mask, or a list of (row, token)."""

    mask: torch.Tensor | None  # [1 or rows, V]
    rows: torch.Tensor | None
    ids: torch.Tensor | None

    def apply(self, tile: torch.Tensor, rows: slice, columns: slice, value: float) -> None:
        """Write `value` over every other token of a tile."""
        if self.mask is not None:
            block = self.mask if len(self.mask) == 1 else self.mask[rows]
            tile.masked_fill_(~block[:, columns], value)
        elif self.rows is not None and self.ids is not None:
            inside = (self.rows >= rows.start) & (self.rows < rows.stop)
            inside &= (self.ids >= columns.start) & (self.ids < columns.stop)
            place = (self.rows[inside] - rows.start, self.ids[inside] - columns.start)
            saved = tile[place]
            tile.fill_(value)
            tile[place] = saved


def tile_dtype(hidden: torch.Tensor, soft_capped: bool) -> torch.dtype:
    """Dtype of logits in a tile: float32 where the device multiplies halves into it.

    On the CPU products of bfloat16 are rounded to it, as `torch.nn.functional.linear` rounds them;
    soft-capping, and float16 with its short range, go on in float32.
    """
    if hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" and not soft_capped:
        return torch.bfloat16
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Head:
    """One call: the rows that count, the shard of the weight, and what lies between them."""

    hidden: torch.Tensor  # [n, D]
    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None
    targets: torch.Tensor  # [n, k], ids of the whole vocabulary
    kept: Kept | None
    transform: Transform
    shard: Shard
    dtype: torch.dtype  # of a tile
    tile_bytes: int

    @property
    def real(self) -> torch.dtype:
        """Dtype of sums and results."""
        return torch.float64 if self.hidden.dtype == torch.float64 else torch.float32

    @property
    def divisor(self) -> float:
        """The transform's, as float32 kernels round it: tiles and their merger mean the same."""
        if self.real == torch.float64:
            return self.transform.divisor
        return 1 / (torch.tensor(LOG2E / self.transform.divisor).item() * LN2)

    def tiles(self) -> Iterator[tuple[slice, list[slice]]]:
        """Ranges of the vocabulary, each with its blocks of rows."""
        rows, vocab = len(self.hidden), len(self.weight)
        budget = self.tile_bytes // self.dtype.itemsize
        columns = min(vocab, max(LEAST_COLUMNS, budget // max(rows, 1)))
        even = -(-vocab // -(-vocab // columns))
        columns = min(columns, -(-even // COLUMN_STEP) * COLUMN_STEP)
        blocks = list(_slices(rows, max(1, budget // columns)))
        for part in _slices(vocab, columns):
            yield part, blocks

    def local_targets(self, rows: slice, columns: slice) -> torch.Tensor:
        """Targets as columns of a tile; those of other tiles are the spare one."""
        ids = self.targets[rows] - (self.shard.start + columns.start)
        width = columns.stop - columns.start
        return torch.where((ids >= 0) & (ids < width), ids, width)


def _slices(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def stride_of(columns: int) -> int:
    """Elements between the rows of a tile with so many columns and a spare one."""
    return -(-(columns + 1) // ALIGNMENT) * ALIGNMENT


def elements_of_all_tiles(rows: int, vocab: int) -> int:
    """At least what all tiles hold together, alignment and spare columns included."""
    return rows * (vocab + ALIGNMENT * (vocab // LEAST_COLUMNS + 2))


class Tiles:
    """Memory of tiles: one to work in, and those whose logits forward keeps for backward."""

    def __init__(self, head: Head, kept_logits: torch.Tensor) -> None:
        self._head = head
        self._kept = kept_logits
        self._taken = 0
        self._work: torch.Tensor | None = None
        self._halves: torch.Tensor | None = None

    def slot(self, rows: slice, columns: slice) -> torch.Tensor | None:
        """The next kept tile [n, C + 1]; None where memory ends."""
        n, width = rows.stop - rows.start, columns.stop - columns.start
        size = n * stride_of(width)
        if self._taken + size > self._kept.numel():
            self._taken = self._kept.numel()
            return None
        tile = self._kept[self._taken : self._taken + size].view(n, -1)[:, : width + 1]
        self._taken += size
        return tile

    def work(self, rows: slice, columns: slice) -> torch.Tensor:
        """The tile that is overwritten again and again."""
        n, width = rows.stop - rows.start, columns.stop - columns.start
        size = n * stride_of(width)
        if self._work is None or self._work.numel() < size:
            self._work = self._head.hidden.new_empty(size, dtype=self._head.dtype)
        return self._work[:size].view(n, -1)[:, : width + 1]

    def as_factor(self, tile: torch.Tensor) -> torch.Tensor:
        """The numbers of a tile without its spare column, in the dtype of the operands."""
        numbers = tile[:, :-1]
        if tile.dtype == self._head.hidden.dtype:
            return numbers
        if self._halves is None or self._halves.numel() < tile.numel():
            self._halves = self._head.hidden.new_empty(tile.numel())
        return self._halves[: numbers.numel()].view(numbers.shape).copy_(numbers)


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """Write a @ b into `out`, which may be wider than its factors."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif out.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a @ b to `total`, which may be wider than its factors."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(torch.mm(a, b))


def make_logits(head: Head, tile: torch.Tensor, rows: slice, columns: slice) -> None:
    """Fill a tile: logits before the division by the temperature, then the spare column."""
    out, transform = tile[:, :-1], head.transform
    multiply(head.hidden[rows], head.weight[columns].t(), out)
    if head.bias is not None:
        out.add_(head.bias[columns])
    if transform.softcap:
        out.mul_(transform.logit_scale / transform.softcap).tanh_().mul_(transform.softcap)
    if head.kept is not None:
        head.kept.apply(out, rows, columns, float("-inf"))
    tile[:, -1] = FLOOR


def fold(
    head: Head, tile: torch.Tensor, rows: slice, columns: slice, extras: Extras
) -> torch.Tensor:
    """The statistic of each row of a tile, [n, FIELDS + k]."""
    targets = head.local_targets(rows, columns)
    divisor = head.transform.divisor
    op = torch.ops.oneshot.token_logprobs_and_entropy.default
    logprobs, entropy, stats = op(tile, targets, None, None, divisor, False)
    part = tile.new_zeros((len(tile), FIELDS + targets.shape[1]), dtype=torch.float64)
    part[:, [HIGH, TOTAL, MEAN]] = stats.double()
    part[:, ENTROPY] = entropy
    elsewhere = targets == tile.shape[1] - 1
    part[:, FIELDS:] = torch.where(elsewhere, float("-inf"), logprobs)
    logits = tile[:, :-1]
    if extras.log_sum_sq_probs:  # sum p^2 = (sum at half the temperature) / (sum at it)^2
        nothing = targets[:, :0]
        squares = op(tile, nothing, None, None, divisor / 2, False)[2][:, 1]
        part[:, SQUARES] = squares.double() / part[:, TOTAL].square()
    if extras.mean_logits:
        counted = logits > FLOOR / 2
        part[:, LOGITS] = torch.where(logits == float("-inf"), 0, logits).sum(-1, dtype=head.real)
        part[:, COUNT] = counted.sum(-1)
    if extras.is_top1:
        part[:, TOP] = logits.argmax(-1) + (head.shard.start + columns.start)
    return part


def forward(head: Head, kept_logits: torch.Tensor, extras: Extras) -> torch.Tensor:
    """The statistic of each row, float64 [n, FIELDS + k]; fills `kept_logits` tile by tile."""
    tiles = Tiles(head, kept_logits)
    k = head.targets.shape[1]
    parts: dict[int, list[torch.Tensor]] = {}
    for columns, blocks in head.tiles():
        for rows in blocks:
            tile = tiles.slot(rows, columns)
            if tile is None:
                tile = tiles.work(rows, columns)
            make_logits(head, tile, rows, columns)
            parts.setdefault(rows.start, []).append(fold(head, tile, rows, columns, extras))
    merged = [merge(torch.stack(block), head.divisor) for block in parts.values()]
    nothing = head.hidden.new_empty((0, FIELDS + k), dtype=torch.float64)
    part = torch.cat((nothing, *merged))
    if head.shard.group is not None:
        part = merge_over_ranks(part, head.divisor, head.shard.group)
    # A row without any token; a target outside the vocabulary (on a device, where checking it
    # beforehand would wait for its value).
    part[:, TOTAL : FIELDS - 1].masked_fill_((part[:, :1] <= FLOOR / 2), float("nan"))
    part[:, FIELDS:].masked_fill_((part[:, :1] <= FLOOR / 2), float("nan"))
    unknown = (head.targets < 0) | (head.targets >= head.shard.vocab)
    part[:, FIELDS:].masked_fill_(unknown, float("nan"))
    return part


class Gradients(NamedTuple):
    """In float32 or float64; None where not wanted."""

    hidden: torch.Tensor | None  # [n, D]
    bias: torch.Tensor | None


def backward(
    head: Head,
    kept_logits: torch.Tensor,
    logprobs: torch.Tensor,
    stats: torch.Tensor,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    weight: torch.Tensor | None,
    *,
    hidden: bool,
    bias: bool,
) -> Gradients:
    """Gradients of the rows that count, range by range of the vocabulary.

    Args:
        head: As in `forward`.
        kept_logits: As `forward` left it; only read.
        logprobs: [n, k], of the whole vocabulary.
        stats: [n, 3]: maximum, sum and mean, of the whole vocabulary.
        grad_logprobs: Upstream, [n, k].
        grad_entropy: Upstream, [n].
        weight: Receives the gradient of the weight, unless None.
        hidden: Whether that of the hidden states is wanted.
        bias: Whether that of the bias is wanted.
    """
    if grad_logprobs is not None:  # a target that is no token must not pass for one
        lost = logprobs.isnan() & (grad_logprobs != 0)
        grad_logprobs = grad_logprobs.masked_fill(lost, float("nan"))
    tiles = Tiles(head, kept_logits)
    real = head.real
    grad_hidden = head.hidden.new_zeros(head.hidden.shape, dtype=real) if hidden else None
    grad_bias = head.hidden.new_zeros(len(head.weight), dtype=real) if bias else None
    for columns, blocks in head.tiles():
        sums = WeightGradient(head, weight, columns, len(blocks))
        for rows in blocks:
            tile = tiles.work(rows, columns)
            saved = tiles.slot(rows, columns)
            if saved is None:
                make_logits(head, tile, rows, columns)
            else:
                tile.copy_(saved)
            upstream = [None if g is None else g[rows] for g in (grad_logprobs, grad_entropy)]
            _differentiate_tile(head, tile, upstream, rows, columns, logprobs[rows], stats[rows])
            factor = tiles.as_factor(tile)
            if grad_hidden is not None:
                accumulate(grad_hidden[rows], factor, head.weight[columns])
            if grad_bias is not None:
                grad_bias[columns] += factor.sum(0, dtype=real)
            sums.add(factor, head.hidden[rows])
        sums.finish()
    if weight is not None and len(head.hidden) == 0:
        weight.zero_()
    if grad_hidden is not None and head.shard.group is not None:
        torch.distributed.all_reduce(grad_hidden, group=process_group(head.shard.group))
    return Gradients(grad_hidden, grad_bias)


def _differentiate_tile(
    head: Head,
    tile: torch.Tensor,
    upstream: list[torch.Tensor | None],
    rows: slice,
    columns: slice,
    logprobs: torch.Tensor,
    stats: torch.Tensor,
) -> None:
    """Logits become the gradient of the products, in place."""
    transform, numbers = head.transform, tile[:, :-1]
    slope = None
    if transform.softcap:
        slope = (numbers / transform.softcap).square_().neg_().add_(1).mul_(transform.logit_scale)
    torch.ops.oneshot.token_logprobs_and_entropy_backward_.default(
        *upstream, tile, head.local_targets(rows, columns), None, None, logprobs, stats,
        transform.divisor,
    )  # fmt: skip
    if slope is not None:
        numbers.mul_(slope)
        if head.kept is not None:  # where the slope of -inf is no number
            head.kept.apply(numbers, rows, columns, 0.0)


class WeightGradient:
    """Gradient of one range of the weight: added up in float32 and rounded once."""

    def __init__(
        self, head: Head, gradient: torch.Tensor | None, columns: slice, blocks: int
    ) -> None:
        self._out = None if gradient is None else gradient[columns]
        self._first = True
        self._sum = self._out
        rounds = gradient is not None and gradient.dtype != head.real
        # On the CPU one product of halves is summed in float32 inside and rounded once.
        if self._out is not None and rounds and (blocks > 1 or self._out.is_cuda):
            self._sum = self._out.new_empty(self._out.shape, dtype=head.real)

    def add(self, factor: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add factor^T @ hidden."""
        if self._sum is None:
            return
        a = factor.t()
        if not self._sum.is_cuda and self._sum.dtype != a.dtype:
            # The CPU would round the product of each block to bfloat16 before it is added.
            a, hidden = a.to(self._sum.dtype), hidden.to(self._sum.dtype)
        if self._first:
            multiply(a, hidden, self._sum)
        else:
            accumulate(self._sum, a, hidden)
        self._first = False

    def finish(self) -> None:
        """Round the sum into its place."""
        if self._out is not None and self._sum is not None and self._sum is not self._out:
            self._out.copy_(self._sum)

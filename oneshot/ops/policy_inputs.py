"""What the three ops of the `policy_loss` family check alike: layout, data, aggregation."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from oneshot.ops import _library
from oneshot.ops._checks import as_int64, as_mask, check_float, check_same_device
from oneshot.ops._numbers import as_tensor, number, refuse_gradient
from oneshot.policy_options import Aggregate, bounds, check_aggregate


def named(metrics: Tensor, names: type[IntEnum]) -> dict[str, float]:
    """The metrics by name. Reads the tensor, so on an accelerator it waits for the device."""
    return dict(zip((name.name.lower() for name in names), metrics.tolist(), strict=True))


def layout(
    name: str, tokens: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Check layout, mask and cu_seqlens; returns the mask as bool and cu_seqlens as int64."""
    check_float(name, tokens)
    if cu_seqlens is None:
        if tokens.dim() != 2:
            raise ValueError(
                f"{name} must be [B, T], or [N] with cu_seqlens, got shape {list(tokens.shape)}"
            )
    else:
        if tokens.dim() != 1:
            raise ValueError(f"packed {name} must be [N], got shape {list(tokens.shape)}")
        cu_seqlens = as_int64("cu_seqlens", cu_seqlens)
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(f"cu_seqlens must be [B + 1], got shape {list(cu_seqlens.shape)}")
        check_same_device("cu_seqlens", cu_seqlens, name, tokens)
    if mask is not None:
        mask = as_mask("mask", mask, tokens.shape, name, tokens)
    return mask, cu_seqlens


def per_token(name: str, x: Tensor | None, like_name: str, like: Tensor) -> Tensor | None:
    """A tensor of data with the shape of `like`."""
    if x is None:
        return None
    check_float(name, x)
    check_same_device(name, x, like_name, like)
    if x.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name} {list(like.shape)}, got {list(x.shape)}"
        )
    return _library.as_data(x)


def per_sequence_or_token(
    name: str, x: Tensor, like_name: str, like: Tensor, cu_seqlens: Tensor | None
) -> Tensor:
    """A tensor of data with the shape of `like`, or one value a sequence."""
    check_float(name, x)
    check_same_device(name, x, like_name, like)
    batch = like.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if x.shape == like.shape:
        return _library.as_data(x)
    if x.dim() == 2 and x.shape[1] == 1:
        x = x.squeeze(1)
    if x.shape != (batch,):
        raise ValueError(
            f"{name} must be [{batch}] (one a sequence) or have the shape of {like_name} "
            f"{list(like.shape)}, got {list(x.shape)}"
        )
    return _library.as_data(x)


def batch_size(tokens: Tensor, cu_seqlens: Tensor | None) -> int:
    """How many sequences there are."""
    return tokens.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def bound(name: str, clamp: float | None) -> float:
    """A symmetric bound as a number, infinity for None."""
    return number(name, bounds(name, clamp)[1])


class Normalizer(NamedTuple):
    """A checked aggregation: the mode, its count override and its divisor."""

    aggregate: Aggregate
    override: float | Tensor | None  # of the count
    max_length: int

    def count_tensor(self, like: Tensor) -> Tensor | None:
        """The override as the 0-dim tensor that ops take."""
        if self.override is None:
            return None
        if isinstance(self.override, Tensor):
            check_same_device("the count", self.override, "the input", like)
            return self.override.detach()
        if torch.compiler.is_compiling():
            return as_tensor(self.override).to(like.device)
        return torch.tensor(float(self.override), dtype=torch.float64, device=like.device)


def normalizer(
    aggregate: str,
    token_count: float | Tensor | None,
    sequence_count: float | Tensor | None,
    max_length: int | None,
    width: int | None,
) -> Normalizer:
    """Check an aggregation and its overrides. ``width`` is T of the padded layout, or None."""
    mode = check_aggregate(aggregate, token_count, sequence_count, max_length)
    length = 1
    if mode == Aggregate.SEQ_MEAN_TOKEN_SUM_NORM:
        if max_length is None and width is None:
            raise ValueError("seq-mean-token-sum-norm needs max_length when the layout is packed")
        length = width if max_length is None else max_length  # type: ignore[assignment]
    count = sequence_count if token_count is None else token_count
    name = "sequence_count" if token_count is None else "token_count"
    if isinstance(count, Tensor):
        refuse_gradient(name, count)
        if count.dim() != 0:
            raise ValueError(f"{name} must be a number or a 0-dim tensor, got {list(count.shape)}")
    elif count is not None and not count > 0:
        raise ValueError(f"{name} must be positive, got {count}")
    return Normalizer(mode, count, length)

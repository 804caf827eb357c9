"""NumPy faces of the `advantage` family."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from oneshot import ops
from oneshot.numpy._arrays import tensors


def group_advantages(
    rewards: ArrayLike,
    groups: int | None = None,
    *,
    group_ids: ArrayLike | None = None,
    group_sizes: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    **options: Any,
) -> NDArray:
    """NumPy face of :func:`oneshot.ops.group_advantages`; `options` are its other arguments."""
    integers = {"group_ids": group_ids, "group_sizes": group_sizes, "lengths": lengths}
    found = tensors({"rewards": rewards}, {**integers, "mask": mask})
    return ops.group_advantages(groups=groups, **found, **options).numpy()


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    *,
    bootstrap: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> tuple[NDArray, NDArray]:
    """NumPy face of :func:`oneshot.ops.gae`."""
    floats = {"rewards": rewards, "values": values, "bootstrap": bootstrap}
    found = tensors(floats, {"mask": mask, "cu_seqlens": cu_seqlens})
    advantages, returns = ops.gae(gamma=gamma, lam=lam, **found)
    return advantages.numpy(), returns.numpy()


def whiten(values: ArrayLike, mask: ArrayLike | None = None, **options: Any) -> NDArray:
    """NumPy face of :func:`oneshot.ops.whiten`; `options` are its other arguments."""
    return ops.whiten(**tensors({"values": values}, {"mask": mask}), **options).numpy()

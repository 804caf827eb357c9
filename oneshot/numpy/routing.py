"""NumPy faces of the `routing` family."""

from __future__ import annotations

from numpy.typing import ArrayLike, NDArray

from oneshot import ops
from oneshot.numpy._arrays import tensors


def mix_adapters(inventory: ArrayLike, weights: ArrayLike, *, split_dim: int) -> NDArray:
    """NumPy face of :func:`oneshot.ops.mix_adapters`."""
    found = tensors({"inventory": inventory, "weights": weights})
    return ops.mix_adapters(split_dim=split_dim, **found).numpy()


def routed_lora(
    x: ArrayLike,
    lora_a: ArrayLike,
    lora_b: ArrayLike,
    weights: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    *,
    scaling: float = 1.0,
    base: ArrayLike | None = None,
) -> NDArray:
    """NumPy face of :func:`oneshot.ops.routed_lora`."""
    floats = {"x": x, "lora_a": lora_a, "lora_b": lora_b, "weights": weights, "base": base}
    return ops.routed_lora(scaling=scaling, **tensors(floats, {"rows": rows})).numpy()

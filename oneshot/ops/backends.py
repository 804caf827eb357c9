"""Which code computes the ops: their definitions, and other kernels in their place.

For tests and experiments. A process that only uses the ops needs neither function: importing
`oneshot.ops` chooses between compiled kernels, Triton's and the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from oneshot.ops import _library


def references() -> Mapping[str, Callable[..., Any]]:
    """The definition of every op in plain PyTorch.

    Returns:
        Name in ``torch.ops.oneshot`` -> function with the arguments and outputs of its schema.
        The mapping is read-only.
    """
    return MappingProxyType(_library._REFERENCES)


def use(
    kernels: Mapping[str, Callable[..., Any]] | Literal["triton"],
    device: Literal["cpu", "cuda"] = "cpu",
) -> frozenset[str]:
    """Compute ops by other kernels on one type of device, for the rest of the process.

    Args:
        kernels: Name of an op -> function with the arguments and outputs of its schema.
            ``"triton"``: the kernels of `oneshot.triton_kernels`, for the ops that no compiled
            kernel serves there.
        device: Of the tensors that go to these kernels. Triton takes ``"cpu"`` only under its
            interpreter.

    Returns:
        The names of the ops that the kernels serve.

    Raises:
        ValueError: A name is no op, or `device` is neither ``"cpu"`` nor ``"cuda"``.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    key = device.upper()
    if kernels == "triton":
        return frozenset(_library.serve_by_triton(key))
    unknown = sorted(set(kernels) - set(_library._REFERENCES))
    if unknown:
        raise ValueError(
            f"kernels must name ops of oneshot, got {', '.join(unknown)}: "
            "oneshot.ops.backends.references() lists them"
        )
    for name, kernel in kernels.items():
        _library._LIBRARY.impl(name, kernel, key)
    return frozenset(kernels)

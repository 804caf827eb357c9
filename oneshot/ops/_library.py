"""How an op is declared: schema in Python, so that it exists without any compiled library."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

# IMPL blocks of the native library attach to these schemas, whichever is loaded first.
_LIBRARY = torch.library.Library("oneshot", "FRAGMENT")
_REFERENCES: dict[str, Callable[..., Any]] = {}


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> torch._ops.OpOverload:
    """Declare one op and return the bound handle that public functions call.

    Args:
        schema: Operator schema without the namespace, e.g. ``"whiten(Tensor values) -> Tensor"``.
        reference: Plain PyTorch with the schema's arguments and outputs; serves every device that
            has no native kernel.
        fake: Shapes and dtypes of the outputs, for tracing.

    Returns:
        The ``default`` overload of ``torch.ops.oneshot.<name>``.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    _REFERENCES[name] = reference
    torch.library.register_fake(f"oneshot::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.oneshot, name).default


def differentiable(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> None:
    """Attach a backward formula (a second op of the same family) to a declared op."""
    torch.library.register_autograd(
        f"oneshot::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def has_kernel(name: str, key: str) -> bool:
    """Whether a kernel, compiled or of Triton, serves an op at this dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"oneshot::{name}", key)


def serve_by_triton(key: str = "CUDA") -> tuple[str, ...]:
    """Let `oneshot.triton_kernels` serve this dispatch key where no compiled kernel does.

    Triton and the launchers are imported by the first call of an op. float64 stays with the
    reference, except in `hmm`, whose entropy works in it. Beside a compiled kernel Triton takes the
    calls that `oneshot.triton_kernels.SHARED` names.

    Args:
        key: ``"CUDA"``; under the interpreter of Triton, tests also take ``"CPU"``.

    Returns:
        The names of the ops without a compiled kernel; none where triton is not installed, or in a
        source folder that is not installed (loading the native library warned of that).
    """
    if not all(map(importlib.util.find_spec, ("triton", "oneshot.triton_kernels"))):
        return ()
    from oneshot.triton_kernels import FAMILY, SHARED

    compiled = {name for name in FAMILY if has_kernel(name, key)}
    for name, takes in SHARED.items():
        if name in compiled:
            _share(name, takes, _launcher(name, FAMILY[name]), key)
    served = tuple(name for name in FAMILY if name not in compiled)
    for name in served:
        _LIBRARY.impl(name, _launcher(name, FAMILY[name]), key)
    return served


def _share(name: str, takes: Callable[..., bool], other: Callable[..., Any], key: str) -> None:
    """Give the calls for which `takes` is true to `other`, the rest to the kernel that is there.

    Args:
        name: Of the op.
        takes: Receives the arguments of a call.
        other: The same signature as the op.
        key: Dispatch key.

    """
    kernel = torch.library.get_kernel(f"oneshot::{name}", key)

    def choose(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if takes(*arguments):
            return other(*arguments)
        return kernel.call_boxed(keyset, *arguments)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        _LIBRARY.impl(name, choose, key, with_keyset=True, allow_override=True)


def _launcher(name: str, family: str) -> Callable[..., Any]:
    reference = _REFERENCES[name]

    def launch(*arguments: Any) -> Any:
        first = next(x for x in arguments if isinstance(x, torch.Tensor))
        if first.dtype == torch.float64 and not family.startswith("hmm"):
            return reference(*arguments)
        module = importlib.import_module(f"oneshot.triton_kernels.{family}")
        if first.device.type != "cuda":
            return getattr(module, name)(*arguments)
        with torch.cuda.device(first.device):  # Triton launches on the current one
            return getattr(module, name)(*arguments)

    return launch

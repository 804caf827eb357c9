"""How an op is declared: schema in Python, so that it exists without any compiled library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# IMPL blocks of the native library attach to these schemas, whichever is loaded first.
_LIBRARY = torch.library.Library("oneshot", "FRAGMENT")


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

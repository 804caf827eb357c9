"""How an op is declared: schema in Python, so that it exists without any compiled library."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from oneshot.ops._numbers import as_tensor

# IMPL blocks of the native library attach to these schemas, whichever is loaded first.
_LIBRARY = torch.library.Library("oneshot", "FRAGMENT")
_REFERENCES: dict[str, Callable[..., Any]] = {}
_FORMULAS: dict[str, _Formula] = {}
_NUMBER = re.compile(r"\bfloat(\[\])?(?= )")


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    """Declare one op and return what public functions call.

    Every op has an autograd kernel, so that no transform passes through in silence: forward-mode
    differentiation raises, and so does backward through an op ``<name>_backward`` that has no
    formula (see `differentiable`). Without one, the outputs of any other op carry no gradient.

    An op that takes numbers has an overload ``traced`` in which each ``float`` is a 0-dim tensor
    and each ``float[]`` one tensor. `torch.compile` makes a constant of a number that a custom op
    takes, and compiles again for the next value; a number that varies goes through the overload.

    Args:
        schema: Operator schema without the namespace, e.g. ``"whiten(Tensor values) -> Tensor"``.
        reference: Plain PyTorch with the schema's arguments and outputs; serves every device that
            has no native kernel.
        fake: Shapes and dtypes of the outputs, for tracing.

    Returns:
        The ``default`` overload of ``torch.ops.oneshot.<name>``; for an op with numbers, a function
        that chooses the overload.
    """
    name = schema.split("(", 1)[0]
    _REFERENCES[name] = reference
    op = _declare(name, schema, reference, fake)
    numbers = [i for i, argument in enumerate(op._schema.arguments) if _is_number(argument)]
    if not numbers:
        return op

    def run(*arguments: Any) -> Any:
        values = list(arguments)
        for i in numbers:
            values[i] = values[i].tolist()
        return op(*values)

    overload = _NUMBER.sub("Tensor", schema.replace(name, f"{name}.traced", 1))
    traced = _declare(name, overload, run, fake)

    def call(*arguments: Any) -> Any:
        if any(isinstance(arguments[i], torch.Tensor) for i in numbers):
            return traced(*(as_tensor(x) if i in numbers else x for i, x in enumerate(arguments)))
        return op(*arguments)

    return call


def _is_number(argument: Any) -> bool:
    return str(argument.type) in ("float", "List[float]")


def _declare(
    name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    qualified = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(qualified, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"oneshot::{qualified}", fake, lib=_LIBRARY)
    packet = getattr(torch.ops.oneshot, name)
    op = getattr(packet, qualified.partition(".")[2] or "default")
    if not op._schema.is_mutable:
        _LIBRARY.impl(qualified, _autograd_kernel(name, op), "Autograd", with_keyset=True)
    return op


class _Formula(NamedTuple):
    backward: Callable[..., Any]
    setup_context: Callable[..., None]


def differentiable(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> None:
    """Attach a backward formula (a second op of the same family) to a declared op."""
    _FORMULAS[name] = _Formula(backward, setup_context)


def save_for_backward(ctx: Any, *tensors: torch.Tensor | None) -> None:
    """`ctx.save_for_backward`, with a copy of tensors of inference mode, which it would refuse."""
    ctx.save_for_backward(
        *(x.clone() if x is not None and x.is_inference() else x for x in tensors)
    )


def as_data(x: torch.Tensor) -> torch.Tensor:
    """Cut off the graph. A tangent of forward mode stays, for the op to refuse."""
    return x if forward_ad._current_level >= 0 or not x.requires_grad else x.detach()


def _without_formula(name: str) -> _Formula:
    """An op ``<name>_backward`` refuses to be differentiated; outputs of any other op are data."""

    def mark(ctx: Any, _: Any, output: Any) -> None:
        if not name.endswith("_backward"):
            ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{name.removesuffix('_backward')} has no second derivative: call backward without "
            "create_graph=True"
        )

    return _Formula(backward, mark)


class _Modes(NamedTuple):
    """Travels behind the arguments of an op, through `Node.apply`."""

    keyset: torch._C.DispatchKeySet
    reverse: bool
    forward: bool


def _autograd_kernel(name: str, op: torch._ops.OpOverload) -> Callable[..., Any]:
    """What serves an op at the dispatch key Autograd.

    `torch.library.register_autograd` passes tensors of forward mode through without their tangents,
    refuses torch.func, and costs more than most ops of this package.
    """
    missing = _without_formula(name)

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *inputs, modes = arguments
            # A Function turns gradients off, but levels of torch.func below this one record, too.
            with torch.set_grad_enabled(modes.reverse), _set_fwd_grad_enabled(modes.forward):
                output = _below_autograd(op, modes.keyset, inputs)
            _FORMULAS.get(name, missing).setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            result = _FORMULAS.get(name, missing).backward(ctx, *grads)
            return (*result, None) if isinstance(result, tuple) else (result, None)

        @staticmethod
        def jvp(ctx: Any, *_: Any) -> Any:
            raise RuntimeError(
                f"{name.removesuffix('_backward')} has no forward-mode derivative (torch.func.jvp, "
                "jacfwd, hessian and linearize, torch.autograd.forward_ad); "
                + (
                    "its outputs are data: give it inputs without a tangent"
                    if name not in _FORMULAS and not name.endswith("_backward")
                    else "reverse mode has one: backward, torch.func.grad, vjp, jacrev"
                )
            )

    # A class of its own name, which a result's grad_fn shows: TokenLogprobsAndEntropyBackward.
    named = type("".join(word.capitalize() for word in name.split("_")), (Node,), {})
    # Function.apply itself would hand this call to torch.func, which has brought it here already.
    apply = super(torch.autograd.Function, named).apply  # type: ignore[misc]

    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        reverse = torch.is_grad_enabled()
        forward = forward_ad._current_level >= 0
        if not forward and not (reverse and torch._C._any_requires_grad(*arguments)):
            return _below_autograd(op, keyset, arguments)
        modes = _Modes(keyset, reverse, forward)
        if not torch._C._are_functorch_transforms_active():
            return apply(*arguments, modes)
        with enable_single_level_autograd_function():
            return apply(*arguments, modes)

    return kernel


def _below_autograd(
    op: torch._ops.OpOverload, keyset: torch._C.DispatchKeySet, arguments: Sequence[Any]
) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


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

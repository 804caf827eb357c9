"""The emulated CUDA kernels of `routing`, with the arguments and outputs of the ops.

Memory and choices are those of csrc/routing/torch/routing_cuda.cpp.
"""

from __future__ import annotations

import ctypes

from emulation import DTYPES, Device, kernels
from launchers.common import dtype_of, integers, pointers, workspace

from oneshot.reference.routing import real_type


def mix_adapters(inventory, weights, transposed):
    device, library = Device(kernels()), kernels()
    inventory, weights = inventory.contiguous(), weights.contiguous()
    heads, _, p, q = inventory.shape
    shape = (q, heads * p) if transposed else (p, heads * q)
    out = device.empty((len(weights), *shape), weights.dtype)
    device.check(library.emu_mix(
        dtype_of(inventory), *pointers(device.put(inventory)),
        integers(*inventory.shape, len(weights)), ctypes.c_bool(transposed),
        *pointers(device.put(weights), out),
    ))  # fmt: skip
    return device.get(out)


def mix_adapters_backward(
    grad, inventory, weights, transposed, need_inventory, need_weights, add_to=None
):
    """`add_to`: gradients of the weights to which those of this inventory are added."""
    device, library = Device(kernels()), kernels()
    grad, inventory, weights = (t.contiguous() for t in (grad, inventory, weights))
    by_inventory = device.empty(inventory.shape, inventory.dtype) if need_inventory else None
    by_weights = None
    if need_weights and add_to is None:
        by_weights = device.empty(weights.shape, weights.dtype)
    elif need_weights:
        by_weights = device.put(add_to, kind=2)
    device.check(library.emu_mix_backward(
        dtype_of(inventory), *pointers(device.put(inventory)),
        integers(*inventory.shape, len(weights)), ctypes.c_bool(transposed),
        *pointers(device.put(weights), device.put(grad), by_inventory, by_weights),
        ctypes.c_bool(add_to is not None),
    ))  # fmt: skip
    grad_inventory, grad_weights = inventory.new_empty(0), weights.new_empty(0)
    if need_inventory:
        grad_inventory = device.get(by_inventory)
    if need_weights:
        grad_weights = device.read(by_weights, weights.shape, weights.dtype)
    return grad_inventory, grad_weights


def prefers_inventory(x, rows, mixtures):
    library = kernels()
    library.emu_prefers_inventory.restype = ctypes.c_bool
    return library.emu_prefers_inventory(integers(*x.shape[:2], mixtures))


def inventory_lora(x, lora_a, lora_b, weights, rows, base, scaling, seed=0):
    device, library = Device(kernels(), seed), kernels()
    x, lora_a, lora_b, weights = (t.contiguous() for t in (x, lora_a, lora_b, weights))
    heads, skills, p, rank = lora_a.shape
    d_out = heads * lora_b.shape[3]
    shape = integers(*x.shape[:2], len(weights), rank, heads * p, d_out)
    dtypes = (ctypes.c_int * 3)(*(DTYPES[t.dtype] for t in (x, lora_a, lora_b)))
    scratch = device.scratch(
        workspace(library.emu_inventory_lora_workspace, dtypes, shape, integers(heads, skills))
    )
    shrunk = device.empty((*x.shape[:2], rank), weights.dtype)
    y = device.empty((*x.shape[:2], d_out), x.dtype)
    given = map(device.put, (rows, x, lora_a, lora_b, weights, base))
    device.check(library.emu_inventory_lora(
        dtypes, shape, integers(heads, skills), *pointers(*given, shrunk, y),
        ctypes.c_double(scaling), *pointers(scratch),
    ))  # fmt: skip
    return device.get(y), device.get(shrunk)


def _mixtures(lora_a, lora_b, weights):
    if weights is None:
        return lora_a.contiguous(), lora_b.contiguous()
    return mix_adapters(lora_a, weights, True), mix_adapters(lora_b, weights, False)


def routed_lora(x, lora_a, lora_b, weights, rows, base, scaling, seed=0):
    x = x.contiguous()
    base = None if base is None else base.contiguous()
    if weights is not None and prefers_inventory(x, rows, len(weights)):
        return inventory_lora(x, lora_a, lora_b, weights, rows, base, scaling, seed)
    return mixed_lora(x, *_mixtures(lora_a, lora_b, weights), rows, base, scaling, seed)


def mixed_lora(x, a, b, rows, base, scaling, seed=0):
    device, library = Device(kernels(), seed), kernels()
    shape = integers(*x.shape[:2], *a.shape[:2], x.shape[2], b.shape[2])
    scratch = device.scratch(workspace(library.emu_lora_workspace, dtype_of(x), shape))
    shrunk = device.empty((*x.shape[:2], a.shape[1]), real_type(x.dtype))
    y = device.empty((*x.shape[:2], b.shape[2]), x.dtype)
    given = map(device.put, (rows, x, a, b, base))
    device.check(library.emu_lora(
        dtype_of(x), shape, *pointers(*given, shrunk, y), ctypes.c_double(scaling),
        *pointers(scratch),
    ))  # fmt: skip
    return device.get(y), device.get(shrunk)


def routed_lora_backward(
    grad, x, lora_a, lora_b, weights, rows, shrunk, scaling, need_x, need_a, need_b, need_weights
):
    a, b = _mixtures(lora_a, lora_b, weights)
    grad, x, shrunk = grad.contiguous(), x.contiguous(), shrunk.contiguous()
    device, library = Device(kernels()), kernels()
    shape = integers(*x.shape[:2], *a.shape[:2], x.shape[2], b.shape[2])
    grad_shrunk = device.empty(shrunk.shape, shrunk.dtype)
    wanted = ((need_x, x), (need_a or need_weights, a), (need_b or need_weights, b))
    out = [device.empty(like.shape, like.dtype) if need else None for need, like in wanted]
    scratch = device.scratch(
        workspace(library.emu_lora_backward_workspace, dtype_of(x), shape, *pointers(*out[1:]))
    )
    given = map(device.put, (rows, grad, x, a, b, shrunk))
    device.check(library.emu_lora_backward(
        dtype_of(x), shape, *pointers(*given, grad_shrunk, *out), ctypes.c_double(scaling),
        *pointers(scratch),
    ))  # fmt: skip
    grad_x, grad_a, grad_b = (
        x.new_empty(0) if address is None else device.get(address) for address in out
    )
    if weights is None:
        return grad_x, grad_a, grad_b, a.new_empty(0)
    grad_weights = weights.new_empty(0)
    if need_a or need_weights:
        grad_a, grad_weights = mix_adapters_backward(
            grad_a, lora_a, weights, True, need_a, need_weights
        )
    if need_b or need_weights:
        grad_b, grad_weights = mix_adapters_backward(
            grad_b, lora_b, weights, False, need_b, need_weights,
            add_to=grad_weights if need_weights else None,
        )  # fmt: skip
    return grad_x, grad_a, grad_b, grad_weights

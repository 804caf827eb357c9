"""Triton kernels that mix an inventory of adapters, head by head, and give the gradient back."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div

PIECE_P = tl.constexpr(32)  # a piece of one adapter's [p, q]
PIECE_Q = tl.constexpr(64)


@triton.jit
def _piece(program, p, q, blocks_q):
    """Rows and columns of a piece, and which exist."""
    i = (program // blocks_q) * PIECE_P + tl.arange(0, PIECE_P).to(tl.int64)
    j = (program % blocks_q) * PIECE_Q + tl.arange(0, PIECE_Q).to(tl.int64)
    return i[:, None], j[None, :], (i < p)[:, None] & (j < q)[None, :]


@triton.jit
def _place(i, j, u, h, heads, p, q, TRANSPOSED: tl.constexpr):
    """Where element (i, j) of head h lies in mixture u: [q, heads * p], or [p, heads * q]."""
    if TRANSPOSED:
        return (u * q + j) * (heads * p) + h * p + i
    return (u * p + i) * (heads * q) + h * q + j


@triton.jit(do_not_specialize=["mixtures"])
def _mix_kernel(
    inventory, weights, mixture, mixtures, heads, skills, p, q, pieces, blocks_q,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """One piece of one head of one mixture: the sum over skills."""
    program = tl.program_id(0).to(tl.int64)
    i, j, inside = _piece(program % pieces, p, q, blocks_q)
    h = program // pieces % heads
    u = program // pieces // heads
    sums = tl.zeros([PIECE_P, PIECE_Q], tl.float32)
    for k in range(0, skills):
        weight = tl.load(weights + (u * heads + h) * skills + k)
        skill = tl.load(inventory + (h * skills + k) * p * q + i * q + j, mask=inside, other=0.0)
        sums += weight * skill.to(tl.float32)
    to = mixture + _place(i, j, u, h, heads, p, q, TRANSPOSED)
    tl.store(to, sums.to(mixture.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["mixtures"])
def _inventory_kernel(
    grad, weights, out, mixtures, heads, skills, p, q, pieces, blocks_q, TRANSPOSED: tl.constexpr
):  # fmt: skip
    """Gradient of one piece of one skill of one head: the sum over mixtures."""
    program = tl.program_id(0).to(tl.int64)
    i, j, inside = _piece(program % pieces, p, q, blocks_q)
    k = program // pieces % skills
    h = program // pieces // skills
    sums = tl.zeros([PIECE_P, PIECE_Q], tl.float32)
    for u in range(0, mixtures):
        weight = tl.load(weights + (u * heads + h) * skills + k)
        at = grad + _place(i, j, u, h, heads, p, q, TRANSPOSED)
        sums += weight * tl.load(at, mask=inside, other=0.0).to(tl.float32)
    to = out + (h * skills + k) * p * q + i * q + j
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _weights_kernel(
    grad, inventory, out, heads, skills, p, q, pieces, blocks_q, TRANSPOSED: tl.constexpr
):  # fmt: skip
    """Gradient of one weight: the product of a skill with the gradient of its mixture."""
    program = tl.program_id(0).to(tl.int64)
    k = program % skills
    h = program // skills % heads
    u = program // skills // heads
    total = tl.zeros([], tl.float64)
    for number in range(0, pieces):
        i, j, inside = _piece(number, p, q, blocks_q)
        skill = tl.load(inventory + (h * skills + k) * p * q + i * q + j, mask=inside, other=0.0)
        at = grad + _place(i, j, u, h, heads, p, q, TRANSPOSED)
        product = skill.to(tl.float32) * tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(tl.sum(product, 1).to(tl.float64), 0)
    tl.store(out + program, total.to(tl.float32))


def _pieces(p, q):
    blocks_q = ceil_div(q, PIECE_Q.value)
    return ceil_div(p, PIECE_P.value) * blocks_q, blocks_q


def mix(inventory, weights, transposed, dtype):
    """Mixtures [U, rank, length] of `oneshot.ops.mix_adapters`, in this dtype."""
    inventory, weights = inventory.contiguous(), weights.contiguous()
    heads, skills, p, q = inventory.shape
    mixtures = weights.shape[0]
    shape = (mixtures, q, heads * p) if transposed else (mixtures, p, heads * q)
    mixture = weights.new_empty(shape, dtype=dtype)
    pieces, blocks_q = _pieces(p, q)
    if mixture.numel():
        _mix_kernel[(pieces * heads * mixtures,)](
            inventory, weights, mixture, mixtures, heads, skills, p, q, pieces, blocks_q,
            TRANSPOSED=transposed,
        )  # fmt: skip
    return mixture


def mix_back(grad, inventory, weights, transposed, need_inventory, need_weights):
    """Gradients of the inventory and of the weights; one that is not needed is empty."""
    grad, inventory, weights = grad.contiguous(), inventory.contiguous(), weights.contiguous()
    heads, skills, p, q = inventory.shape
    pieces, blocks_q = _pieces(p, q)
    sizes = (heads, skills, p, q, pieces, blocks_q)
    grad_inventory, grad_weights = inventory.new_empty(0), weights.new_empty(0)
    if need_inventory:
        grad_inventory = torch.empty_like(inventory)
        if grad_inventory.numel():
            _inventory_kernel[(pieces * heads * skills,)](
                grad, weights, grad_inventory, weights.shape[0], *sizes, TRANSPOSED=transposed
            )
    if need_weights:
        grad_weights = torch.empty_like(weights)
        if grad_weights.numel():
            _weights_kernel[(grad_weights.numel(),)](
                grad, inventory, grad_weights, *sizes, TRANSPOSED=transposed
            )
    return grad_inventory, grad_weights


def mix_adapters(inventory, weights, transposed):
    """Launcher of the op."""
    return mix(inventory, weights, transposed, torch.float32)


def mix_adapters_backward(grad, inventory, weights, transposed, need_inventory, need_weights):
    """Launcher of the op."""
    return mix_back(grad, inventory, weights, transposed, need_inventory, need_weights)

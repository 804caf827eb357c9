"""The emulated CUDA kernels of `logprob`, with the arguments and outputs of the ops.

The driver walks rows with one stride; logits and keep-masks of more dimensions come as such.
"""

from __future__ import annotations

import ctypes

import torch
from emulation import Device, kernels
from launchers.common import dtype_of, integers, pointers, real_type, workspace


def _matrix(t: torch.Tensor, leading: torch.Size) -> torch.Tensor:
    """[rows, vocabulary], a view where the rows have one stride."""
    t = t.expand(*leading, t.shape[-1])
    rows = t.reshape(-1, t.shape[-1])
    return rows if rows.numel() == 0 or rows.stride(-1) == 1 else rows.contiguous()


def _stride(t: torch.Tensor | None) -> int:
    return 0 if t is None or t.shape[0] == 1 else t.stride(0)


class _Call:
    """Arguments of both kernels, on an emulated device."""

    def __init__(self, logits, targets, mask, keep_mask, temperature, seed, in_place=False):
        self.device = Device(kernels(), seed)
        self.rows = _matrix(logits, logits.shape[:-1])
        keep = None if keep_mask is None else _matrix(keep_mask, logits.shape[:-1])
        self.count, vocab = self.rows.shape
        one_each = targets.dim() == logits.dim() - 1
        self.logits = self.device.put(self.rows, kind=2 if in_place else 1)
        flags = None if mask is None else mask.contiguous()
        gradient = _stride(self.rows) if in_place else vocab
        self.arguments = [
            dtype_of(logits), *pointers(self.logits),
            integers(self.count, vocab, 1 if one_each else targets.shape[-1], _stride(self.rows),
                     _stride(keep), gradient),
            *pointers(*map(self.device.put, (targets.contiguous(), flags, keep))),
            ctypes.c_double(temperature),
        ]  # fmt: skip


def token_logprobs_and_entropy(
    logits, targets, mask, keep_mask, temperature, inplace_backward, seed=0
):
    call = _Call(logits, targets, mask, keep_mask, temperature, seed)
    library, leading, real = kernels(), logits.shape[:-1], real_type(logits)
    scratch = call.device.scratch(
        workspace(
            library.emu_logprob_workspace, dtype_of(logits), ctypes.c_int64(call.count),
            ctypes.c_int64(logits.shape[-1]),
        )
    )  # fmt: skip
    out = [call.device.empty(s, real) for s in (targets.shape, leading, (*leading, 3))]
    call.device.check(library.emu_logprob_forward(*call.arguments, *pointers(*out, scratch)))
    return tuple(map(call.device.get, out))


def _upstream(call, grad_logprobs, grad_entropy, logprobs, stats):
    dense = (None if t is None else t.contiguous() for t in (grad_logprobs, grad_entropy))
    return map(call.device.put, (*dense, logprobs.contiguous(), stats.contiguous()))


def token_logprobs_and_entropy_backward(
    grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats, temperature,
    seed=0,
):  # fmt: skip
    call = _Call(logits, targets, mask, keep_mask, temperature, seed)
    grad = call.device.empty(logits.shape, logits.dtype)
    given = _upstream(call, grad_logprobs, grad_entropy, logprobs, stats)
    call.device.check(kernels().emu_logprob_backward(*call.arguments, *pointers(*given, grad)))
    return call.device.get(grad)


def token_logprobs_and_entropy_backward_(
    grad_logprobs, grad_entropy, logits, targets, mask, keep_mask, logprobs, stats, temperature,
    seed=0,
):  # fmt: skip
    """Over the logits; the whole storage comes back, so what lies between the rows shows too."""
    call = _Call(logits, targets, mask, keep_mask, temperature, seed, in_place=True)
    given = _upstream(call, grad_logprobs, grad_entropy, logprobs, stats)
    call.device.check(
        kernels().emu_logprob_backward(*call.arguments, *pointers(*given, call.logits))
    )
    assert call.rows.data_ptr() == logits.data_ptr(), "the driver cannot walk these rows in place"
    storage = logits.untyped_storage()
    start = call.logits - logits.storage_offset() * logits.element_size()
    ctypes.memmove(storage.data_ptr(), start, storage.nbytes())

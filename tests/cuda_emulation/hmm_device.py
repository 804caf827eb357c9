"""The `hmm` launchers on the emulator, with the arguments of the torch ops."""

from __future__ import annotations

import ctypes

import torch
from emulation import Device, kernels

Inputs = list[torch.Tensor | None]  # log_init, log_trans, log_emit, lengths, log_final


def pointers(*addresses: int | None) -> ctypes.Array:
    return (ctypes.c_void_p * len(addresses))(*addresses)


def integers(*values: int) -> ctypes.Array:
    return (ctypes.c_int64 * len(values))(*values)


class Call:
    """One launch: inputs on a fresh device, and the workspace of each op."""

    def __init__(self, inputs: Inputs, seed: int) -> None:
        self.library = kernels()
        self.device = Device(self.library, seed)
        init, trans, emit, _, final = inputs
        self.emit, self.double = emit, int(emit.dtype == torch.float64)
        self.inputs = pointers(*map(self.device.put, inputs))

        def stride(x: torch.Tensor | None, dim: int) -> int:
            return 0 if x is None or x.shape[dim] == 1 else x.stride(dim)

        self.numbers = integers(
            *emit.shape, stride(init, 0), stride(final, 0), stride(trans, 0), stride(trans, 1),
            emit.stride(0), emit.stride(1), int(trans.shape[1] == 1),
        )  # fmt: skip

    def empty(self, *shapes: tuple[int, ...] | None) -> list[int | None]:
        return [None if s is None else self.device.empty(s, self.emit.dtype) for s in shapes]

    def workspace(self, op: int, outputs: ctypes.Array) -> ctypes.c_void_p:
        sizes = integers(0, 0, 0, 0)
        self.library.emu_hmm_workspace(self.double, self.inputs, self.numbers, outputs, sizes)
        return ctypes.c_void_p(self.device.scratch(sizes[op]))

    def get(self, address: int | None) -> torch.Tensor | None:
        return None if address is None else self.device.get(address)


def posteriors(inputs: Inputs, gamma=True, xi=True, xi_sum=True, seed=0):
    call = Call(inputs, seed)
    batch, steps, states = inputs[2].shape
    out = call.empty(
        (batch,),
        (batch, steps, states) if gamma else None,
        (batch, steps - 1, states, states) if xi else None,
        (batch, states, states) if xi_sum else None,
    )
    outputs = pointers(*out)
    call.device.check(
        call.library.emu_hmm_posteriors(
            call.double, call.inputs, call.numbers, outputs, call.workspace(0, outputs)
        )
    )
    return [call.get(x) for x in out]


def posteriors_backward(upstream, inputs: Inputs, seed=0):
    call = Call(inputs, seed)
    init, trans, emit, _, final = inputs
    out = call.empty(init.shape, trans.shape, emit.shape, None if final is None else final.shape)
    outputs = pointers(*out)
    rows = integers(init.shape[0], trans.shape[0], 0 if final is None else final.shape[0])
    call.device.check(
        call.library.emu_hmm_posteriors_backward(
            call.double, call.inputs, call.numbers, pointers(*map(call.device.put, upstream)),
            outputs, rows, call.workspace(1, pointers(None, None, None, None)),
        )
    )  # fmt: skip
    return [call.get(x) for x in out]


def viterbi(inputs: Inputs, seed=0):
    call = Call(inputs, seed)
    path = call.device.empty(inputs[2].shape[:2], torch.int64)
    (score,) = call.empty((inputs[2].shape[0],))
    call.device.check(
        call.library.emu_hmm_viterbi(
            call.double, call.inputs, call.numbers, *map(ctypes.c_void_p, (path, score)),
            call.workspace(2, pointers(None, None, None, None)),
        )
    )  # fmt: skip
    return call.get(path), call.get(score)


def sample(inputs: Inputs, ids: torch.Tensor | None, num_samples: int, key: int, seed=0):
    call = Call(inputs, seed)
    paths = call.device.empty((num_samples, *inputs[2].shape[:2]), torch.int64)
    call.device.check(
        call.library.emu_hmm_sample(
            call.double, call.inputs, call.numbers, ctypes.c_void_p(call.device.put(ids)),
            ctypes.c_int64(num_samples), ctypes.c_uint64(key), ctypes.c_void_p(paths),
            call.workspace(3, pointers(None, None, None, None)),
        )
    )  # fmt: skip
    return call.get(paths)


def not_linear(inputs: Inputs, seed=0) -> torch.Tensor:
    """For which sequences the linear sweeps do not count: bool [2, B], forward and backward."""
    call = Call(inputs, seed)
    batch, steps, states = inputs[2].shape
    count = batch * steps * states * 8
    messages = pointers(*(call.device.scratch(n) for n in (count, count, count, count)))
    exact = call.device.empty((2, batch), torch.int32)
    (log_z,) = call.empty((batch,))
    call.device.check(
        call.library.emu_hmm_linear(
            call.double, call.inputs, call.numbers, messages,
            *map(ctypes.c_void_p, (exact, log_z)),
        )
    )  # fmt: skip
    return call.get(exact) != 0


def not_scanned(inputs: Inputs, seed=0) -> torch.Tensor:
    """Which sequences the scan over time leaves to be swept as a whole, bool [B]."""
    call = Call(inputs, seed)
    bytes_each = inputs[2].numel() * 8 + 4096  # enough for each of its arrays
    memory = pointers(*(call.device.scratch(bytes_each) for _ in range(11)))
    whole = call.device.empty((inputs[2].shape[0],), torch.int32)
    call.device.check(
        call.library.emu_hmm_scan(
            call.double, call.inputs, call.numbers, memory, ctypes.c_void_p(whole)
        )
    )
    return call.get(whole) != 0

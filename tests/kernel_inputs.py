"""Inputs of the GPU kernels that several suites share: tests/parity, triton, cuda_emulation."""

from __future__ import annotations

import math

import torch

from oneshot.reference import routing

INF, NAN = math.inf, math.nan


def wide(x):
    """A float tensor in float64; anything else as it is."""
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def chains(batch, steps, states, form="tokens", lengths=True, dtype=torch.float32, scale=2.0):
    """HMMs with garbage in every place behind an end; form says what shares a matrix.

    Returns:
        log_init, log_trans, log_emit, lengths, log_final, as the ops take them.
    """
    rows = {"tokens": batch, "steps": 1, "sequences": batch, "shared": 1}[form]
    columns = steps - 1 if form in ("tokens", "steps") else 1
    init = torch.randn(1 if form == "shared" else batch, states) * scale
    trans = torch.randn(rows, columns, states, states) * scale
    emit = torch.randn(batch, steps, states) * scale
    final = torch.randn(batch if form == "tokens" else 1, states) if form != "steps" else None
    counts = None
    if lengths:
        counts = torch.randint(steps + 1, (batch,))
        counts[: min(batch, 3)] = torch.tensor([steps, 0, 1])[: min(batch, 3)]
        behind = torch.arange(steps) >= counts[:, None]
        emit[behind] = torch.tensor([NAN, INF, -INF]).repeat(states)[:states]
        if form == "tokens":
            trans[behind[:, 1:]] = NAN
    return [x if x is None or x.dtype == torch.int64 else x.to(dtype)
            for x in (init, trans, emit, counts, final)]  # fmt: skip


def lora(
    groups, repeat, heads, skills, rank, d_in, d_out, mixtures,
    dtype=torch.float32, adapter=torch.float32,
):  # fmt: skip
    """x, lora_a, lora_b, weights, rows and base of `routed_lora`."""
    x = torch.randn(groups, repeat, d_in).to(dtype)
    a = torch.randn(heads, skills, d_in // heads, rank).to(adapter)
    b = torch.randn(heads, skills, rank, d_out // heads).to(adapter)
    weights = torch.rand(mixtures, heads, skills).to(routing.real_type(dtype))
    rows = torch.randint(mixtures, (groups,))
    return x, a, b, weights, rows, torch.randn(groups, repeat, d_out).to(dtype)

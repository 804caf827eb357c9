"""Launches that cover the kernels of `routing`: prefill, packed rows, decoding; ranks 16 and 64."""

import torch

from oneshot.triton_kernels import routing as kernels


def call(groups, repeat, mixtures, dtype, rank=16, heads=4, skills=8, d_in=2048, d_out=1024):
    x = torch.zeros((groups, repeat, d_in), dtype=dtype)
    base = torch.zeros((groups, repeat, d_out), dtype=dtype)
    a = torch.zeros(heads, skills, d_in // heads, rank)
    b = torch.zeros(heads, skills, rank, d_out // heads)
    weights = torch.zeros(mixtures, heads, skills)
    rows = torch.arange(groups) % mixtures
    _, shrunk = kernels.routed_lora(x, a, b, weights, rows, base, 0.5)
    kernels.routed_lora_backward(base, x, a, b, weights, rows, shrunk, 0.5, True, True, True, True)
    kernels.mix_adapters(a, weights, True)


def cases():
    for dtype in (torch.float32, torch.bfloat16):
        call(4, 64, 2, dtype)
        call(200, 1, 16, dtype)
        call(64, 1, 16, dtype)
    call(4, 64, 2, torch.bfloat16, rank=64)
    call(64, 1, 16, torch.bfloat16, rank=64)


def more_batches():
    """Other batch shapes of the same model: no kernel may be new."""
    for groups, repeat, mixtures in ((1, 100, 1), (7, 300, 3), (1000, 1, 5), (33, 1, 33)):
        call(groups, repeat, mixtures, torch.bfloat16)

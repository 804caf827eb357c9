"""mix_adapters, routed_lora and routed_ia3 on every backend.

The Triton kernels round the factors of a product in a half format to it; sums are float32 or
better everywhere.
"""

import backends
import pytest
import torch
from backends import DEVICE
from kernel_inputs import lora
from parity import DTYPES, FULL, HALVES, check, close, some

from oneshot.reference import routing as reference


def tolerance(dtype):
    """Of sums over products of this dtype, in units of the largest number."""
    rounded = dtype in HALVES and backends.NAME != "emulated" and backends.NAME != "cuda"
    eps = 2 * torch.finfo(dtype).eps if rounded else 2e-6
    return {"rtol": eps, "atol": eps, "exact": 1e-10, "scaled": True}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", some((2, 3, 7, 4, 3), (1, 1, 1, 1, 1), (3, 2, 65, 1, 2), (1, 9, 3, 130, 9))
)
def test_mix_adapters(shape, transposed, dtype):
    *shape, mixtures = shape
    heads, skills = shape[:2]
    inventory = torch.randn(shape).to(dtype)
    weights = torch.randn(mixtures, heads, skills).to(reference.real_type(dtype))
    ((got, _),) = check("mix_adapters", inventory, weights, transposed, **tolerance(torch.float32))
    grad = torch.randn(got.shape).to(weights.dtype)
    for needs in ((True, True), (True, False), (False, True)):
        check(
            "mix_adapters_backward", grad, inventory, weights, transposed, *needs,
            **tolerance(torch.float32),
        )  # fmt: skip


def both_ways(x, a, b, weights, rows, base, scaling=0.7):
    allowed = tolerance(x.dtype)
    y, shrunk = check("routed_lora", x, a, b, weights, rows, base, scaling, **allowed)
    grad = torch.randn(y.got.shape).to(x.dtype)
    for needs in ((True,) * 4, (True, False, True, False)):
        needs = needs if weights is not None else (*needs[:3], False)
        check(
            "routed_lora_backward", grad, x, a, b, weights, rows, shrunk, scaling, *needs,
            **allowed,
        )  # fmt: skip


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1, 1, 1, 1),
        (3, 7, 2, 3, 4, 10, 6, 2),  # one task an example
        (63, 1, 3, 2, 5, 9, 66, 4),  # packed rows, from the inventories on a GPU
        (9, 8, 2, 3, 4, 10, 6, 3),  # from mixtures
        pytest.param((5, 7, 1, 2, 3, 600, 70, 2), marks=FULL),  # more features than one sum takes
        pytest.param((300, 1, 1, 2, 3, 12, 8, 5), marks=FULL),  # more than are taken one by one
        pytest.param((2, 140, 1, 2, 17, 65, 63, 5), marks=FULL),  # several tiles; empty mixtures
        (0, 3, 2, 3, 4, 10, 6, 2),
        (3, 0, 2, 3, 4, 10, 6, 2),
    ],
)
def test_routed_lora(sizes):
    both_ways(*lora(*sizes))


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
def test_dtypes(dtype, adapter):
    both_ways(*lora(5, 9, 2, 3, 8, 64, 32, 3, dtype, adapter))
    both_ways(*lora(5, 14, 2, 3, 8, 64, 32, 3, dtype, adapter))


@FULL
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 4, 16, 17, 64])
@pytest.mark.parametrize("rows", [(6, 50), (300, 1), (7, 1)])
def test_ranks(rows, rank, dtype):
    adapter = torch.float64 if dtype == torch.float64 else torch.float32
    both_ways(*lora(*rows, 4, 8, rank, 64, 200, 3, dtype, adapter))
    both_ways(*lora(*rows, 4, 8, rank, 64, 200, 70, dtype, adapter))


def test_mixed_adapters_no_base_and_rows_that_begin_anywhere():
    x, a, b, weights, rows, _ = lora(4, 5, 2, 3, 4, 8, 6, 3)
    mixed = (reference.mix_adapters(a, weights, True), reference.mix_adapters(b, weights, False))
    both_ways(x, *mixed, None, rows, None)
    both_ways(torch.randn(4 * 5 * 8 + 1)[1:].view(4, 5, 8), a, b, weights, rows, None)
    both_ways(torch.randn(4, 5, 16)[..., ::2], a, b, weights, rows, None)


@pytest.mark.parametrize("plan", ["auto", "mixtures", "inventory"])
def test_public_gradients(plan):
    from oneshot import ops

    logits = torch.randn(5, 2, 3, dtype=torch.float64)
    x, a, b, _, _, base = lora(4, 6, 2, 3, 4, 10, 8, 1, torch.float64, torch.float64)
    ids, vectors = torch.tensor([3, 0, 3, 1]), torch.randn(2, 3, 4, dtype=torch.float64)
    grads = []
    for dtype, device in ((torch.float32, DEVICE), (torch.float64, "cpu")):
        tensors = [t.to(device, dtype).requires_grad_() for t in (logits, x, a, b, vectors, base)]
        weights, rows = ops.routing_weights(tensors[0], ids)
        y = ops.routed_lora(
            *tensors[1:4], weights, rows, scaling=0.5, base=tensors[5], plan=plan
        )  # fmt: skip
        ops.routed_ia3(y, tensors[4], weights, rows).sin().sum().backward()
        grads.append([t.grad for t in tensors])
    for got, want in zip(*grads, strict=True):
        close(got, want, rtol=2e-5, atol=2e-5)

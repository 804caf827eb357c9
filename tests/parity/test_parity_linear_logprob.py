"""The head without logits over the `logprob` kernels of every backend: public calls, gradients."""

import pytest
import torch
from backends import DEVICE
from parity import HALVES, INF, NAN, close

from oneshot import ops
from oneshot.reference.linear_logprob import linear_token_statistics as definition


def both(dtype=torch.float32, k=2, rows=4, vocab=2050, memory_bytes=1 << 16, mask=None, **options):
    """All outputs and gradients on the backend's device, and by the definition in float64."""
    hidden, weight = torch.randn(rows, 16).to(dtype), torch.randn(vocab, 16).to(dtype)
    bias, targets = torch.randn(vocab).to(dtype), torch.randint(vocab, (rows, k))
    upstream = torch.randn(rows, k), torch.randn(rows)
    if mask is not None:
        hidden[~mask], targets[~mask] = NAN, -100
    results = []
    for double in (False, True):
        leaves = [(x.double() if double else x.to(DEVICE)) for x in (hidden, weight, bias)]
        leaves = [x.clone().requires_grad_() for x in leaves]
        place = "cpu" if double else DEVICE
        given = {**options, "mask": mask}
        given = {n: x.to(place) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
        function, more = definition, {}
        if not double:
            function, more = ops.linear_token_statistics, {"memory_bytes": memory_bytes}
        out = function(*leaves[:2], targets.to(place), bias=leaves[2], **given, **more)
        torch.autograd.backward(out[:2], [u.to(out[0]) for u in upstream])
        results.append((out, [x.grad for x in leaves]))
    (got, grads), (want, true) = results
    rough = dtype in HALVES
    for mine, exact in zip(got[:4], want[:4], strict=True):
        limit = 0.1 if rough else 2e-5
        close(mine.detach(), exact.detach(), rtol=limit, atol=limit)
    if not rough:
        assert torch.equal(got.is_top1.cpu(), want.is_top1)
    for mine, exact in zip(grads, true, strict=True):
        error = (mine.double().cpu() - exact).norm() / exact.norm()
        assert error < (3e-2 if rough else 2e-5)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 16, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles(dtype, memory_bytes):
    both(dtype, memory_bytes=memory_bytes)


@pytest.mark.parametrize("options", [{"temperature": 0.7, "logit_scale": 0.5}, {"softcap": 3.0}])
def test_transforms(options):
    both(**options)


def test_masked_rows():
    both(mask=torch.tensor([True, False, True, False]))


def test_a_tile_without_any_kept_token():
    keep = torch.zeros(4, 2050, dtype=torch.bool)
    keep[:2, :500] = keep[2:, 1800:] = True
    both(keep_mask=keep)


def test_no_token_at_all_and_infinite_bias():
    hidden, weight = torch.randn(2, 8, device=DEVICE), torch.randn(2050, 8, device=DEVICE)
    bias, targets = torch.zeros(2050, device=DEVICE), torch.tensor([1, 2000], device=DEVICE)
    keep = torch.ones(2, 2050, dtype=torch.bool, device=DEVICE)
    keep[0] = False
    out = ops.linear_token_logprobs_and_entropy(
        hidden, weight, targets, bias=bias, keep_mask=keep, memory_bytes=1 << 14
    )
    for value in out:
        assert value.isnan().tolist() == [True, False]
    bias[5] = INF
    for value in ops.linear_token_logprobs_and_entropy(
        hidden, weight, targets, bias=bias, memory_bytes=1 << 14
    ):
        assert value.isnan().all()

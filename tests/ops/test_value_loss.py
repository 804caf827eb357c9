"""`value_loss` against loops in float64."""

import math

import policy_loss_oracle as oracle
import pytest
import torch
from policy_loss_inputs import Batch

from oneshot import ops


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        {"aggregate": "token-mean"},
        {"aggregate": "token-mean", "token_count": 99},
        {"aggregate": "seq-mean-token-mean"},
        {"aggregate": "seq-mean-token-sum", "count_empty": True},
        {"aggregate": "seq-mean-token-sum-norm", "max_length": 13},
    ],
    ids=lambda case: case["aggregate"],
)
def test_value_loss_matches_loops(clip, dtype, case):
    batch = Batch([63, 0, 17, 1], 63, dtype)
    values = batch.new.clone().requires_grad_()
    old = None if clip is None else batch.old
    out = ops.value_loss(values, old, batch.ref, batch.mask, clip=clip, **case)
    (out.loss * 3).backward()
    leaves = batch.lists(batch.new, leaf=True)
    loss = oracle.value_loss(
        leaves, batch.lists(batch.old), batch.lists(batch.ref), clip, case["aggregate"],
        count=case.get("token_count"), max_length=case.get("max_length"),
        count_empty=case.get("count_empty", False),
    )  # fmt: skip
    (loss * 3).backward()
    tight = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out.loss.detach().double(), loss.detach(), rtol=tight, atol=0)
    torch.testing.assert_close(
        values.grad.double(), batch.scatter(leaves), rtol=tight, atol=tight / 10
    )
    figures = out.metrics_dict()
    value = batch.new[batch.mask].double()
    target = batch.ref[batch.mask].double()
    assert figures["value_mean"] == pytest.approx(value.mean().item(), rel=tight)
    assert figures["return_mean"] == pytest.approx(target.mean().item(), rel=tight)
    want = 1 - (target - value).var(unbiased=False) / target.var(unbiased=False)
    assert figures["explained_variance"] == pytest.approx(want.item(), rel=tight * 10)
    if clip is not None:
        bounded = value.clamp(batch.old[batch.mask] - clip, batch.old[batch.mask] + clip)
        share = ((bounded - target) ** 2 > (value - target) ** 2).double().mean().item()
        assert figures["clip_fraction"] == pytest.approx(share, abs=1e-6)


def test_value_loss_layouts_threads_and_emptiness():
    batch = Batch([40, 0, 63, 1, 300], 300)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        values = batch.new.clone().requires_grad_()
        out = ops.value_loss(values, batch.old, batch.ref, batch.mask)
        out.loss.backward()
        results.append((out.loss.detach(), out.metrics, values.grad))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    flat, cu_seqlens = batch.packed(batch.new)
    flat.requires_grad_()
    packed = ops.value_loss(
        flat, batch.packed(batch.old)[0], batch.packed(batch.ref)[0], batch.packed(batch.mask)[0],
        cu_seqlens=cu_seqlens,
    )  # fmt: skip
    packed.loss.backward()
    assert torch.equal(packed.loss, results[0][0])
    assert torch.equal(packed.metrics, results[0][1])
    assert torch.equal(flat.grad, batch.packed(results[0][2])[0])
    empty = torch.full((2, 3), math.nan).requires_grad_()
    none = ops.value_loss(empty, empty.detach(), empty.detach(), torch.zeros(2, 3).bool())
    none.loss.backward()
    assert none.loss == 0
    assert (none.metrics == 0).all()
    assert (empty.grad == 0).all()


def test_value_loss_errors():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="needs old_values"):
        ops.value_loss(x, None, x)
    with pytest.raises(ValueError, match="clip must be positive"):
        ops.value_loss(x, x, x, clip=0.0)
    with pytest.raises(ValueError, match="returns must have the shape"):
        ops.value_loss(x, x, x[:1])

"""`policy_loss` as a torch op: opcheck, fullgraph compilation, inductor."""

import pytest
import torch
from policy_loss_inputs import INF, Batch

from oneshot import ops


def _op_inputs(dtype=torch.float32, packed=False):
    batch = Batch([5, 0, 7], 7, dtype)
    captured = {}
    module = ops.policy_loss.__globals__
    handle = module["_policy_loss"]

    def catch(*args):
        captured["args"] = args
        return handle(*args)

    module["_policy_loss"] = catch
    try:
        if packed:
            new, cu_seqlens = batch.packed(batch.new)
            ops.policy_loss(
                new.requires_grad_(), None, batch.advantage, batch.packed(batch.mask)[0],
                cu_seqlens=cu_seqlens,
            )  # fmt: skip
        else:
            ops.policy_loss(
                batch.new.requires_grad_(), batch.old, batch.advantages, batch.mask,
                ref_logprobs=batch.ref, entropy=batch.entropy.requires_grad_(),
                importance_weights=batch.weights, kl_coef=0.1, entropy_coef=0.1, token_count=40,
            )  # fmt: skip
    finally:
        module["_policy_loss"] = handle
    return captured["args"]


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed):
    args = _op_inputs(torch.float64, packed)
    # masked garbage is NaN by design, and opcheck compares inputs with ==
    args = tuple(
        x.detach().nan_to_num(0, 0, 0).requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in args
    )
    torch.library.opcheck(torch.ops.oneshot.policy_loss.default, args)
    batch = Batch([5, 7], 7, torch.float64)
    values = torch.where(batch.mask, batch.new, 0).requires_grad_()
    old = torch.where(batch.mask, batch.old, 0)
    torch.library.opcheck(
        torch.ops.oneshot.value_loss.default,
        (values, old, old + 1, batch.mask, None, None, 0.2, 0, False, 1),
    )
    torch.library.opcheck(
        torch.ops.oneshot.importance_weights.default,
        (old, old + 0.1, batch.mask, None, False, True, 0.0, 2.0, 20.0, True, False),
    )


def test_compiles_fullgraph_with_dynamic_sizes_once():
    torch._dynamo.reset()
    compiled_count = 0

    def backend(graph, inputs):
        nonlocal compiled_count
        compiled_count += 1
        return graph.forward

    def step(new, old, advantages, mask, ref, entropy):
        out = ops.policy_loss(
            new, old, advantages, mask, ref_logprobs=ref, entropy=entropy, objective="dr_grpo",
            kl_coef=0.1, entropy_coef=0.01, dual_clip=3.0,
        )  # fmt: skip
        return out.loss, out.metrics

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for lengths, width in (([5, 0, 7], 9), ([3, 2, 4, 11], 12), ([7, 7], 30)):
        batch = Batch(lengths, width)
        inputs = (batch.old, batch.advantages, batch.mask, batch.ref, batch.entropy)
        a, b = batch.new.clone().requires_grad_(), batch.new.clone().requires_grad_()
        loss, metrics = compiled(a, *inputs)
        want_loss, want_metrics = step(b, *inputs)
        loss.backward()
        want_loss.backward()
        assert torch.equal(loss, want_loss)
        assert torch.equal(metrics, want_metrics)
        assert torch.equal(a.grad, b.grad)
    assert compiled_count == 1


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: ops.policy_loss(*x, clip_high=INF, kl_coef=0.0).loss,
        fullgraph=True,
        dynamic=True,
    )
    for width in (9, 30):
        batch = Batch([5, 7], width)
        new = batch.new.clone().requires_grad_()
        loss = compiled(new, batch.old, batch.advantages, batch.mask)
        loss.backward()
        want = ops.policy_loss(batch.new, batch.old, batch.advantages, batch.mask, clip_high=INF)
        assert torch.equal(loss.detach(), want.loss)

"""The `routing` family against PEFT's Poly layer: same parameters, same numbers."""

import pytest
import torch

from oneshot import ops

poly = pytest.importorskip("peft.tuners.poly.layer", reason="PEFT is not installed")

TASKS, HEADS, SKILLS, RANK, D_IN, D_OUT = 7, 4, 3, 5, 24, 36


def peft_layer():
    from peft import PolyConfig

    config = PolyConfig(r=RANK, n_tasks=TASKS, n_skills=SKILLS, n_splits=HEADS, init_weights=False)
    base = torch.nn.Linear(D_IN, D_OUT).double()
    layer = poly.Linear(base, "default", config).double()
    router = layer.poly_router["default"]
    torch.nn.init.normal_(router.module_logits)
    leaves = layer.poly_lora_A["default"], layer.poly_lora_B["default"], router.module_logits
    return base, layer, leaves


def routed(base, x, lora_a, lora_b, logits, task_ids, **options):
    weights, rows = ops.routing_weights(logits.view(TASKS, HEADS, SKILLS), task_ids, **options)
    return ops.routed_lora(
        x, lora_a, lora_b, weights, rows, scaling=1 / RANK, base=base(x), plan="mixtures"
    )


def test_the_layer_in_evaluation_mode():
    """PEFT mixes for every example, we mix for every task: one function, one set of gradients."""
    base, layer, leaves = peft_layer()
    layer.eval()
    x = torch.randn(6, 9, D_IN, dtype=torch.float64, requires_grad=True)
    task_ids = torch.tensor([5, 0, 5, 3, 0, 5])
    theirs = layer(x, task_ids=task_ids)
    ours = routed(base, x, *leaves, task_ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (x, *leaves), upstream),
        torch.autograd.grad(theirs, (x, *leaves), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_noise_has_the_distribution_of_pefts_router():
    """Quantiles of 20000 draws of the weights of one task, heads apart."""
    _, layer, (_, _, logits) = peft_layer()
    layer.train()
    with torch.no_grad():
        theirs = layer.poly_router["default"](torch.full((20000,), 2), None)
        ours, _ = ops.routing_weights(
            logits.view(TASKS, HEADS, SKILLS), torch.full((20000,), 2), noise="per_example"
        )
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(
        ours.quantile(levels, 0), theirs.quantile(levels, 0), rtol=0, atol=0.02
    )


def test_what_peft_refuses_or_gets_wrong():
    """One id for a batch, rows without a batch dimension, and -1, which PEFT takes for the last."""
    base, layer, leaves = peft_layer()
    layer.eval()
    x = torch.randn(2, 3, D_IN, dtype=torch.float64)
    with torch.no_grad():
        want = layer(x, task_ids=torch.tensor([6, 6]))
        for ours in (
            routed(base, x, *leaves, 6),
            routed(base, x, *leaves, torch.tensor(6)),
            routed(base, x.flatten(0, 1), *leaves, torch.full((6,), 6)).view_as(want),
        ):
            torch.testing.assert_close(ours, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(x, task_ids=torch.tensor([-1, -1])), want)
        with pytest.raises(ValueError, match="task_ids must lie in"):
            routed(base, x, *leaves, torch.tensor([-1, -1]))


def saved_bytes(call, known):
    """Bytes in storages that autograd keeps, without those that exist anyway."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


@pytest.mark.parametrize(("examples", "steps", "tasks"), [(8, 16, 4), (32, 4, 4), (24, 1, 3)])
def test_saved_memory_is_at_most_its_share_of_pefts(examples, steps, tasks):
    """Distinct tasks / examples times what PEFT keeps beyond x and the parameters."""
    base, layer, leaves = peft_layer()
    layer.eval()
    x = torch.randn(examples, steps, D_IN, dtype=torch.float64, requires_grad=True)
    task_ids, known = torch.arange(examples) % tasks, (x, base.weight, *leaves)
    outputs = []
    theirs = saved_bytes(lambda: outputs.append(layer(x, task_ids=task_ids)), known)
    ours = saved_bytes(lambda: outputs.append(routed(base, x, *leaves, task_ids)), known)
    assert ours <= theirs * tasks / examples

"""Gradients: checkpointing of both kinds, noise, two-speed learning rates."""

import poly_tiny
import pytest
import torch
from transformers import Trainer, TrainingArguments


def gradients(poly, losses):
    """Gradients after the backward passes of all losses, taken after all forward passes."""
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in poly.adapter_parameters().items() if p.requires_grad}


def two_losses(poly):
    ids = poly_tiny.tokens()
    yield poly(input_ids=ids, labels=ids, task_ids=[0, 3, 0, 1]).loss
    yield poly(input_ids=ids, labels=ids, task_ids=2).loss


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("routing", ["learned", "uniform"])
def test_checkpointing_changes_no_gradient(name, reentrant, routing):
    """Two forward passes with other tasks before any backward: each recomputes its own routing."""
    make = poly_tiny.ARCHITECTURES[name]
    plain = poly_tiny.adapted(make, routing=routing).train()
    expected = gradients(plain, list(two_losses(plain)))
    poly = poly_tiny.adapted(make, routing=routing).train()
    poly.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(poly, list(two_losses(poly)))
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-5)
    poly.unload()
    for module in poly.base_model.modules():
        assert not hasattr(getattr(module, "_gradient_checkpointing_func", None), "poly_context")


def test_gradients_against_differences():
    """Autograd of one whole small model in float64 against central differences."""
    targets = ("c_attn", "mlp.c_proj")
    # GPT-2: the norms of Llama and T5 compute in float32 whatever comes in.
    poly = poly_tiny.adapted(poly_tiny.gpt2, target_modules=targets, rank=1).double()
    ids = poly_tiny.tokens(2, 4)
    tasks = [3, 1]

    def loss():  # transformers' own loss is float32
        scores = poly(input_ids=ids, task_ids=tasks).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(scores, ids[:, 1:].flatten())

    loss().backward()
    step = 1e-5
    for name, parameter in poly.adapter_parameters().items():
        flat = parameter.data.view(-1)
        for i in torch.linspace(0, flat.numel() - 1, 7).long().tolist():
            values = []
            with torch.no_grad():
                for sign in (1, -2, 1):
                    flat[i] += sign * step
                    values.append(loss())
            slope = (values[0] - values[1]) / (2 * step)
            torch.testing.assert_close(
                parameter.grad.view(-1)[i], slope, atol=1e-8, rtol=1e-4, msg=name
            )


def test_own_weights_are_frozen_and_tasks_not_in_the_batch_get_no_gradient():
    poly = poly_tiny.adapted().train()
    next(two_losses(poly)).backward()
    own = dict(poly.adapter_parameters())
    for name, parameter in poly.named_parameters():
        assert parameter.requires_grad == any(parameter is p for p in own.values()), name
    gradient = poly.router.logits.grad
    assert gradient[:, [0, 1, 3]].abs().sum(dim=(0, 2, 3)).min() > 0
    assert not gradient[:, [2, 4]].any()


@pytest.mark.parametrize("noise", ["per_task", "per_example"])
def test_noise_only_in_training(noise):
    poly = poly_tiny.adapted(noise=noise)
    ids = poly_tiny.tokens(1).expand(4, -1)
    with torch.no_grad():
        calm = poly(input_ids=ids, task_ids=1).logits
        torch.testing.assert_close(calm, poly(input_ids=ids, task_ids=1).logits, atol=0, rtol=0)
        poly.train()
        torch.manual_seed(0)
        first = poly(input_ids=ids, task_ids=1).logits
        second = poly(input_ids=ids, task_ids=1).logits
        torch.manual_seed(0)
        torch.testing.assert_close(first, poly(input_ids=ids, task_ids=1).logits, atol=0, rtol=0)
    assert (first - second).abs().max() > 1e-3
    alike = (first[0] - first[1]).abs().max() < 1e-5
    assert alike == (noise == "per_task")


def test_sampled_routing_is_relaxed_bernoulli():
    """At logit 0 and temperature 1 the share of one of two skills is u / (u + v), u, v uniform.

    Its mean is 1/2 and P(share < 1/4) = P(3u < v) = 1/6.
    """
    poly = poly_tiny.adapted(tasks=1, skills=2, noise="per_example", target_modules=("q_proj",))
    torch.nn.init.zeros_(poly.router.logits)
    poly.router.train()
    with torch.no_grad():
        weights, rows = poly.router(torch.zeros(20_000, dtype=torch.long))
    share = weights[:, rows][..., 0].flatten()  # 80,000 draws
    assert share.numel() == 80_000
    assert share.mean().item() == pytest.approx(0.5, abs=0.004)
    assert (share < 0.25).double().mean().item() == pytest.approx(1 / 6, abs=0.006)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_parameter_groups():
    poly = poly_tiny.adapted()
    groups = {g["name"]: g for g in poly.param_groups(lr=2e-3, router_lr=0.2, weight_decay=0.01)}
    assert groups["router"]["params"][0] is poly.router.logits
    assert (groups["router"]["lr"], groups["router"]["weight_decay"]) == (0.2, 0.0)
    assert (groups["adapters"]["lr"], groups["adapters"]["weight_decay"]) == (2e-3, 0.01)
    assert len(groups["adapters"]["params"]) == 2 * len(poly.layers)
    poly.freeze_inventory()
    assert [g["name"] for g in poly.param_groups()] == ["router"]
    poly.freeze_inventory(False)
    poly.average()
    assert [g["name"] for g in poly.param_groups()] == ["adapters"]


def test_the_trainer_of_transformers_trains_it(tmp_path):
    poly = poly_tiny.adapted()
    before = poly.router.logits.detach().clone()
    rows = [
        {"input_ids": row, "labels": row, "task_ids": torch.tensor(i % 5)}
        for i, row in enumerate(poly_tiny.tokens(8))
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    groups = poly.param_groups(router_lr=0.5)
    optimizer = torch.optim.AdamW(groups)
    Trainer(poly, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
    assert (poly.router.logits - before).abs().max() > 0.1

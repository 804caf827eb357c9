"""Gradients: checkpointing of both kinds, noise, two-speed learning rates."""

import copy
import pickle
import threading

import poly_tiny
import pytest
import torch
from safetensors.torch import load_file
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


TRAINED = ["llama", "t5", "gpt2", "qwen3", "bart"]  # of which gpt2, qwen3 and bart are tied


class _Rows(torch.utils.data.Dataset):
    """Rows as people have them: with a column that the model does not know."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        row = poly_tiny.tokens(8)[i]
        return {"input_ids": row, "labels": row, "task_ids": torch.tensor(i % 5), "source": i}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_the_trainer_of_transformers_with_its_defaults(name, tmp_path):
    """Columns, checkpoints, evaluation, the best model at the end, resuming."""
    make = getattr(poly_tiny, name)

    def trainer(poly, **options):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            load_best_model_at_end=True,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        optimizer = torch.optim.AdamW(poly.param_groups(router_lr=0.5))
        options = {"train_dataset": _Rows(), "eval_dataset": _Rows()}
        return Trainer(poly, arguments, optimizers=(optimizer, None), **options)

    poly = poly_tiny.adapted(make)
    before = poly.router.logits.detach().clone()
    first = trainer(poly, max_steps=4)
    first.train()
    assert (poly.router.logits - before).abs().max() > 0.1
    losses = {r["step"]: r["eval_loss"] for r in first.state.log_history if "eval_loss" in r}
    assert sorted(losses) == [2, 4]
    assert first.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)

    best = load_file(f"{first.state.best_model_checkpoint}/model.safetensors")
    assert len(best) == len(poly.adapter_parameters())
    fresh = poly_tiny.adapted(make)
    fresh.load_state_dict(best)
    ids = poly_tiny.tokens()
    with torch.no_grad():
        expected = poly_tiny.logits(poly.eval(), ids, task_ids=[0, 3, 1, 2])
        assert torch.equal(poly_tiny.logits(fresh, ids, task_ids=[0, 3, 1, 2]), expected)

    resumed = trainer(poly_tiny.adapted(make), max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert resumed.state.log_history[: len(first.state.log_history) - 2][0]["step"] == 2


def test_a_copy_after_a_checkpointed_pass_is_a_model_of_its_own():
    """Reference models of DPO and GRPO, moving averages."""
    poly = poly_tiny.adapted().train()
    poly.gradient_checkpointing_enable({"use_reentrant": False})
    next(two_losses(poly)).backward()
    poly.zero_grad()
    expected = gradients(poly, [next(two_losses(poly))])
    twin = copy.deepcopy(poly)
    twin.zero_grad()
    found = gradients(twin, [next(two_losses(twin))])
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=0, rtol=0)
    with torch.no_grad():
        twin.router.logits.add_(1)
    assert not torch.equal(twin.router.logits, poly.router.logits)
    twin.unload()
    assert torch.isfinite(poly(input_ids=poly_tiny.tokens(), task_ids=0).logits).all()


def test_a_pickled_model_is_whole():
    """torch.save of a model, and what worker processes get."""
    poly = poly_tiny.adapted()
    twin = pickle.loads(pickle.dumps(poly))
    ids = poly_tiny.tokens()
    with torch.no_grad():
        expected = poly(input_ids=ids, task_ids=[0, 3, 1, 2]).logits
        assert torch.equal(twin(input_ids=ids, task_ids=[0, 3, 1, 2]).logits, expected)
    assert type(twin) is type(poly)


def test_a_checkpoint_of_ones_own_is_recomputed_in_a_thread_of_a_device(monkeypatch):
    """Autograd runs CUDA's backward in threads of its own: there the one open pass is meant."""
    poly = poly_tiny.adapted()
    layer = next(iter(poly.layers.values()))
    x = torch.ones(2, 3, 16)
    found = []

    def recompute():
        try:
            found.append(layer(x))
        except RuntimeError as error:
            found.append(str(error))

    def in_a_thread():
        thread = threading.Thread(target=recompute)
        thread.start()
        thread.join()
        return found.pop()

    with poly.routing([1, 2]), torch.no_grad():
        expected = layer(x)
        assert "no routing here" in in_a_thread()  # not a backward pass
        monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 7)
        with torch.no_grad():
            torch.testing.assert_close(in_a_thread(), expected)
        with poly.routing([2, 1]):
            assert "no routing here" in in_a_thread()  # which of the two?

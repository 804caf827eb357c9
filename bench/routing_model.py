"""Benchmarks of `routing` inside a model: one training step, every linear layer adapted.

The model has the shape of SmolLM2-135M and random weights, so that nothing has to be downloaded.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from oneshot.bench.registry import Foreign, Inputs, Operation, Provider
from oneshot.poly import PolyConfig, inject
from oneshot.poly.storage import assign

LAYERS, HIDDEN, INNER, KEYS, VOCABULARY = 30, 576, 1536, 192, 49152
# in, out of what is adapted in one block
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KEYS),
    "self_attn.v_proj": (HIDDEN, KEYS),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
NAMES = [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in SHAPES]
TASKS, SKILLS, HEADS, RANK = 32, 8, 8, 16
SCALING = 1 / RANK
TARGETS = [name.split(".")[1] for name in SHAPES]


@functools.cache
def _weights(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def _base(dtype: torch.dtype) -> Any:
    """A model of its own on weights that all providers share."""
    model = _weights(dtype)
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def _gradients(
    model: Any, inputs: Inputs, task_ids: torch.Tensor | None, learned: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    routed = {} if task_ids is None else {"task_ids": task_ids}
    with torch.enable_grad():
        loss = model(input_ids=inputs["ids"], labels=inputs["ids"], use_cache=False, **routed).loss
        return (loss, *torch.autograd.grad(loss, learned))


def _oracle(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Mixed for every example, in whole matrices, added by a hook behind each frozen layer."""
    model = copy.deepcopy(_weights(torch.float32)).double()
    logits = inputs["logits"].clone().requires_grad_()
    last = inputs["lora_b"][-1].clone().requires_grad_()
    with torch.enable_grad():
        scores = logits[:, inputs["task_ids"]].sigmoid()
        weights = scores / (scores.sum(-1, keepdim=True) + 1e-12)

        def hook(index: int) -> Any:
            b = last if index == len(NAMES) - 1 else inputs["lora_b"][index]
            mixed_a = torch.einsum("bhk,hkir->bhir", weights[index], inputs["lora_a"][index])
            mixed_b = torch.einsum("bhk,hkro->brho", weights[index], b)
            a, b = mixed_a.flatten(1, 2), mixed_b.flatten(2)
            return lambda module, given, y: y + SCALING * (given[0] @ a) @ b

        for index, name in enumerate(NAMES):
            model.get_submodule(name).register_forward_hook(hook(index))
    return _gradients(model, inputs, None, [logits, last])


def _ours(dtype: torch.dtype) -> Foreign:
    def prepare(inputs: Inputs) -> Any:
        config = PolyConfig(tasks=TASKS, skills=SKILLS, heads=HEADS, rank=RANK, alpha=1.0)
        model = inject(_base(dtype), config)
        tensors = {"router.logits": inputs["logits"]}
        for name, a, b in zip(NAMES, inputs["lora_a"], inputs["lora_b"], strict=True):
            tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        assign(model, tensors, "benchmark")
        layers = [model.layers[name] for name in NAMES]
        learned = [model.router.logits]
        learned += [p for layer in layers for p in (layer.lora_a, layer.lora_b)]
        return model, inputs, inputs["task_ids"], learned

    # loss, the gradient of all logits, and that of the very last B
    return Foreign(prepare, lambda step: _gradients(*step), lambda y: (y[0], y[1], y[-1]))


def _peft_poly(dtype: torch.dtype) -> Foreign:
    import peft

    def prepare(inputs: Inputs) -> Any:
        config = peft.PolyConfig(
            task_type="CAUSAL_LM",
            target_modules=TARGETS,
            r=RANK,
            n_tasks=TASKS,
            n_skills=SKILLS,
            n_splits=HEADS,
        )
        model = peft.get_peft_model(_base(dtype), config).eval()  # without noise
        layers = [model.base_model.model.get_submodule(name) for name in NAMES]
        learned = []
        for index, layer in enumerate(layers):
            a, b = layer.poly_lora_A["default"], layer.poly_lora_B["default"]
            logits = layer.poly_router["default"].module_logits
            a.data.copy_(inputs["lora_a"][index])
            b.data.copy_(inputs["lora_b"][index])
            logits.data.copy_(inputs["logits"][index].flatten(1))
            learned += [logits, a, b]
        return model, inputs, inputs["task_ids"], learned

    def outputs(y: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        logits = torch.stack(y[1::3]).view(len(NAMES), TASKS, HEADS, SKILLS)
        return y[0], logits, y[-1]

    return Foreign(prepare, lambda step: _gradients(*step), outputs)


def _peft_lora(dtype: torch.dtype) -> Foreign:
    import peft

    def prepare(inputs: Inputs) -> Any:
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=RANK)
        model = peft.get_peft_model(_base(dtype), config)
        return model, inputs, None, [p for p in model.parameters() if p.requires_grad]

    return Foreign(prepare, lambda step: _gradients(*step), lambda y: y)


def _operation(examples: int, steps: int, distinct: int) -> Operation:
    def make() -> Inputs:
        shapes = [SHAPES[name] for _ in range(LAYERS) for name in SHAPES]
        return {
            "ids": torch.randint(VOCABULARY, (examples, steps)),
            "task_ids": torch.arange(examples) % distinct,
            "logits": torch.randn(len(NAMES), TASKS, HEADS, SKILLS),
            "lora_a": tuple(
                torch.randn(HEADS, SKILLS, d // HEADS, RANK) / d**0.5 for d, _ in shapes
            ),
            "lora_b": tuple(torch.randn(HEADS, SKILLS, RANK, d // HEADS) for _, d in shapes),
        }

    kind = torch.float32
    return Operation(
        family="routing",
        kernel="routed_lora",
        variant="smollm2-step",
        shape=f"{examples}x{steps}-{distinct}tasks",
        dtype="float32",
        mode="forward",  # providers differentiate by themselves
        make=make,
        oracle=_oracle,
        providers=(
            Provider("oneshot", "ours", lambda: _ours(kind)),
            Provider("PEFT Poly", "peer", lambda: _peft_poly(kind)),
            Provider("PEFT LoRA", "floor", lambda: _peft_lora(kind)),
        ),
        quick=False,
    )


OPERATIONS = [_operation(8, 64, 4)]

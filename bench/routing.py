"""Benchmarks of the `routing` family: the adapter part of one layer, y = base + scaling x A B."""

from __future__ import annotations

import torch
from torch.func import functional_call

from oneshot import ops
from oneshot.bench import routing_model
from oneshot.bench.registry import Call, Inputs, Operation, Provider, plain
from oneshot.reference import routing as reference

FEATURES, RANK, SKILLS, HEADS, TASKS = 1024, 16, 8, 16, 128
SCALING = 1 / RANK
LEARNED = ("x", "lora_a", "lora_b", "logits")


def _oracle(inputs: Inputs) -> tuple[torch.Tensor]:
    """Mixed for every example, in whole matrices: the dense definition."""
    scores = inputs["logits"][inputs["task_ids"]].sigmoid()
    weights = scores / (scores.sum(-1, keepdim=True) + 1e-12)
    mixed_a = torch.einsum("bhk,hkir->bhir", weights, inputs["lora_a"]).flatten(1, 2)
    mixed_b = torch.einsum("bhk,hkro->brho", weights, inputs["lora_b"]).flatten(2)
    return (inputs["base"] + SCALING * (inputs["x"] @ mixed_a) @ mixed_b,)


def _ours(plan: str) -> Call:
    def call(inputs: Inputs) -> tuple[torch.Tensor]:
        weights, rows = ops.routing_weights(inputs["logits"], inputs["task_ids"])
        y = ops.routed_lora(
            inputs["x"],
            inputs["lora_a"],
            inputs["lora_b"],
            weights,
            rows,
            scaling=SCALING,
            base=inputs["base"],
            plan=plan,
        )
        return (y,)

    return call


def _reference(inputs: Inputs) -> tuple[torch.Tensor]:
    """The portable form of plan "mixtures" (what a device without a kernel runs)."""
    weights, rows = ops.routing_weights(inputs["logits"], inputs["task_ids"])
    y, _ = reference.routed_lora(
        inputs["x"],
        inputs["lora_a"],
        inputs["lora_b"],
        weights,
        rows,
        inputs["base"],
        SCALING,
    )
    return (y,)


def _peft() -> Call:
    from peft import PolyConfig
    from peft.tuners.poly.layer import Linear

    class Given(torch.nn.Linear):
        """Stands for the frozen layer: its output is an input here, so nobody pays for it."""

        output: torch.Tensor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output

    base = Given(FEATURES, FEATURES, bias=False)
    layer = Linear(
        base, "default", PolyConfig(r=RANK, n_tasks=TASKS, n_skills=SKILLS, n_splits=HEADS)
    ).eval()  # without noise, which would compute something else

    def call(inputs: Inputs) -> tuple[torch.Tensor]:
        base.output = inputs["base"].detach()  # PEFT adds in place
        parameters = {
            "poly_lora_A.default": inputs["lora_a"],
            "poly_lora_B.default": inputs["lora_b"],
            "poly_router.default.module_logits": inputs["logits"].flatten(1),
        }
        y = functional_call(layer, parameters, (inputs["x"],), {"task_ids": inputs["task_ids"]})
        return (y,)

    return call


def _plain_lora(backward: bool) -> Call:
    """One adapter of the same rank for everything, as PEFT's lora.Linear computes it."""

    def call(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        x = inputs["x"].detach().requires_grad_(backward)
        a = inputs["lora_a"][:, 0].reshape(FEATURES, RANK).T.contiguous().requires_grad_(backward)
        b = inputs["lora_b"][:, 0].reshape(FEATURES, RANK).contiguous().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            shrunk = torch.nn.functional.linear(x, a)
            y = inputs["base"] + torch.nn.functional.linear(shrunk, b) * SCALING
            if not backward:
                return (y,)
            return torch.autograd.grad(y, (x, a, b), inputs["cotangents"][0])

    return call


def operation(
    examples: int, steps: int, distinct: int, mode: str, *, quick: bool, plans: tuple[str, ...] = ()
) -> Operation:
    """The adapter part of one layer for so many examples of `distinct` tasks."""
    backward = mode == "forward+backward"

    def make() -> Inputs:
        shape = (examples, steps, FEATURES)
        part = FEATURES // HEADS
        return {
            "x": torch.randn(shape),
            "base": torch.randn(shape),
            "lora_a": torch.randn(HEADS, SKILLS, part, RANK) / FEATURES**0.5,
            "lora_b": torch.randn(HEADS, SKILLS, RANK, part),
            "logits": torch.randn(TASKS, HEADS, SKILLS),
            "task_ids": torch.arange(examples) % distinct,
            "cotangents": (torch.randn(shape),),
        }

    providers = [Provider("oneshot", "ours", plain(_ours("auto")))]
    providers += [Provider(f"oneshot {plan}", "ours", plain(_ours(plan))) for plan in plans]
    providers += [
        Provider("reference", "reference", plain(_reference)),
        Provider("PEFT Poly", "peer", _peft, mutates=("base",)),
        Provider("one plain LoRA", "floor", plain(_plain_lora(backward))),
    ]
    return Operation(
        family="routing",
        kernel="routed_lora",
        shape=f"{examples}x{steps}x{FEATURES}-{distinct}tasks",
        dtype="float32",
        mode="forward+backward" if backward else "forward",
        make=make,
        oracle=_oracle,
        providers=tuple(providers),
        differentiate=LEARNED if backward else (),
        quick=quick,
    )


OPERATIONS = [
    operation(8, 128, 4, "forward+backward", quick=True),
    operation(32, 32, 4, "forward+backward", quick=True),
    operation(64, 1, 8, "forward+backward", quick=True),
    # Decoding with more tasks than skills, where mixing for each task no longer pays.
    operation(128, 1, 128, "forward", quick=False, plans=("mixtures", "inventory")),
    *routing_model.OPERATIONS,
]

"""A benchmark whose right routing is known: tasks that are mixtures of latent skills.

A frozen linear layer stands for the model. The truth is an inventory of K LoRA adapters with H
heads, and each task uses, in each head, a known subset of the skills. The learner sees only noisy
inputs and outputs of mixed tasks, and must give three things: the outputs of unseen inputs,
which tasks share skills, and a new task from a few examples.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.model import PolyModel, inject
from oneshot.training.seeding import derive_seed

LAYER = "0"
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, rows of the routing, outputs


@dataclass(frozen=True)
class Truth:
    """Tasks and the routing that made them.

    Attributes:
        model: The layer with the true adapters.
        routing: True weights, [tasks, heads, skills]; each row is uniform over a subset.
    """

    model: PolyModel
    routing: torch.Tensor


@dataclass(frozen=True)
class SyntheticResult:
    """How well a learner does.

    Attributes:
        unexplained: Squared error on new inputs over the variance that the adapters add: 0 is
            perfect, 1 is the untrained layer.
        routing_correlation: Pearson correlation, over all pairs of tasks in each head, of the
            similarity of their learned and of their true routing; nan without a learned routing.
        parameters: Trained parameters.
    """

    unexplained: float
    routing_correlation: float
    parameters: int


def make_truth(
    seed: int, *, tasks: int = 24, skills: int = 4, heads: int = 4, rank: int = 2, size: int = 32
) -> Truth:
    """Tasks that use one or two of the skills in each head."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "truth"))
    torch.manual_seed(derive_seed(seed, "layer"))
    config = PolyConfig(
        tasks=tasks, target_modules=(LAYER,), skills=skills, heads=heads, rank=rank, alpha=rank
    )
    poly = inject(nn.Sequential(nn.Linear(size, size, bias=False)), config)
    used = torch.zeros(tasks, heads, skills)
    for task in range(tasks):
        for head in range(heads):
            count = 1 + int(torch.randint(2, (), generator=generator))
            used[task, head, torch.randperm(skills, generator=generator)[:count]] = 1
    layer = poly.layers[LAYER]
    with torch.no_grad():
        for name, parameter in layer.inventory().items():
            scale = size**-0.5 if name == "lora_a" else rank**-0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        assert poly.router.logits is not None
        poly.router.logits.copy_((40 * (2 * used - 1))[None])  # sigmoid 0 or 1
    return Truth(poly.eval(), used / used.sum(-1, keepdim=True))


def pretrain(
    truth: Truth,
    config: PolyConfig,
    seed: int,
    *,
    tasks: int | None = None,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 1e-2,
    router_lr: float = 0.1,
    noise: float = 0.1,
) -> PolyModel:
    """Trains adapters of this kind on mixed batches of the first tasks.

    Args:
        truth: The tasks.
        config: Adapters; `tasks` and `target_modules` are set here.
        seed: Of initialisation and batches.
        tasks: How many of the tasks take part (default: all).
        steps: AdamW steps, with a linear decay.
        batch: Examples of a step, of tasks drawn at random.
        lr: Learning rate of the adapters.
        router_lr: Learning rate of the router.
        noise: Standard deviation of the noise on the outputs.
    """
    tasks = truth.routing.shape[0] if tasks is None else tasks
    base = truth.model.layers[LAYER].base
    size = truth.model.layers[LAYER].in_features
    layer = nn.Linear(size, size, bias=False)
    layer.load_state_dict(base.state_dict())
    torch.manual_seed(derive_seed(seed, "init"))
    config = dataclasses.replace(config, tasks=tasks, target_modules=(LAYER,))
    poly = inject(nn.Sequential(layer), config)
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))

    def batches() -> Iterator[Batch]:
        for _ in range(steps):
            ids = torch.randint(tasks, (batch,), generator=generator)
            x, y = draw(truth, ids, noise, generator)
            yield x, ids, y

    _fit(poly, batches(), steps, lr, router_lr)
    return poly


def adapt(
    learner: PolyModel,
    truth: Truth,
    task: int,
    *,
    shots: int,
    seed: int,
    mode: Literal["poly", "z", "mu"] = "poly",
    steps: int = 200,
    lr: float = 1e-2,
    router_lr: float = 0.1,
    noise: float = 0.1,
) -> float:
    """Adapts a copy of a learner to one new task from a few examples.

    Args:
        learner: Trained on other tasks; stays as it is.
        truth: The tasks.
        task: Which of them.
        shots: Training examples; every step sees all of them.
        seed: Of the examples.
        mode: "poly" trains the inventory and a new routing, "z" the routing alone, "mu" the mean
            of the inventory.
        steps: AdamW steps, with a linear decay.
        lr: Learning rate of the adapters.
        router_lr: Learning rate of the router.
        noise: Standard deviation of the noise on the outputs.

    Returns:
        The variance of the task's own update that is missed on new inputs, as in `unexplained`.
    """
    if mode not in ("poly", "z", "mu"):
        raise ValueError(f'mode must be "poly", "z" or "mu", got {mode!r}')
    poly = copy.deepcopy(learner)
    torch.manual_seed(derive_seed(seed, "init", task))
    if mode == "mu":
        poly.average()
    poly.resize(1, keep=[])
    if mode == "z":
        poly.freeze_inventory()
    generator = torch.Generator().manual_seed(derive_seed(seed, "shots", task))
    x, y = draw(truth, torch.full((shots,), task), noise, generator)
    few = (x, torch.zeros(shots, dtype=torch.long), y)
    _fit(poly, itertools.repeat(few, steps), steps, lr, router_lr)
    return unexplained(poly, truth, range(task, task + 1))


def learn(truth: Truth, config: PolyConfig, seed: int, *, steps: int = 1000) -> SyntheticResult:
    """Pre-trains adapters of this kind on all tasks and measures them."""
    poly = pretrain(truth, config, seed, steps=steps)
    parameters = sum(p.numel() for p in poly.parameters() if p.requires_grad)
    return SyntheticResult(unexplained(poly, truth), routing_correlation(poly, truth), parameters)


@torch.no_grad()
def draw(
    truth: Truth, ids: torch.Tensor, noise: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ~ N(0, 1) and noisy outputs of the tasks `ids`, each [len(ids), size]."""
    x = torch.randn(len(ids), truth.model.layers[LAYER].in_features, generator=generator)
    y = truth.model(x, task_ids=ids)
    return x, y + noise * torch.randn(y.shape, generator=generator)


def _fit(
    poly: PolyModel, batches: Iterable[Batch], steps: int, lr: float, router_lr: float
) -> None:
    optimizer = torch.optim.AdamW(poly.param_groups(lr=lr, router_lr=router_lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    poly.train()
    for x, ids, y in batches:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(poly(x, task_ids=ids), y).backward()
        optimizer.step()
        schedule.step()
    poly.eval()


@torch.no_grad()
def unexplained(
    poly: PolyModel, truth: Truth, tasks: range | None = None, examples: int = 4096
) -> float:
    """Share of the adapters' variance that is missed, on new inputs.

    Args:
        poly: A learner.
        truth: The tasks.
        tasks: Which tasks rows 0, 1, ... of the learner's routing are (default: all).
        examples: Inputs, shared evenly by the tasks.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "test"))
    tasks = range(truth.routing.shape[0]) if tasks is None else tasks
    rows = torch.arange(examples) % len(tasks)
    x, y = draw(truth, tasks.start + rows, 0.0, generator)
    added = (y - truth.model.layers[LAYER].base(x)).square().mean()
    return float((poly(x, task_ids=rows) - y).square().mean() / added)


@torch.no_grad()
def routing_correlation(poly: PolyModel, truth: Truth) -> float:
    """How well the similarity of tasks agrees: see :class:`SyntheticResult`."""
    if poly.router.logits is None:
        return float("nan")
    tasks = poly.poly_config.tasks
    a, b = torch.triu_indices(tasks, tasks, offset=1)
    learned, true = similarities(poly, truth)
    pairs = torch.stack((learned[:, a, b].flatten(), true[:, a, b].flatten()))
    return float(torch.corrcoef(pairs)[0, 1])


@torch.no_grad()
def similarities(poly: PolyModel, truth: Truth) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine of the centred routing of every two tasks of the learner: learned and true.

    Skills may be permuted and rescaled: only which tasks route alike can be compared.

    Returns:
        Two tensors [heads, tasks, tasks].
    """
    learned = poly.router.weights()[0]  # [tasks, heads, skills]
    heads = truth.routing.shape[1]
    if learned.shape[1] != heads:  # Polytropon: one routing for all heads
        learned = learned.repeat_interleave(heads // learned.shape[1], dim=1)
    both = []
    for weights in (learned, truth.routing[: learned.shape[0]]):
        centred = (weights - weights.mean(0)).transpose(0, 1)  # [heads, tasks, skills]
        unit = nn.functional.normalize(centred, dim=-1)
        both.append(unit @ unit.transpose(1, 2))
    return both[0], both[1]

"""A benchmark whose right routing is known: tasks that are mixtures of latent skills.

A frozen linear layer stands for the model. The truth is an inventory of K LoRA adapters with H
heads, and each task uses, in each head, a known subset of the skills. The learner sees only noisy
inputs and outputs of mixed tasks, and is asked for two things: the outputs of unseen inputs, and
which tasks share skills.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.model import PolyModel, inject
from oneshot.runs.seeding import derive_seed

LAYER = "0"


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
    """What a learner has found.

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


def learn(
    truth: Truth,
    config: PolyConfig,
    seed: int,
    *,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 1e-2,
    router_lr: float = 0.1,
    noise: float = 0.1,
) -> SyntheticResult:
    """Trains adapters of this kind on the tasks and measures them.

    Args:
        truth: The tasks.
        config: Adapters; `tasks` and `target_modules` are set here.
        seed: Of initialisation and batches.
        steps: AdamW steps, with a linear decay.
        batch: Examples of a step, of tasks drawn at random.
        lr: Learning rate of the adapters.
        router_lr: Learning rate of the router.
        noise: Standard deviation of the noise on the outputs.
    """
    tasks = truth.routing.shape[0]
    base = truth.model.layers[LAYER].base
    size = truth.model.layers[LAYER].in_features
    layer = nn.Linear(size, size, bias=False)
    layer.load_state_dict(base.state_dict())
    torch.manual_seed(derive_seed(seed, "init"))
    config = dataclasses.replace(config, tasks=tasks, target_modules=(LAYER,))
    poly = inject(nn.Sequential(layer), config)
    optimizer = torch.optim.AdamW(poly.param_groups(lr=lr, router_lr=router_lr))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    poly.train()
    for _ in range(steps):
        x = torch.randn(batch, size, generator=generator)
        ids = torch.randint(tasks, (batch,), generator=generator)
        with torch.no_grad():
            y = truth.model(x, task_ids=ids)
            y = y + noise * torch.randn(y.shape, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(poly(x, task_ids=ids), y).backward()
        optimizer.step()
        schedule.step()
    poly.eval()
    parameters = sum(p.numel() for p in poly.parameters() if p.requires_grad)
    return SyntheticResult(unexplained(poly, truth), _correlation(poly, truth), parameters)


@torch.no_grad()
def unexplained(poly: PolyModel, truth: Truth, examples: int = 4096) -> float:
    """Share of the adapters' variance that is missed, on new inputs of all tasks."""
    generator = torch.Generator().manual_seed(derive_seed(0, "test"))
    tasks = truth.routing.shape[0]
    x = torch.randn(examples, truth.model.layers[LAYER].in_features, generator=generator)
    ids = torch.arange(examples) % tasks
    y = truth.model(x, task_ids=ids)
    added = (y - truth.model.layers[LAYER].base(x)).square().mean()
    return float((poly(x, task_ids=ids) - y).square().mean() / added)


@torch.no_grad()
def _correlation(poly: PolyModel, truth: Truth) -> float:
    """How well the similarity of tasks agrees; skills may be permuted and rescaled."""
    if poly.router.logits is None:
        return float("nan")
    learned = poly.router.weights()[0]  # [tasks, heads, skills]
    heads = truth.routing.shape[1]
    if learned.shape[1] != heads:  # Polytropon: one routing for all heads
        learned = learned.repeat_interleave(heads // learned.shape[1], dim=1)
    tasks = truth.routing.shape[0]
    pairs = torch.triu_indices(tasks, tasks, offset=1)
    similarities = []
    for weights in (learned, truth.routing):
        centred = (weights - weights.mean(0)).transpose(0, 1)  # [heads, tasks, skills]
        unit = nn.functional.normalize(centred, dim=-1)
        similarities.append((unit @ unit.transpose(1, 2))[:, pairs[0], pairs[1]].flatten())
    return float(torch.corrcoef(torch.stack(similarities))[0, 1])


def same_size_lora(config: PolyConfig) -> PolyConfig:
    """A shared LoRA with as many adapter parameters as the whole inventory of `config`."""
    rank = config.rank * config.skills
    return dataclasses.replace(
        config,
        routing="uniform",
        skills=1,
        heads=1,
        rank=rank,
        alpha=config.alpha * config.skills,
    )

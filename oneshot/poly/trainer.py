"""Multi-task training: every batch mixes tasks, every task has its row of the router.

One step: draw the examples of the batch and their tasks, run the model with the adapters of each
example's task, take one AdamW step at two speeds. Every random number derives from the seed and the
step, so a killed run continues bit for bit. Several processes (`torchrun`, `accelerate launch`)
share each batch; each has the whole model, and the gradients of what is trained are summed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from oneshot.poly import backbone, checkpoint, storage
from oneshot.poly.backbone import LabelEncoding
from oneshot.poly.config import EvaluationConfig, TrainConfig
from oneshot.poly.data import Task, draw_batch, read_tasks
from oneshot.poly.evaluation import check_metrics, evaluate
from oneshot.poly.model import PolyModel, inject
from oneshot.poly.plots import PANELS, plot_routing
from oneshot.poly.update import Learner, make_optimizer
from oneshot.training import checkpoints
from oneshot.training.config import require
from oneshot.training.curves import plot_curves
from oneshot.training.distributed import Processes, joined, resolve_device
from oneshot.training.folder import finished, open_run, write_config
from oneshot.training.jsonl import read_jsonl
from oneshot.training.metrics import MetricsLog
from oneshot.training.seeding import derive_seed

# A resumed run may keep fewer checkpoints or show less: that changes no number of it. Not so the
# number of steps, on which the learning rate depends.
MAY_CHANGE = {"run.keep_checkpoints", "run.progress"}

SHOWN = {
    "loss/train": ("loss", ".3f"),
    "dev/loss": ("dev", ".3f"),
    "dev/rank_accuracy": ("rank", ".3f"),
    "dev/exact_match": ("EM", ".3f"),
    "routing/entropy": ("H", ".2f"),
}


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        output: Its folder.
        checkpoint: The last checkpoint.
        history: The rows of metrics.jsonl.
        dropped: Examples left out because they are too long.
    """

    output: Path
    checkpoint: Path
    history: list[dict[str, Any]]
    dropped: int


def train(config: TrainConfig, *, resume: bool = False) -> TrainResult:
    """Trains as the config says.

    Args:
        config: The run.
        resume: Continue the run in `config.run.output` from its newest checkpoint.

    Returns:
        Where everything is, and the history.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, adapters that do not fit the model, or a resumed run with another
            config or other data.
        ProcessLostError: Another process of the run has died.
        NonFiniteLossError: The loss or its gradient became NaN or infinite.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    check_metrics(config.evaluation)
    with joined(resolve_device(config.model.device)) as processes:
        return _train(config, resume, processes)


def _train(config: TrainConfig, resume: bool, processes: Processes) -> TrainResult:
    check_share(config, processes)
    folder, start = open_run(Path(config.run.output), config, resume, MAY_CHANGE, processes)
    model, encoding = backbone.load(config.model)
    raw, dropped = backbone.drop_long(read_tasks(config.data), encoding, config.data.max_tokens)
    data = config.data
    tasks = [t.split(data.train_examples, data.dev_examples, config.run.seed) for t in raw]
    trained = prepare(config, model, len(tasks), start)
    learner = Learner(
        trained,
        encoding,
        make_optimizer(trained, config.optimizer),
        config.optimizer,
        config.run.steps,
        config.run.seed,
        processes,
    )
    digest = data_digest(tasks)
    step = 0 if start is None else checkpoint.resume(start, learner, digest)
    log = None
    if processes.is_main:
        write_config(folder, config)  # once everything that can be wrong is checked
        log = MetricsLog(
            folder,
            config.run.steps,
            step if start else None,
            config.run.progress,
            shown=SHOWN,
            milestones=("dev/loss",),
            plot=partial(plot_curves, panels=PANELS),
        )
        if dropped:
            log.say(f"{dropped} examples left out: over data.max_tokens = {data.max_tokens}")
    try:
        while step < config.run.steps:
            step += 1
            size, seed = config.optimizer.batch_size, config.run.seed
            metrics = learner.step(draw_batch(tasks, size, step, seed, config.sampling), step)
            if log is None:
                continue  # the others wait for the first process at the next step
            shown: list[dict[str, Any]] = []
            if step % config.run.evaluate_every == 0 or step == config.run.steps:
                metrics.update(validate(trained, encoding, tasks, config.evaluation))
                shown = samples(trained, encoding, tasks, config.evaluation)
            log.step(step, metrics, shown)
            if step % config.run.save_every == 0 or step == config.run.steps:
                log.sync()
                keep = config.run.keep_checkpoints
                checkpoint.save(folder / "checkpoints", learner, tasks, step, digest, keep)
                log.plot()
    finally:
        if log is not None:
            log.close()
    last = finished(folder, processes)
    history = read_jsonl(folder / "metrics.jsonl")
    if processes.is_main:
        checkpoints.prune(folder / "checkpoints", config.run.keep_checkpoints)
        plot_curves(history, folder / "curves.png", PANELS)
        if isinstance(trained, PolyModel):
            plot_routing(trained, [t.name for t in tasks], folder)
    return TrainResult(folder, last, history, dropped)


def check_share(config: TrainConfig, processes: Processes) -> None:
    """Refuses a batch that the processes cannot share evenly.

    Raises:
        ValueError: It is no multiple of their number.
    """
    size = config.optimizer.batch_size
    require(
        size % processes.size == 0,
        "optimizer.batch_size",
        f"a multiple of the {processes.size} processes",
        size,
    )


def prepare(
    config: TrainConfig, model: torch.nn.Module, tasks: int, start: Path | None
) -> torch.nn.Module:
    """The model to train: with new adapters or those of a checkpoint, or all of it."""
    torch.manual_seed(derive_seed(config.run.seed, "init"))
    trained: torch.nn.Module = model
    if config.method == "adapters":
        given = config.poly.tasks
        require(given in (1, tasks), "poly.tasks", f"left out: the data has {tasks}", given)
        poly = dataclasses.replace(config.poly, tasks=tasks)
        trained = inject(model, poly) if start is None else storage.load(model, start)
    elif start is not None:
        from safetensors.torch import load_model

        load_model(model, start / "model.safetensors", strict=False)  # tied weights are stored once
    if config.model.gradient_checkpointing:
        trained.activation_checkpointing_enable()  # type: ignore[operator]
    return trained


def validate(
    model: torch.nn.Module, encoding: LabelEncoding, tasks: Sequence[Task], config: EvaluationConfig
) -> dict[str, float]:
    """Dev metrics of every task, their means over tasks, and how decided the routing is."""
    metrics: dict[str, float] = {}
    by_metric: dict[str, list[float]] = {}
    for number, task in enumerate(tasks):
        for name, value in evaluate(model, encoding, task.dev, number, config).items():
            metrics[f"dev_{name}/{task.name}"] = value
            by_metric.setdefault(name, []).append(value)
    metrics.update({f"dev/{name}": sum(v) / len(v) for name, v in by_metric.items()})
    if isinstance(model, PolyModel):
        weights = model.router.weights()
        metrics["routing/entropy"] = float(-torch.xlogy(weights, weights).sum(-1).mean())
        metrics["routing/uniform_entropy"] = math.log(weights.shape[-1])
    return metrics


def samples(
    model: torch.nn.Module, encoding: LabelEncoding, tasks: Sequence[Task], config: EvaluationConfig
) -> list[dict[str, Any]]:
    """The greedy answer to the first dev example of every task."""
    rows: list[dict[str, Any]] = []
    one = dataclasses.replace(config, metrics=("strict_match",))
    for number, task in enumerate(tasks):
        record: list[dict[str, Any]] = []
        evaluate(model, encoding, task.dev[:1], number, one, record)
        rows += [{"task": task.name, **row} for row in record]
    return rows


def data_digest(tasks: Sequence[Task]) -> str:
    """Digest of the tasks and their examples, by which a resumed run knows its data."""
    rows = [(t.name, [(e.prompt, e.references) for e in (*t.train, *t.dev)]) for t in tasks]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

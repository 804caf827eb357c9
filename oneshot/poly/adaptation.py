"""Few-shot adaptation: a trained inventory meets one held-out task at a time.

For each task, number of shots and seed: draw so many training and as many dev examples, adapt,
keep the step that is best on the dev examples, and measure the test examples once. Each adaptation
is a cell of `training.grid`, so a killed run continues with the one it was in.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from oneshot.poly import backbone, storage
from oneshot.poly.backbone import LabelEncoding
from oneshot.poly.config import AdaptConfig, EvaluationConfig
from oneshot.poly.data import RawTask, Task, draw_batch, read_tasks
from oneshot.poly.evaluation import check_metrics, evaluate
from oneshot.poly.model import PolyModel, inject
from oneshot.poly.update import Learner, make_optimizer
from oneshot.training import checkpoints
from oneshot.training.folder import open_run, write_config
from oneshot.training.grid import Cell, run_grid, write_json, write_text
from oneshot.training.seeding import derive_seed

RESULTS = "results.jsonl"
PREDICTIONS = "predictions.jsonl"
"""Answers to the test examples of each adaptation, where a metric needs them."""


def adapt(config: AdaptConfig, *, resume: bool = False) -> list[dict[str, Any]]:
    """Runs every adaptation that the config names.

    Args:
        config: The run.
        resume: Continue the run in `config.run.output`.

    Returns:
        The rows of results.jsonl.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, adapters that do not fit, or a resumed run with another config.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    check_metrics(config.evaluation)
    _check_pretrained(config)
    folder, _ = open_run(Path(config.run.output), config, resume, {"run.progress"})
    source = config.model
    if config.mode == "full" and config.pretrained is not None:
        newest = checkpoints.latest(Path(config.pretrained) / "checkpoints")
        source = dataclasses.replace(source, source=str(newest or config.pretrained))
    model, encoding = backbone.load(source)
    tasks, _ = backbone.drop_long(read_tasks(config.data), encoding, config.data.max_tokens)
    for task in tasks:
        task.split(max(config.shots), max(config.shots), 0)  # too small: before any work
    start = {n: t.clone() for n, t in model.state_dict().items()} if config.mode == "full" else {}
    write_config(folder, config)

    def measure(task: RawTask, shots: int, seed: int) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        row = adapt_one(config, model, encoding, task, shots, seed, record=answers)
        if start:
            model.load_state_dict(start)
        return {"row": row, "answers": answers}

    cells = [
        Cell(
            f"{quote(task.name, safe='')}, {n} shots, seed {seed}", partial(measure, task, n, seed)
        )
        for task in tasks
        for n in config.shots
        for seed in config.seeds
    ]
    rows, predictions = [], []
    for outcome in run_grid(cells, folder / "cells", bar=config.run.progress):
        row = outcome.result["row"]
        rows.append(row)
        cell = {name: row[name] for name in ("task", "shots", "seed")}
        predictions += [{**cell, **answer} for answer in outcome.result["answers"]]
    for name, lines in ((RESULTS, rows), (PREDICTIONS, predictions)):
        write_text(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", summarize(rows))
    return rows


def adapt_one(
    config: AdaptConfig,
    model: torch.nn.Module,
    encoding: LabelEncoding,
    raw: RawTask,
    shots: int,
    seed: int,
    *,
    record: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One adaptation; the model inside is as it was before, but after full fine-tuning.

    Args:
        config: The run.
        model: The model inside.
        encoding: Its tokens.
        raw: The task.
        shots: Training examples, and dev examples.
        seed: Draws them.
        record: Gets the answers to the test examples (see `evaluate`).

    Returns:
        Task, shots, seed, the chosen step, its dev figure, and the metrics of the test examples.
    """
    task = raw.split(shots, shots, seed)
    torch.manual_seed(derive_seed(config.run.seed, "adapt", raw.name, shots, seed))
    adapted = _start(config, model)
    try:
        row: dict[str, Any] = {"task": task.name, "shots": shots, "seed": seed}
        if config.zero_shot:
            metrics = evaluate(adapted, encoding, task.test, 0, config.evaluation)
            row.update({f"zero_shot_{name}": value for name, value in metrics.items()})
        step, dev = _fit(config, adapted, encoding, task, seed)
        row.update({"step": step, f"dev_{config.select_by}": dev})
        return {**row, **evaluate(adapted, encoding, task.test, 0, config.evaluation, record)}
    finally:
        if isinstance(adapted, PolyModel):
            adapted.unload()


def _check_pretrained(config: AdaptConfig) -> None:
    """Refuses, before any work, adapters that are missing or do not fit the mode."""
    if config.mode == "full" or config.pretrained is None:
        return
    routing = storage.read_config(config.pretrained).routing
    if config.mode == "soup" and routing != "private":
        raise ValueError(
            f'mode must be "mu" for routed adapters, got "soup", which averages private ones; '
            f"{config.pretrained} has routing {routing!r}"
        )


def _start(config: AdaptConfig, model: torch.nn.Module) -> torch.nn.Module:
    """The model with what is to be adapted."""
    if config.mode == "full":
        return model.requires_grad_(True)
    if config.pretrained is None:
        poly = inject(model, dataclasses.replace(config.poly, tasks=1))
    else:
        poly = storage.load(model, config.pretrained)
    if config.mode == "mu":
        poly.average()
    elif config.mode == "soup":
        poly.soup(config.soup_skills or range(poly.poly_config.inventory_size))
    poly.resize(1, keep=[])
    if config.mode == "z":
        poly.freeze_inventory()
    if config.model.gradient_checkpointing:
        poly.activation_checkpointing_enable()
    return poly


def _fit(
    config: AdaptConfig, model: torch.nn.Module, encoding: LabelEncoding, task: Task, seed: int
) -> tuple[int, float]:
    """Trains, and goes back to the step that is best on the dev examples; returns it."""
    optimizer = make_optimizer(model, config.optimizer)
    learner = Learner(
        model, encoding, optimizer, config.optimizer, config.run.steps, config.run.seed
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    by = EvaluationConfig(
        metrics=(config.select_by,),
        max_new_tokens=config.evaluation.max_new_tokens,
        batch_size=config.evaluation.batch_size,
    )

    def dev() -> float:
        metrics = evaluate(model, encoding, task.dev, 0, by)
        if config.select_by not in metrics:
            raise ValueError(
                f"select_by: task {task.name} has no options, so no {config.select_by}"
            )
        return metrics[config.select_by]

    sign = -1.0 if config.select_by == "loss" else 1.0
    best, best_value = 0, dev()
    best_values = [p.detach().clone() for p in trained]
    draws = derive_seed(config.run.seed, "adapt", task.name, len(task.train), seed)
    for step in range(1, config.run.steps + 1):
        learner.step(draw_batch([task], config.optimizer.batch_size, step, draws, "uniform"), step)
        if step % config.run.evaluate_every == 0 or step == config.run.steps:
            value = dev()
            if sign * value > sign * best_value:
                best, best_value = step, value
                best_values = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for parameter, value in zip(trained, best_values, strict=True):
            parameter.copy_(value)
    return best, best_value


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over tasks for each number of shots and figure, with its spread over seeds.

    Returns:
        {shots: {figure: {"mean", "std" over seeds of the mean over tasks (None for one seed),
        "tasks", "seeds", and "by_task" means}}}. Figures that some tasks do not have are means over
        those that do.
    """
    skip = {"task", "shots", "seed", "step"}
    result: dict[str, Any] = {}
    for shots in sorted({row["shots"] for row in rows}):
        mine = [row for row in rows if row["shots"] == shots]
        metrics = sorted({key for row in mine for key in row if key not in skip})
        result[str(shots)] = {}
        for key in metrics:
            by_seed: dict[int, list[float]] = {}
            by_task: dict[str, list[float]] = {}
            for row in mine:
                if key in row:
                    by_seed.setdefault(row["seed"], []).append(row[key])
                    by_task.setdefault(row["task"], []).append(row[key])
            means = [statistics.fmean(values) for values in by_seed.values()]
            result[str(shots)][key] = {
                "mean": statistics.fmean(means),
                "std": statistics.stdev(means) if len(means) > 1 else None,
                "tasks": len(by_task),
                "seeds": len(means),
                "by_task": {task: statistics.fmean(v) for task, v in sorted(by_task.items())},
            }
    return result

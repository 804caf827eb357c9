"""Benchmarks over checkpoints: `oneshot rlvr eval --benchmarks ...`.

<output>/results.json       settings, and the metrics of every checkpoint on every benchmark
<output>/results.md         the same as tables
<output>/curves.png         the same over training steps
<output>/responses/         every response, <checkpoint>/<benchmark>.jsonl
<output>/cells/             the same results one by one (`oneshot.training.grid`)

The same command continues where a killed one stopped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot.rlvr.config import EvaluateConfig, RewardConfig
from oneshot.rlvr.evaluation.benchmarks import BENCHMARKS, parse_names, read_benchmark
from oneshot.rlvr.evaluation.evaluate import evaluate, prepare
from oneshot.rlvr.evaluation.report import VALIDATION, markdown, plot
from oneshot.rlvr.problems.data import Problem, read_problems
from oneshot.rlvr.rewards.reward import Reward, make_reward
from oneshot.training.config import to_dict
from oneshot.training.grid import Cell, run_grid, write_json, write_text
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STEP = re.compile(r"step_(\d{6,})")
# May differ between a killed call and the one that continues it.
_MAY_CHANGE = ("checkpoints", "output", "paper_protocol", "threads")


Task = tuple[list[Problem], int, RewardConfig]
"""Problems, responses per problem, grader."""


def run_suite(config: EvaluateConfig) -> str:
    """Evaluates every checkpoint on every benchmark and writes results, report and curves.

    Args:
        config: With `benchmarks` and `output`.

    Returns:
        The report (Markdown).

    Raises:
        ValueError: An unknown benchmark, bad data, or a folder with results of other settings.
        FileNotFoundError: A benchmark file or a checkpoint does not exist.
    """
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tasks = _tasks(config)
    sources = checkpoint_sources(config)
    assert config.output is not None
    folder = Path(config.output)
    results = _open(folder, config)
    for name, source in sources.items():
        entry: dict[str, Any] = {"source": source, "step": _step(source), "benchmarks": {}}
        if results["checkpoints"].setdefault(name, entry)["source"] != source:
            raise ValueError(f"{folder} has results of another checkpoint named {name!r}")
    cells = [(name, task) for name in sources for task in tasks]
    with contextlib.closing(_Measurement(config, tasks, folder)) as measurement:
        grid = [
            Cell(f"{name}/{task}", partial(measurement.run, name, sources[name], task))
            for name, task in cells
        ]
        for (name, task), outcome in zip(cells, run_grid(grid, folder / "cells"), strict=True):
            results["checkpoints"][name]["benchmarks"][task] = outcome.result
            write_json(folder / "results.json", results)
    requested = {name: results["checkpoints"][name] for name in sources}
    text = markdown(requested, list(tasks), config.paper_protocol)
    write_text(folder / "results.md", text)
    plot(requested, list(tasks), folder / "curves.png")
    return text


def checkpoint_sources(config: EvaluateConfig) -> dict[str, str]:
    """The models to evaluate: a short unique name -> model source.

    A run folder stands for all its checkpoints, in the order of their steps.

    Raises:
        FileNotFoundError: A run folder without a checkpoint.
        ValueError: Two models of one name.
    """
    sources: dict[str, str] = {}
    for entry in config.checkpoints or (config.model.source,):
        folder = Path(entry)
        inside = folder / "checkpoints"
        sources_of_run = [entry]
        if inside.is_dir():
            sources_of_run = [str(p) for p in sorted(inside.iterdir()) if _STEP.fullmatch(p.name)]
            if not sources_of_run:
                raise FileNotFoundError(f"checkpoints: {inside} has no checkpoint")
        for source in sources_of_run:
            name = re.sub(r"[^\w.-]+", "_", _name(source))
            if name in sources:
                raise ValueError(f"checkpoints: {sources[name]} and {source} are both {name!r}")
            sources[name] = source
    return sources


def _name(source: str) -> str:
    """step_000020 alone says little: with the name of its run before it."""
    path = Path(source)
    if _STEP.fullmatch(path.name) and path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}_{path.name}"
    return source if not path.is_dir() else path.name


def _step(source: str) -> int | None:
    match = _STEP.fullmatch(Path(source).name)
    return int(match[1]) if match else None


def _tasks(config: EvaluateConfig) -> dict[str, Task]:
    """Problems, responses per problem and grader of each benchmark, validation first."""
    tasks: dict[str, Task] = {}
    if config.validation is not None:
        tasks[VALIDATION] = (
            read_problems(
                config.validation,
                problem_key=config.data.problem_key,
                answer_key=config.data.answer_key,
            ),
            1,
            config.grader,
        )
    for benchmark, samples in parse_names(config.benchmarks):
        problems = read_benchmark(benchmark, config.benchmark_folder, config.data.limit)
        choice = replace(config.grader, function="choice")
        tasks[benchmark.name] = (
            problems,
            samples,
            choice if BENCHMARKS[benchmark.name].choices else config.grader,
        )
    return tasks


class _Measurement:
    """Evaluates models on tasks; one model is loaded at a time, a grader once."""

    def __init__(self, config: EvaluateConfig, tasks: dict[str, Task], folder: Path) -> None:
        self.config = config
        self.tasks = tasks
        self.folder = folder
        self._graders: dict[str, Reward] = {}
        self._load = functools.lru_cache(maxsize=1)(self._load_model)

    def run(self, name: str, source: str, task: str) -> dict[str, Any]:
        """The metrics of a model on a task; the responses go to a file."""
        config, (problems, samples, grader) = self.config, self.tasks[task]
        model, tokenizer = self._load(source)
        if grader.function not in self._graders:
            self._graders[grader.function] = make_reward(grader, config.seed)
        evaluation = evaluate(
            model,
            tokenizer,
            problems,
            template=config.data.prompt,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            temperature=config.benchmark_temperature if samples > 1 else 0.0,
            samples=samples,
            top_p=config.top_p,
            grader=self._graders[grader.function],
            seed=derive_seed(config.seed, "benchmark", task),
            stop_tokens=config.stop_tokens,
        )
        lines = "".join(json.dumps(record) + "\n" for record in evaluation.records)
        write_text(self.folder / "responses" / name / f"{task}.jsonl", lines)
        return evaluation.metrics()

    def close(self) -> None:
        """Ends the grader processes and frees the model."""
        self._load.cache_clear()
        for grader in self._graders.values():
            grader.close()

    def _load_model(self, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model that all tasks fit, checked before it answers the first of them."""
        from oneshot import models
        from oneshot.rlvr.algorithm.policy import load_policy
        from oneshot.rlvr.rollout.engine_check import check_engine

        config = self.config
        tokenizer = models.load_tokenizer(source)
        model = load_policy(config.model, source, tokenizer, sampling=True)
        for problems, _, _ in self.tasks.values():
            prompts, limit = prepare(
                model, tokenizer, problems, config.data.prompt, config.max_new_tokens
            )
        check_engine(model, tokenizer, prompts, config.stop_tokens, limit)
        return model, tokenizer


def _open(folder: Path, config: EvaluateConfig) -> dict[str, Any]:
    """The results so far, of the same settings."""
    settings = {k: v for k, v in to_dict(config).items() if k not in _MAY_CHANGE}
    path = folder / "results.json"
    if not path.exists():
        return {"settings": settings, "checkpoints": {}}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results["settings"] != json.loads(json.dumps(settings)):
        old, new = results["settings"], json.loads(json.dumps(settings))
        changed = [key for key in new if old.get(key) != new[key]]
        raise ValueError(f"output: {folder} has results of other settings ({', '.join(changed)})")
    return results

"""The commands `oneshot poly train | adapt | eval | export | miniature | compositional`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oneshot.training.command_line import Config, hide_loading_bars, parse


def _parse(
    config_class: type[Config], name: str, argv: list[str], resumable: bool = True
) -> tuple[Config, bool]:
    config, parsed = parse(config_class, f"oneshot poly {name}", argv, resumable=resumable)
    hide_loading_bars()
    return config, bool(resumable and parsed.resume)


def _train(argv: list[str]) -> int:
    from oneshot.poly.config import TrainConfig

    config, resume = _parse(TrainConfig, "train", argv)
    from oneshot.poly.trainer import train

    result = train(config, resume=resume)
    dev = {
        key: value
        for row in result.history
        for key, value in row.items()
        if key.startswith("dev/") or key == "step"
    }
    print(json.dumps(dev))
    print(f"adapters {result.checkpoint}\ncurves   {result.output / 'curves.png'}")
    return 0


def _adapt(argv: list[str]) -> int:
    from oneshot.poly.config import AdaptConfig

    config, resume = _parse(AdaptConfig, "adapt", argv)
    from oneshot.poly.adaptation import adapt, summarize

    print(format_summary(summarize(adapt(config, resume=resume))))
    return 0


def format_summary(summary: dict[str, Any]) -> str:
    """A summary of adaptations as lines: shots, figure, mean over tasks, spread over seeds."""
    lines = []
    for shots, metrics in summary.items():
        for name, found in metrics.items():
            if name.startswith("dev_"):
                continue
            spread = "" if found["std"] is None else f" ± {found['std']:.3f}"
            lines.append(
                f"{shots:>4} shots  {name:24} {found['mean']:.3f}{spread}  "
                f"({found['tasks']} tasks, {found['seeds']} seeds)"
            )
    return "\n".join(lines)


def _evaluate(argv: list[str]) -> int:
    from oneshot.poly.config import EvaluateConfig

    config, _ = _parse(EvaluateConfig, "eval", argv, resumable=False)
    import torch

    from oneshot.poly import backbone, storage
    from oneshot.poly.data import read_tasks
    from oneshot.poly.evaluation import check_metrics, evaluate

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_metrics(config.evaluation)
    base, encoding = backbone.load(config.model)
    model: torch.nn.Module = base
    known: list[str] = []
    if config.adapters is not None:
        known = storage.read_description(config.adapters).get("task_names", [])
        model = storage.load(base, config.adapters)
    tasks, _ = backbone.drop_long(read_tasks(config.data), encoding, config.data.max_tokens)
    metrics, answers = {}, []
    for task in tasks:
        if config.adapters is not None and task.name not in known:
            raise ValueError(f"data.tasks: the adapters know {', '.join(known)}, not {task.name}")
        number = known.index(task.name) if known else 0
        examples = task.test
        if config.split == "dev":
            examples = task.split(config.data.train_examples, config.data.dev_examples, 1).dev
        record: list[dict[str, Any]] = []
        metrics[task.name] = evaluate(model, encoding, examples, number, config.evaluation, record)
        answers += [{"task": task.name, **row} for row in record]
    if config.predictions is not None:
        rows = "".join(json.dumps(row) + "\n" for row in answers)
        Path(config.predictions).write_text(rows, encoding="utf-8")
    if config.output is not None:
        Path(config.output).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=1))
    return 0


def _export(argv: list[str]) -> int:
    from oneshot.poly.config import ExportConfig

    config, _ = _parse(ExportConfig, "export", argv, resumable=False)
    from oneshot.poly import backbone, peft_exchange, storage

    folder = Path(config.output)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"output: {folder} is not empty")
    names = storage.read_description(config.adapters).get("task_names", [])
    model, encoding = backbone.load(config.model)
    poly = storage.load(model, config.adapters)
    if config.format == "peft-poly":
        peft_exchange.save_peft(poly, folder)
    else:
        task = _task_number(str(config.task), names, poly.poly_config.tasks)
        if config.format == "peft-lora":
            peft_exchange.save_peft_lora(poly, folder, task)
        else:
            poly.merge(task)
            model.save_pretrained(folder)
            encoding.tokenizer.save_pretrained(folder)
    print(folder)
    return 0


def _task_number(task: str, names: list[str], tasks: int) -> int:
    matching = [i for i, n in enumerate(names) if n == task]
    matching = matching or [i for i, n in enumerate(names) if n.startswith(task)]
    if len(matching) == 1:
        return matching[0]
    if task.isdigit() and int(task) < tasks:
        return int(task)
    raise ValueError(f"task: {task!r} is none of {', '.join(names) or f'0 .. {tasks - 1}'}")


def _miniature(argv: list[str]) -> int:
    from oneshot.poly.experiments.miniature import MiniatureConfig, miniature

    config, resume = _parse(MiniatureConfig, "miniature", argv)
    print(miniature(config, resume=resume))
    return 0


def _compositional(argv: list[str]) -> int:
    from oneshot.poly.experiments.compositional.experiment import CompositionalConfig, compositional

    config, resume = _parse(CompositionalConfig, "compositional", argv)
    print(compositional(config, resume=resume))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "adapt": _adapt,
    "eval": _evaluate,
    "export": _export,
    "miniature": _miniature,
    "compositional": _compositional,
}

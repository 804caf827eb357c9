"""Adapter routing on a small scale: tasks made of hidden skills, then new tasks, few examples each.

Every task is a mixture of the same hidden adapters (`synthetic.py`). Three learners see 24 of them:
a shared LoRA, Polytropon (one routing for a whole layer) and Poly-S (one for each head). Then each
meets 8 tasks it has not seen, a few examples of each. The tables say how much of a task's update
they miss on new inputs; the picture shows which tasks share skills according to Poly-S.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from oneshot.poly.config import PolyConfig
from oneshot.poly.experiments import synthetic
from oneshot.poly.experiments.miniature import inventories
from oneshot.training.grid import save_figure, write_json

TASKS, NEW_TASKS, SHOTS = 24, 8, (4, 16, 32)
POLY_S = PolyConfig(skills=4, heads=4, rank=2, alpha=2)
LEARNERS = {
    "shared LoRA": inventories(POLY_S)["lora-big"],
    "Poly": dataclasses.replace(POLY_S, heads=1),
    "Poly-S": POLY_S,
}
MODES: dict[str, tuple[Literal["poly", "z", "mu"], ...]] = {
    "shared LoRA": ("poly",),
    "Poly": ("poly", "z"),
    "Poly-S": ("poly", "mu", "z"),
}
SUFFIX = {"poly": "", "mu": ": mean of the skills", "z": ": routing only"}


def run_demo(
    seed: int = 0, *, output: str | Path | None = None, steps: int = 1000
) -> dict[str, Any]:
    """Compares adapters on tasks with known skills (less than a minute).

    Args:
        seed: Of the tasks, the learners and the examples.
        output: Folder for demo.json and demo.png (created); None writes nothing.
        steps: Of pre-training; an adaptation takes a fifth of them.

    Returns:
        "learners": by name, "unexplained" on the tasks of pre-training, "correlation" of learned
        and true similarity of tasks (None without a learned routing), and trained "parameters";
        "adapted": by name, "unexplained" of the new tasks by number of examples, mean over tasks;
        "similarity": of tasks as "learned" by Poly-S and "true", mean over heads; "seconds".
    """
    start = time.perf_counter()
    truth = synthetic.make_truth(seed, tasks=TASKS + NEW_TASKS)
    new_tasks = range(TASKS, TASKS + NEW_TASKS)
    learners: dict[str, dict[str, Any]] = {}
    adapted: dict[str, dict[int, float]] = {}
    similarity: dict[str, list[list[float]]] = {}
    for name, config in LEARNERS.items():
        learner = synthetic.pretrain(truth, config, seed, tasks=TASKS, steps=steps)
        learned = learner.router.logits is not None
        learners[name] = {
            "unexplained": synthetic.unexplained(learner, truth, range(TASKS)),
            "correlation": synthetic.routing_correlation(learner, truth) if learned else None,
            "parameters": sum(p.numel() for p in learner.parameters() if p.requires_grad),
        }
        for mode in MODES[name]:
            adapted[name + SUFFIX[mode]] = {
                shots: statistics.mean(
                    synthetic.adapt(
                        learner, truth, task, shots=shots, seed=seed, mode=mode, steps=steps // 5
                    )
                    for task in new_tasks
                )
                for shots in SHOTS
            }
        if name == "Poly-S":
            learned_similarity, true = (
                matrix.mean(0) for matrix in synthetic.similarities(learner, truth)
            )
            similarity = {"learned": learned_similarity.tolist(), "true": true.tolist()}
    result = {
        "seed": seed,
        "learners": learners,
        "adapted": adapted,
        "similarity": similarity,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if output is not None:
        write_json(Path(output) / "demo.json", result)
        plot(result, Path(output) / "demo.png")
    return result


def print_table(result: Mapping[str, Any]) -> None:
    """Prints both comparisons."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"What is missed of {TASKS} tasks (1: untrained)")
    table.add_column("adapters")
    for name in ("parameters", "missed", "similarity of tasks, r"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in result["learners"].items():
        correlation = "" if row["correlation"] is None else f"{row['correlation']:.2f}"
        table.add_row(name, str(row["parameters"]), f"{row['unexplained']:.4f}", correlation)
    console = Console(width=max(90, Console().width))
    console.print(table)
    table = Table(title=f"The same for {NEW_TASKS} new tasks, by number of examples")
    table.add_column("adapted")
    for shots in SHOTS:
        table.add_column(str(shots), justify="right", no_wrap=True)
    for name, row in result["adapted"].items():
        table.add_row(name, *(f"{row[shots]:.4f}" for shots in SHOTS))
    console.print(table)
    console.print(f"{result['seconds']:.0f} s")


def plot(result: Mapping[str, Any], path: Path) -> None:
    """What is missed of new tasks, and the similarity of tasks: learned and true."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.add_subplot(1, 3, 1)
    for name, row in result["adapted"].items():
        axes.plot(SHOTS, [row[shots] for shots in SHOTS], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
    axes.set_yscale("log")
    axes.set_xlabel("examples of the new task")
    axes.set_title("Share of the update that is missed", fontsize=9)
    axes.legend(fontsize=7)
    for number, (key, how) in enumerate(
        (("learned", "learned by Poly-S"), ("true", "true")), start=2
    ):
        axes = figure.add_subplot(1, 3, number)
        image = axes.imshow(result["similarity"][key], vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_title(f"Similarity of the tasks' routing, {how}", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    save_figure(figure, path)

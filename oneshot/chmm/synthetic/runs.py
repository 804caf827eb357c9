"""The synthetic benchmark: vote, HMM and CHMM on generated corpora, over seeds.

A seed decides the sentences, the votes and the training. The folder of the results gets
`results.json`, the table `results.md`, the reliability diagram `reliability.png` (all seeds
together) and `cells/`, from which a killed benchmark continues.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneshot.chmm.demo import run_demo
from oneshot.training.grid import (
    Cell,
    markdown_table,
    mean_and_spread,
    run_grid,
    save_figure,
    write_json,
    write_text,
)

METRICS = {
    "f1": "F1",
    "precision": "P",
    "recall": "R",
    "nll": "NLL of gold",
    "ece": "ECE",
    "log_likelihood_per_token": "LL/token",
}
PERCENT = ("f1", "precision", "recall")


def run_seeds(
    seeds: Sequence[int], output: str | Path, *, say: Callable[[str], object] = print
) -> dict[str, dict[str, list[Any]]]:
    """Runs the benchmark (20 seconds of one core per seed).

    Args:
        seeds: At least one, all different.
        output: Folder of the results, created; seeds that it has are not run again.
        say: Receives the result of each seed.

    Returns:
        {method: {metric: its value for each seed}}, metrics on unseen sentences as those of
        `metrics.evaluate`.

    Raises:
        ValueError: No seed, or one twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {list(seeds)}")
    folder = Path(output)
    results: dict[str, dict[str, list[Any]]] = {}
    cells = [Cell(f"seed_{seed}", functools.partial(_measure, seed)) for seed in seeds]
    for outcome in run_grid(cells, folder / "cells"):
        for method, metrics in outcome.result.items():
            for key, value in metrics.items():
                results.setdefault(method, {}).setdefault(key, []).append(value)
        scores = ", ".join(f"{m} {100 * x['f1']:.1f}" for m, x in outcome.result.items())
        say(f"{outcome.cell.name}: {scores}")
    write_json(folder / "results.json", {"seeds": list(seeds), "methods": results})
    write_text(folder / "results.md", table(results))
    plot_reliability(results, folder / "reliability.png")
    return results


def _measure(seed: int) -> dict[str, Any]:
    methods: dict[str, Any] = run_demo(seed)["methods"]
    return methods


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: mean ± standard deviation over seeds."""
    lines = [
        [name, *(_value(metrics, key) for key in METRICS)] for name, metrics in results.items()
    ]
    return markdown_table(["method", *METRICS.values()], lines) + "\n"


def _value(metrics: Mapping[str, Sequence[float]], key: str) -> str:
    percent = key in PERCENT
    values = [value * (100 if percent else 1) for value in metrics.get(key, [])]
    return mean_and_spread(values, 1 if percent else 3)


def plot_reliability(results: dict[str, dict[str, list[Any]]], path: Path) -> None:
    """Share of right labels against the probability they were given; size: share of the tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="lightgrey", zorder=0)
    for (name, metrics), colour in zip(
        results.items(), ("tab:grey", "tab:orange", "tab:blue"), strict=True
    ):
        confidence, accuracy, tokens = (
            np.concatenate([np.array(bins[key]) for bins in metrics["reliability"]])
            for key in ("confidence", "accuracy", "tokens")
        )
        bin_of = np.minimum((confidence * 10).astype(int), 9)
        count = np.bincount(bin_of, tokens, 10)
        full = count > 0
        x, y = (np.bincount(bin_of, v * tokens, 10)[full] / count[full]
                for v in (confidence, accuracy))  # fmt: skip
        axes.plot(x, y, color=colour, label=name)
        axes.scatter(x, y, s=10 + 300 * count[full] / count.sum(), color=colour, alpha=0.7)
    axes.set_xlabel("probability of the most probable label (mean of a bin)")
    axes.set_ylabel("share of tokens where it is right")
    axes.legend(loc="upper left")
    save_figure(figure, path)

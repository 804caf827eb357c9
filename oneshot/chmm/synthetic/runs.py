"""The synthetic benchmark: vote, HMM and CHMM on generated corpora, over seeds.

A seed decides the sentences, the votes and the training. Written are `results.json`, the table
`results.md` and the reliability diagram `reliability.png` (all seeds together).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneshot.chmm.demo import run_demo

FIGURES = {
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
    """Runs the benchmark (20 seconds of one core a seed).

    Args:
        seeds: At least one; none twice.
        output: Folder of the results, created.
        say: Is told what each seed gave.

    Returns:
        {method: {figure: its value for each seed}}, figures on unseen sentences as those of
        `metrics.evaluate`.

    Raises:
        ValueError: No seed, or one twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers, at least one, got {list(seeds)}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[Any]]] = {}
    for seed in seeds:
        methods = run_demo(seed)["methods"]
        for name, figures in methods.items():
            for key, value in figures.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
        say(f"seed {seed}: " + ", ".join(f"{m} {100 * f['f1']:.1f}" for m, f in methods.items()))
    told = {"seeds": list(seeds), "methods": found}
    (folder / "results.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(table(found), encoding="utf-8")
    plot_reliability(found, folder / "reliability.png")
    return found


def table(found: dict[str, dict[str, list[Any]]]) -> str:
    """Markdown: mean ± standard deviation over seeds (nothing after the mean of one seed)."""
    lines = [
        "| method | " + " | ".join(FIGURES.values()) + " |",
        "|---" * (1 + len(FIGURES)) + "|",
    ]
    for name, figures in found.items():
        cells = [_cell(figures.get(key, []), key in PERCENT) for key in FIGURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], percent: bool) -> str:
    if not values:
        return ""
    x = np.array(values) * (100 if percent else 1)
    digits = 1 if percent else 3
    mean = f"{x.mean():.{digits}f}"
    spread = len(x) > 1 and bool(np.isfinite(x).all())
    return f"{mean} ± {x.std(ddof=1):.{digits}f}" if spread else mean


def plot_reliability(found: dict[str, dict[str, list[Any]]], path: Path) -> None:
    """Share of right labels against the probability they were given; size: share of the tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="lightgrey", zorder=0)
    for (name, figures), colour in zip(
        found.items(), ("tab:grey", "tab:orange", "tab:blue"), strict=True
    ):
        confidence, accuracy, tokens = (
            np.concatenate([np.array(bins[key]) for bins in figures["reliability"]])
            for key in ("confidence", "accuracy", "tokens")
        )
        place = np.minimum((confidence * 10).astype(int), 9)
        count = np.bincount(place, tokens, 10)
        full = count > 0
        x, y = (np.bincount(place, v * tokens, 10)[full] / count[full]
                for v in (confidence, accuracy))  # fmt: skip
        axes.plot(x, y, color=colour, label=name)
        axes.scatter(x, y, s=10 + 300 * count[full] / count.sum(), color=colour, alpha=0.7)
    axes.set_xlabel("probability of the most probable label (mean of a bin)")
    axes.set_ylabel("share of tokens where it is right")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)

"""Plots of a run: what its curves show, the learned routing, and a dendrogram of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from oneshot.poly.model import PolyModel
from oneshot.training.curves import Panel
from oneshot.training.grid import save_figure

PANELS = (
    Panel("Loss, nats per answer token", ("loss/train", "dev/loss"), ("train", "dev")),
    Panel("Dev accuracy", ("dev/exact_match", "dev/rank_accuracy", "dev/rouge_l")),
    Panel("Entropy of the routing, nats", ("routing/entropy", "routing/uniform_entropy")),
    Panel("Gradient norm", ("optimizer/grad_norm",)),
)
MAX_PANELS = 24
COLUMNS = 4


def plot_routing(model: PolyModel, task_names: Sequence[str], folder: Path) -> None:
    """Draws `routing.png`, weights of tasks x skills for each group of layers, and `tasks.png`.

    The second is a dendrogram of tasks by the distance of their routing; both are left out when
    there is one task or skill.
    """
    from scipy.cluster import hierarchy

    weights = model.router.weights().cpu()  # [groups, tasks, heads, skills]
    if weights.shape[1] < 2 or weights.shape[3] < 2:
        return
    groups = range(len(model.groups))
    if len(groups) > MAX_PANELS:  # evenly spaced ones
        groups = [round(i * (len(groups) - 1) / (MAX_PANELS - 1)) for i in range(MAX_PANELS)]  # type: ignore[assignment]
    linkage = clusters(task_distances(weights))
    order = hierarchy.leaves_list(linkage)[::-1].tolist()  # from the top, as in the dendrogram
    height = max(1.2, 0.14 * len(task_names))
    figure, axes = _figure(len(groups), 2.4, height, left=1.5, right=0.8, top=0.7)
    skills, largest = weights.shape[3], float(weights.max())
    for i, (panel, group) in enumerate(zip(axes, groups, strict=True)):
        values = weights[group].flatten(1)[order].numpy()
        image = panel.imshow(values, vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
        for head in range(1, weights.shape[2]):
            panel.axvline(head * skills - 0.5, color="white", linewidth=0.8)
        panel.set_title(model.groups[group] or "all layers", fontsize=6)
        names = [task_names[task][:26] for task in order] if i % COLUMNS == 0 else []
        panel.set_yticks(range(len(names)), names, fontsize=5)
        panel.set_xticks([])
    wide, high = figure.get_size_inches()
    bar = figure.add_axes((1 - 0.6 / wide, 0.3 / high, 0.12 / wide, height / high))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=6)
    figure.suptitle(
        f"Weights of tasks (rows, in the order of tasks.png) and skills (columns), heads side by "
        f"side: {len(groups)} of {len(model.groups)} routers. Uniform is {1 / skills:.3g}",
        fontsize=8,
        y=1 - 0.1 / high,
        verticalalignment="top",
    )
    save_figure(figure, folder / "routing.png")
    _plot_dendrogram(linkage, task_names, folder / "tasks.png")


def task_distances(weights: torch.Tensor) -> torch.Tensor:
    """Distance of every two tasks: mean total variation of their routing.

    Args:
        weights: [groups, tasks, heads, skills], summing to 1 over skills.

    Returns:
        [tasks, tasks], in [0, 1].
    """
    by_task = weights.double().transpose(0, 1).flatten(1, 2)  # [tasks, groups * heads, skills]
    differences = (by_task[:, None] - by_task[None]).abs().sum(-1) / 2
    return differences.mean(-1)


def clusters(distances: torch.Tensor) -> Any:
    """Agglomerative clustering by average linkage (UPGMA).

    Args:
        distances: [n, n], symmetric, n at least 2.

    Returns:
        scipy's linkage matrix, float64 [n - 1, 4]: the two clusters of each merge, their distance
        and the size of the union; leaves are 0 .. n - 1 and merge i makes cluster n + i.
    """
    from scipy.cluster import hierarchy

    a, b = torch.triu_indices(len(distances), len(distances), offset=1)
    return hierarchy.average(distances[a, b].numpy())


def _plot_dendrogram(linkage: Any, names: Sequence[str], path: Path) -> None:
    from scipy.cluster import hierarchy

    figure, (axes,) = _figure(1, 6.0, max(2.0, 0.25 * len(names) + 0.8))
    hierarchy.dendrogram(
        linkage,
        ax=axes,
        orientation="right",
        labels=list(names),
        leaf_font_size=7,
        color_threshold=0,
        above_threshold_color="tab:blue",
    )
    axes.set_xlabel("mean total variation of the routing", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    save_figure(figure, path)


def _figure(
    panels: int,
    width: float,
    height: float,
    left: float = 0.5,
    right: float = 0.1,
    top: float = 0.3,
) -> tuple[Any, list[Any]]:
    """A figure of panels of this size, with these margins and fixed gaps; all in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bottom, gap = 0.3, 0.5
    columns = min(COLUMNS, panels)
    lines = -(-panels // columns)
    wide = (width + gap) * columns - gap + left + right
    high = (height + gap) * lines - gap + bottom + top
    figure = Figure(figsize=(wide, high))
    # Fixed margins: matplotlib's own layout engines take longer than the drawing.
    figure.subplots_adjust(
        left / wide,
        bottom / high,
        1 - right / wide,
        1 - top / high,
        wspace=gap / width,
        hspace=gap / height,
    )
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(lines, columns, i + 1) for i in range(panels)]

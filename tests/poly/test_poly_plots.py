"""Distances and clusters of tasks; the plots are written."""

import itertools

import poly_tiny
import pytest
import torch

from oneshot.poly import plots
from oneshot.poly.plots import PANELS, clusters, plot_routing, task_distances
from oneshot.training.curves import plot_curves


def test_distances_by_hand():
    """Two groups of one head: shares 1, 0 | 1/2, 1/2 against 0, 1 | 1/2, 1/2: half of 1 + 0."""
    weights = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[0.5, 0.5]], [[0.5, 0.5]]]])
    expected = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(task_distances(weights), expected)


def test_clusters_by_hand():
    """0 and 1 are 1 apart; 2 is 4 and 6 away from them, 5 on average."""
    distances = torch.tensor([[0.0, 1, 4], [1, 0, 6], [4, 6, 0]])
    assert clusters(distances).tolist() == [[0, 1, 1.0, 2], [2, 3, 5.0, 3]]


@pytest.mark.parametrize("tasks", [2, 7, 21])
def test_clusters_against_all_pairs(tasks):
    """The two clusters whose members are nearest on average are joined, again and again."""
    points = torch.randn(tasks, 3, dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    members, merges = {i: [i] for i in range(tasks)}, []
    while len(members) > 1:
        height, a, b = min(
            (float(distances[members[a]][:, members[b]].mean()), a, b)
            for a, b in itertools.combinations(sorted(members), 2)
        )
        joined = members.pop(a) + members.pop(b)
        members[tasks + len(merges)] = joined
        merges.append([a, b, height, len(joined)])
    torch.testing.assert_close(torch.from_numpy(clusters(distances)), torch.tensor(merges).double())


def test_plots_are_written(tmp_path):
    poly = poly_tiny.adapted(tasks=3)
    plot_routing(poly, ["a", "b", "c"], tmp_path)
    plot_curves(
        [{"step": 1, "loss/train": 2.0}, {"step": 2, "loss/train": 1.0}], tmp_path / "c.png", PANELS
    )
    plot_curves([{"step": 1}], tmp_path / "nothing.png", PANELS)
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {"routing.png", "tasks.png", "c.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.iterdir())
    poly.average()
    plot_routing(poly, ["a", "b", "c"], tmp_path / "one")  # one skill: nothing to draw
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("tasks", [2, 48])
def test_the_title_and_the_colour_bar_of_the_routing_have_room(tasks, tmp_path, monkeypatch):
    """Nothing overlaps, whatever the number of tasks; the scale ends at the largest weight."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    poly = poly_tiny.adapted(tasks=tasks)
    plot_routing(poly, [f"task {i}" for i in range(tasks)], tmp_path)
    figure = figures[0]
    figure.canvas.draw()
    *panels, bar = figure.axes
    title = figure._suptitle.get_window_extent()
    boxes = [panel.get_window_extent() for panel in panels]
    headings = [panel.title.get_window_extent() for panel in panels]
    assert not any(title.overlaps(box) for box in boxes + headings)
    assert title.y1 <= figure.bbox.y1
    assert title.x1 <= figure.bbox.x1
    assert not any(bar.get_window_extent().overlaps(box) for box in boxes)
    assert max(box.y1 for box in boxes) < min(heading.y1 for heading in headings[:4])
    gap = min(upper.y0 - lower.y1 for upper, lower in zip(boxes[:4], boxes[4:8], strict=True))
    assert gap == pytest.approx(0.5 * figure.dpi, abs=2)
    weights = poly.router.weights()
    assert bar.get_ylim()[1] == pytest.approx(float(weights.max()), rel=1e-6)
    shown = panels[0].images[0].get_array()
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    for row, name in zip(shown, names, strict=True):
        task = int(name.removeprefix("task "))
        torch.testing.assert_close(torch.from_numpy(row.data), weights[0, task].flatten())


def test_the_routing_is_in_the_order_of_the_dendrogram(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plot_routing(poly_tiny.adapted(tasks=7), [f"task {i}" for i in range(7)], tmp_path)
    routing, dendrogram = ([label.get_text() for label in figure.axes[0].get_yticklabels()]
                           for figure in figures)  # fmt: skip
    assert routing == dendrogram[::-1]
    assert sorted(routing) == [f"task {i}" for i in range(7)]

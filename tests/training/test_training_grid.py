"""Grids: every cell is measured once, whatever stops the run; the report's numbers by hand."""

import json
import os
import signal
import statistics

import pytest

from oneshot.training import grid
from oneshot.training.grid import Cell, run_grid

ARMS, SEEDS = ("a", "b"), (1, 2, 3)


def score(arm, seed):
    return {"score": ARMS.index(arm) + seed / 10}


def cells(measured, config=None, fails=None):
    def run(arm, seed):
        measured.append((arm, seed))
        if (arm, seed) == fails:
            raise RuntimeError("this cell is broken")
        return score(arm, seed)

    return [
        Cell(f"{arm}/seed_{seed}", lambda arm=arm, seed=seed: run(arm, seed), config)
        for arm in ARMS
        for seed in SEEDS
    ]


def test_every_cell_is_measured_once_and_read_afterwards(tmp_path):
    measured, said = [], []
    first = list(run_grid(cells(measured), tmp_path, say=said.append))
    assert measured == [(arm, seed) for arm in ARMS for seed in SEEDS]
    assert [o.result for o in first] == [score(*x) for x in measured]
    assert said[0] == "1/6 a/seed_1"
    assert said[-1] == "6/6 b/seed_3"
    assert json.loads((tmp_path / "b" / "seed_2.json").read_text())["result"] == {"score": 1.2}
    again = list(run_grid(cells(measured), tmp_path, say=said.append))
    assert len(measured) == len(said) == 6
    assert [(o.cell.name, o.result, o.seconds) for o in again] == [
        (o.cell.name, o.result, o.seconds) for o in first
    ]


@pytest.mark.parametrize("stopped_in", range(1, 7))
def test_a_killed_grid_continues_with_the_cell_it_was_in(tmp_path, stopped_in):
    child = os.fork()
    if child == 0:
        measured = []
        grid_cells = cells(measured)
        cell = grid_cells[stopped_in - 1]
        grid_cells[stopped_in - 1] = Cell(cell.name, lambda: os.kill(os.getpid(), signal.SIGKILL))
        list(run_grid(grid_cells, tmp_path))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    measured = []
    results = [o.result for o in run_grid(cells(measured), tmp_path)]
    assert len(measured) == 6 - (stopped_in - 1)
    assert results == [score(arm, seed) for arm in ARMS for seed in SEEDS]


def test_a_result_cut_short_is_no_result(tmp_path, monkeypatch):
    """The file appears in one step: a kill before the rename leaves the cell to be measured."""

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            list(run_grid(cells([]), tmp_path))
    assert not cells([])[0].is_done(tmp_path)
    measured = []
    assert len(list(run_grid(cells(measured), tmp_path))) == len(measured) == 6


def test_a_wider_grid_measures_new_cells_only(tmp_path):
    list(run_grid(cells([])[:2], tmp_path))
    measured = []
    assert len(list(run_grid(cells(measured), tmp_path))) == 6
    assert measured == [("a", 3), ("b", 1), ("b", 2), ("b", 3)]


def test_an_error_stops_the_grid_or_costs_its_cell(tmp_path):
    broken = ("a", 2)
    with pytest.raises(RuntimeError, match="this cell is broken"):
        list(run_grid(cells([], fails=broken), tmp_path))
    outcomes = list(run_grid(cells([], fails=broken), tmp_path, keep_going=(RuntimeError,)))
    assert [str(o.error) for o in outcomes if o.error] == ["this cell is broken"]
    assert [o.cell.name for o in outcomes if not o.result] == ["a/seed_2"]
    measured = []
    list(run_grid(cells(measured), tmp_path))
    assert measured == [broken]


def test_results_of_another_config_and_damaged_ones_are_refused(tmp_path):
    config = {"lr": 0.1, "layers": (1, 2)}  # JSON makes a list of the tuple
    list(run_grid(cells([], config), tmp_path))
    list(run_grid(cells([], config), tmp_path))
    with pytest.raises(ValueError, match=r"seed_1\.json was made with another config"):
        list(run_grid(cells([], {**config, "lr": 0.2}), tmp_path))
    (tmp_path / "a" / "seed_2.json").write_text('{"config')
    with pytest.raises(ValueError, match=r"seed_2\.json: damaged"):
        list(run_grid(cells([], config), tmp_path))


def test_names_must_differ(tmp_path):
    with pytest.raises(ValueError, match="cells must have different names, got 'a/seed_1' twice"):
        next(run_grid([cells([])[0]] * 2, tmp_path))


def test_mean_and_spread():
    # Sample standard deviation of 70 and 74: the root of 8.
    assert grid.mean_and_spread([70, 74], 2) == "72.00 ± 2.83"
    assert grid.mean_and_spread([0.5]) == "0.500"
    assert grid.mean_and_spread([float("inf"), 1.0]) == "inf"
    assert grid.mean_and_spread([]) == ""


def test_groups_and_means():
    rows = [{"arm": a, "seed": s, **score(a, s)} for s in SEEDS for a in ARMS]
    by_arm = grid.grouped(rows, "arm")
    assert {arm: [row["seed"] for row in group] for arm, group in by_arm.items()} == {
        "a": [1, 2, 3],
        "b": [1, 2, 3],
    }
    assert list(grid.grouped(rows, "seed", "arm"))[:3] == [(1, "a"), (1, "b"), (2, "a")]
    found = grid.means((row["arm"], row["score"]) for row in rows)
    assert found == {a: pytest.approx(statistics.fmean([x, x + 0.1, x + 0.2])) for a, x in
                     (("a", 0.1), ("b", 1.1))}  # fmt: skip


def test_markdown_table_and_bars(tmp_path):
    table = grid.markdown_table(["arm", "F1"], [["a", "1 |\n2"], ["b", ""]])
    assert table.splitlines() == ["| arm | F1 |", "| --- | --- |", "| a | 1 \\| 2 |", "| b |  |"]
    grid.plot_bars({"one": {"a": [0.1, 0.2], "b": [0.3]}, "two": {"a": [0.5]}}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]

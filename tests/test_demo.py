"""`oneshot demo`: which parts run, where they write, what the JSON holds."""

import json

import pytest

from oneshot import demo
from oneshot.chmm import demo as chmm
from oneshot.poly import demo as poly
from oneshot.rlvr import demo as rlvr


@pytest.fixture
def calls(monkeypatch):
    """The parts replaced by records of how they were called."""
    seen = {}

    def record(part):
        def run_demo(seed, **options):
            seen[part] = {"seed": seed, **options}
            return {"part": part}

        return run_demo

    for part, module in (("rlvr", rlvr), ("chmm", chmm), ("poly", poly)):
        monkeypatch.setattr(module, "run_demo", record(part))
        monkeypatch.setattr(module, "print_table", lambda result: print(result["part"]))
    return seen


def test_every_part_runs_in_its_folder(calls, tmp_path, capsys):
    folder, figures = tmp_path / "new", tmp_path / "figures.json"
    words = ["--seed", "5", "--steps", "2", "--output", str(folder), "--json", str(figures)]
    assert demo.main(words) == 0
    assert calls == {
        "rlvr": {"seed": 5, "steps": 2, "output": folder / "rlvr"},
        "chmm": {"seed": 5, "output": folder / "chmm"},
        "poly": {"seed": 5, "output": folder / "poly"},
    }
    assert json.loads(figures.read_text()) == {part: {"part": part} for part in calls}
    assert capsys.readouterr().out.split()[:3] == ["rlvr", "chmm", "poly"]


def test_one_part_alone(calls, tmp_path):
    assert demo.main(["--part", "chmm", "--output", str(tmp_path / "new")]) == 0
    assert list(calls) == ["chmm"]


def test_nothing_is_overwritten(calls, tmp_path):
    with pytest.raises(FileExistsError):
        demo.main(["--output", str(tmp_path)])
    assert calls == {}

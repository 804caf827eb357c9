"""The preparation of the studies on the embedded model: the set, and what a history selects."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from oneshot.embedded import problems
from oneshot.rlvr.problems.data import read_problems

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "train": 1,
    "shots_2": 2,
    "shots_4": 4,
    "example_middle": 1,
    "example_low": 1,
    "example_unsolved": 1,
    "example_short": 1,
    "label_near": 1,
    "label_guess": 1,
    "label_wild": 1,
    "full_60": 64,
    "full_90": 64,
}


@pytest.fixture(scope="module")
def prepare():
    name = "prepare_embedded_studies"
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(prepare, monkeypatch, folder, *words):
    monkeypatch.setattr(sys, "argv", ["prepare", "--folder", str(folder), *words])
    prepare.main()


def texts(folder, name):
    return [p.messages[0]["content"] for p in read_problems(folder / f"{name}.jsonl")]


def answers(folder, name):
    return [p.answer for p in read_problems(folder / f"{name}.jsonl")]


def test_sets_share_no_calculation(prepare, monkeypatch, tmp_path):
    run(prepare, monkeypatch, tmp_path, "sets")
    whole, unseen = texts(tmp_path, "full"), texts(tmp_path, "unseen")
    assert (len(set(whole)), len(set(unseen))) == (64, 256)
    assert [p.index for p in read_problems(tmp_path / "full.jsonl")] == list(range(64))
    drawn = prepare.whole_set()
    for problem in drawn[:60]:
        assert problem.left > 99
        assert problems.split_of(problem.sign, problem.left, problem.right) == "train"
    assert {problem.family for problem in drawn} == set(problems.FAMILIES)
    for problem in drawn[60:]:  # beyond the three digits of every text the model has seen
        assert len(str(problem.left)) == len(str(problem.right)) == 4
        assert problem.needs_carry
        assert problem.answer == str(problem.left + problem.right)


def test_choice_by_historical_variance(prepare, monkeypatch, tmp_path, capsys):
    """Five problems with a history worth ranking; the others are nearly always solved."""
    run(prepare, monkeypatch, tmp_path, "sets")
    history = {str(i): [1.0, 1.0, 1.0, 0.75 + i / 1000] for i in range(64)}
    history |= {"7": [0, 0, 1, 1], "3": [0, 0, 0.9, 0.9], "20": [0, 0, 0.8, 0.8]}
    history |= {"41": [0, 0, 0.7, 0.7], "60": [0, 0, 0, 0], "55": [0.8, 0.8, 0.8, 0.81]}
    (tmp_path / "history.json").write_text(json.dumps(history))
    run(prepare, monkeypatch, tmp_path, "choose", "--history", str(tmp_path / "history.json"))
    printed = capsys.readouterr().out
    whole = texts(tmp_path, "full")
    for name, count in FILES.items():
        assert len(texts(tmp_path, name)) == count, name
    assert texts(tmp_path, "train") == [whole[7]]
    assert texts(tmp_path, "shots_2") == [whole[7], whole[3]]
    assert texts(tmp_path, "shots_4") == [whole[i] for i in (7, 3, 20, 41)]
    assert texts(tmp_path, "example_low") == [whole[55]]
    assert texts(tmp_path, "example_unsolved") == [whole[60]]
    # From rank 5 on: 0, 1, 2, 4, ... without 3, 7 and 20; the 28th of them is 30.
    assert texts(tmp_path, "example_middle") == [whole[30]]
    example = prepare.whole_set()[7]
    assert answers(tmp_path, "label_near") == [str(int(example.answer) + 1)]
    assert answers(tmp_path, "label_guess") == [problems.slip(example)]
    assert answers(tmp_path, "label_wild") == ["9292725"]
    assert problems.split_of("+", prepare.SHORT.left, prepare.SHORT.right) == "train"
    right = answers(tmp_path, "full")
    for percent, flipped in ((60, 38), (90, 58)):  # 38.4 and 57.6 rounded
        noisy = answers(tmp_path, f"full_{percent}")
        assert sum(a != b for a, b in zip(noisy, right, strict=True)) == flipped
        assert f"full_{percent}: {flipped} of 64 labels flipped" in printed


def test_a_history_without_an_unsolved_problem_is_refused(prepare, monkeypatch, tmp_path):
    run(prepare, monkeypatch, tmp_path, "sets")
    (tmp_path / "history.json").write_text(json.dumps({str(i): [0.5, 1.0] for i in range(64)}))
    with pytest.raises(ValueError, match="none never solved"):
        run(prepare, monkeypatch, tmp_path, "choose", "--history", str(tmp_path / "history.json"))

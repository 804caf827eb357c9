"""Ranking against the paper's published ranks, and against the formulas on small histories."""

import csv
import json
import random
import statistics

import pytest
import rlvr_tiny
import torch

from oneshot.cli import main
from oneshot.rlvr import recorder
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.datafiles import read_rows
from oneshot.rlvr.problems.selection import (
    fold,
    rank,
    read_history,
    shots,
    step_accuracy,
    write_history,
)
from oneshot.rlvr.trainer import train
from oneshot.training.jsonl import read_jsonl

# Ranks that the paper names, as indices of its training set.
PUBLISHED = {1: 124, 2: 267, 3: 531, 13: 682, 1209: 789}
LABELS = {1: "12.8", 2: "24", 3: "7560", 13: "\\frac{4}{3}"}


@pytest.fixture
def paper(shared_data):
    return shared_data / "rlvr" / "data"


def test_the_ranking_of_the_paper_and_its_training_files(paper, tmp_path, capsys):
    folder = paper / "train" / "one_shot_rlvr"
    words = ["rlvr", "select", f"--history={paper / 'acc_step_500.json'}"]
    words += [f"--output={tmp_path / 'ranking.csv'}", f"--data={folder / 'dsr_sub.parquet'}"]
    assert main([*words, "--shots", "1", "16", "--ranks", "1", "2", "13", "1209"]) == 0
    with (tmp_path / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["rank", "index", "std", "mean", "label"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 1210))
    assert {n: int(rows[n - 1]["index"]) for n in PUBLISHED} == PUBLISHED
    assert {n: rows[n - 1]["label"] for n in LABELS} == LABELS
    history = json.loads((paper / "acc_step_500.json").read_text())
    assert float(rows[0]["std"]) == pytest.approx(statistics.pstdev(history["124"]), rel=1e-12)
    assert float(rows[0]["mean"]) == pytest.approx(statistics.mean(history["124"]), rel=1e-12)
    # 104 problems are never or always solved; they tie at the end in the order of the file.
    tail = [row["index"] for row in rows if float(row["std"]) == 0]
    assert len(tail) == 104
    assert tail == [index for index in history if len(set(history[index])) == 1]
    assert read_rows(tmp_path / "shots_1.parquet") == read_rows(folder / "pi1_r128.parquet")
    four = read_rows(folder / "merge_pi1_pi2_pi13_pi1209_r128.parquet")
    for row in four:
        del row["source_file"]
    assert read_rows(tmp_path / "ranks_1_2_13_1209.parquet") == four
    sixteen = read_rows(tmp_path / "shots_16.parquet")
    assert len(sixteen) == 128
    assert {row["extra_info"]["index"] for row in sixteen} == {int(r["index"]) for r in rows[:16]}
    assert "1209 problems, first 124, 267, 531, " in capsys.readouterr().out


def test_ties_keep_the_order_of_the_history():
    history = {5: [0, 1], 3: [1, 1], 9: [1, 0], 1: [0.5, 0.5], 2: [0, 0.5]}
    assert [entry.index for entry in rank(history)] == [5, 9, 2, 3, 1]
    assert [entry.std for entry in rank(history)] == [0.5, 0.5, 0.25, 0, 0]
    assert [entry.mean for entry in rank(history)] == [0.5, 0.5, 0.25, 1, 0.5]


def test_lim_is_the_alignment_with_the_mean_curve():
    generator = random.Random(1)
    history = {i: [generator.random() for _ in range(4 + i % 3)] for i in range(7)}
    length = 4
    mean = [sum(history[i][t] for i in range(7)) / 7 for t in range(length)]
    rest = sum((1 - m) ** 2 for m in mean)
    score = {
        i: 1 - sum((history[i][t] - mean[t]) ** 2 for t in range(length)) / rest for i in range(7)
    }
    expected = sorted(range(7), key=lambda i: -score[i])
    assert [entry.index for entry in rank(history, "lim")] == expected
    with pytest.raises(ValueError, match="every problem is always solved"):
        rank({0: [1.0], 1: [1.0]}, "lim")


def test_random_is_a_permutation_that_the_seed_decides():
    history = {i: [0.0] for i in range(63)}
    found = [[e.index for e in rank(history, "random", seed)] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert sorted(found[2]) == list(range(63))


def test_accuracies_are_exact():
    """1020 of 1024 is 0.99609, not floored to 0.875 as in the released code."""
    problems = [Problem([], "1", index=7)] * 1024
    assert step_accuracy(problems, [1.0] * 1020 + [0.0] * 4) == {"7": 1020 / 1024}
    rows = [{"step": 1, "accuracy": {"7": 0.5, "2": 1.0}}, {"step": 2, "accuracy": {"7": 0.25}}]
    assert fold(rows) == {7: [0.5, 0.25], 2: [1.0]}


def test_a_run_collects_its_history(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        f"--data.path={tiny_folder / 'eval.jsonl'}",
        "--rollout.batch_size=3",
        "--run.steps=4",
        "--evaluation.path=null",
    )
    seen = []

    def reward(responses, problems):
        scores = [float("a" in text) for text in responses]
        seen.append([(p.index, s) for p, s in zip(problems, scores, strict=True)])
        return scores

    try:
        train(config, reward=reward)
    finally:
        torch.set_num_threads(threads)
    history = read_history(tmp_path / "run" / "acc_step_4.json")
    assert history == read_history(tmp_path / "run" / "accuracy.jsonl")
    for index in range(3):
        expected = [statistics.mean(s for i, s in step if i == index) for step in seen]
        assert history[index] == expected
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "accuracy.jsonl")] == [1, 2, 3, 4]
    words = ["rlvr", "select", f"--history={tmp_path / 'run' / 'accuracy.jsonl'}"]
    assert main([*words, f"--output={tmp_path / 'r.csv'}", "--method=random"]) == 0
    assert (tmp_path / "r.csv").read_text().splitlines()[1].endswith(",")  # no data, no label


def test_errors(tmp_path, capsys):
    path = tmp_path / "h.json"
    for text, message in (
        ("{", "not JSON"),
        ("[]", "expected an object of index -> accuracies"),
        ('{"a": [1]}', "got 'a'"),
        ('{"1": []}', "got '1'"),
        ('{"1": ["x"]}', "got '1'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_history(path)
    with pytest.raises(FileNotFoundError, match="no such history"):
        read_history(tmp_path / "none.json")
    with pytest.raises(ValueError, match="method must be one of variance, lim, random"):
        rank({1: [0.0]}, "best")
    with pytest.raises(ValueError, match="history is empty"):
        rank({})
    ranking = rank({0: [0.0, 1.0], 1: [0.0, 0.0]})
    rows = {0: {"answer": "1"}}
    with pytest.raises(ValueError, match="between 1 and 2, got 3"):
        shots(rows, ranking, [3])
    with pytest.raises(ValueError, match="a multiple of the 2 examples, got 3"):
        shots(rows, ranking, [1, 2], total=3)
    with pytest.raises(ValueError, match="problem 1 of the history is not in the data"):
        shots(rows, ranking, [1, 2], total=4)
    write_history(path, {1: [0.5]})
    words = ["rlvr", "select", f"--history={path}", f"--output={tmp_path / 'r.csv'}"]
    assert main([*words, "--shots", "1"]) == 1
    assert "--shots and --ranks need --data" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()

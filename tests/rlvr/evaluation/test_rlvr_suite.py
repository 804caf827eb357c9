"""Benchmark files and the evaluation of checkpoints on them."""

import json
import re
import shutil

import pytest
import torch

from oneshot.cli import main
from oneshot.rlvr.config import DataConfig, EvaluateConfig, ModelConfig, PromptConfig, RewardConfig
from oneshot.rlvr.evaluation.benchmarks import BENCHMARKS, PAPER_SIX, parse_names, read_benchmark
from oneshot.rlvr.evaluation.evaluate import accuracy_by_group, evaluate, pass_at_k
from oneshot.rlvr.evaluation.report import plot
from oneshot.rlvr.evaluation.suite import checkpoint_sources, run_suite
from oneshot.rlvr.metrics import reflection_shares
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.rewards.reward import make_reward
from oneshot.rlvr.rewards.strict_grader import is_correct
from oneshot.training.jsonl import read_jsonl
from oneshot.training.seeding import derive_seed


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


ROWS = {"math500": 500, "aime24": 30, "amc23": 40, "minerva_math": 272, "olympiadbench": 675}


@pytest.mark.parametrize("name", PAPER_SIX)
def test_the_real_files(shared_data, name):
    folder = shared_data / "rlvr" / "Qwen2.5-Eval" / "evaluation" / "data"
    problems = read_benchmark(BENCHMARKS[name], folder)
    assert len(problems) == {**ROWS, "aime25": 30}[name]
    assert [p.index for p in problems] == list(range(len(problems)))
    assert all(is_correct(p.answer, p.answer) for p in problems)
    assert not any(p.answer.startswith("$") for p in problems)
    if name == "math500":
        groups = accuracy_by_group(problems, [1.0] * 500)
        counts = {subject: found["problems"] for subject, found in groups["subject"].items()}
        assert counts == {
            "Algebra": 124, "Intermediate Algebra": 97, "Prealgebra": 82, "Number Theory": 62,
            "Precalculus": 56, "Geometry": 41, "Counting & Probability": 38,
        }  # fmt: skip
        assert [found["problems"] for found in groups["level"].values()] == [43, 90, 105, 128, 134]
    if name == "amc23":
        assert [p.answer for p in problems[:4]] == ["27", "36", "45", "3159"]
    if name == "olympiadbench":
        assert [p.answer for p in problems[:3]] == ["2", "\\frac{1}{2 n+2}", "2^{1009}"]
    if name == "aime24":
        tiled = read_jsonl(folder / "aime24x8" / "test.jsonl")  # the paper's avg@8 file
        assert [row["answer"] for row in tiled] == [p.answer for p in problems] * 8


def test_names():
    assert [(b.name, k) for b, k in parse_names(["six"])] == [
        ("math500", 1), ("aime24", 8), ("amc23", 8), ("minerva_math", 1), ("olympiadbench", 1),
        ("aime25", 8),
    ]  # fmt: skip
    assert [(b.name, k) for b, k in parse_names(["arc_easy", "aime24@64"])] == [
        ("arc_easy", 1), ("aime24", 64),
    ]  # fmt: skip
    for names, message in (
        (["math"], "got 'math'"),
        (["aime24@0"], "expected <name>@<responses per problem>"),
        (["aime24@x"], "expected <name>@<responses per problem>"),
        (["six", "aime24@4"], "'aime24' is there twice"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_names(names)


def write(folder, name, rows):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ARC = {
    "question": "Which is 4?",
    "choices": {"text": ["2+2", "1+1"], "label": ["A", "B"]},
    "answerKey": "A",
}


def test_rows_of_each_kind_and_their_errors(tmp_path):
    write(tmp_path, "arc_easy", [ARC])
    (problem,) = read_benchmark(BENCHMARKS["arc_easy"], tmp_path)
    assert problem.answer == "A"
    assert problem.messages[0]["content"] == (
        "Which is 4?\nA. 2+2\nB. 1+1\nPut the letter of the right choice into \\boxed{}."
    )
    write(tmp_path, "minerva_math", [{"question": "q", "answer": "3"}] * 3)  # the hub's fields
    assert [p.answer for p in read_benchmark(BENCHMARKS["minerva_math"], tmp_path, 2)] == ["3"] * 2
    for name, row, message in (
        ("arc_easy", {**ARC, "answerKey": "C"}, r"row 1: answerKey must be one of \['A', 'B'\]"),
        ("math500", {"problem": "p", "solution": "none"}, "the solution has no boxed answer"),
        ("math500", {"answer": "1"}, "no field problem or question"),
        ("aime24", {"problem": "p"}, "no field answer"),
        ("aime24", {"problem": "p", "answer": " "}, "the answer is empty"),
        ("aime24", [1], "expected an object, got list"),
    ):
        write(tmp_path, name, [row])
        with pytest.raises(ValueError, match=message):
            read_benchmark(BENCHMARKS[name], tmp_path)
    with pytest.raises(FileNotFoundError):
        read_benchmark(BENCHMARKS["aime25"], tmp_path)


def test_reflection_and_groups():
    texts = ["Let me recheck. Rethink!", "RECALCULATE", "check", "rechecked"]
    assert reflection_shares(texts) == {
        "rethink": 0.25, "recheck": 0.5, "recalculate": 0.25, "any": 0.75,
    }  # fmt: skip
    levels = [3, 1, 3, 1, 3]
    problems = [Problem([], "1", extra={"level": level}) for level in levels]
    found = accuracy_by_group(problems, [1.0, 0.5, 0.0, 0.0, 0.5])
    assert found == {
        "level": {"1": {"problems": 2, "accuracy": 0.25}, "3": {"problems": 3, "accuracy": 0.5}}
    }


@pytest.fixture
def scene(tiny, tiny_folder, tmp_path):
    """A run with two checkpoints, and small benchmarks whose answers the tiny model can hit."""
    model, tokenizer = tiny
    run = tmp_path / "run"
    for step in (2, 10):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        folder = run / "checkpoints" / f"step_{step:06d}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    data = tmp_path / "data"
    rows = [{"problem": f"{a}+{a}", "answer": str(2 * a), "level": a % 2} for a in range(1, 6)]
    write(data, "aime24", rows)
    write(data, "math500", [{**row, "solution": f"\\boxed{{{row['answer']}}}"} for row in rows])
    write(data, "arc_easy", [ARC])
    return run, data, tmp_path


def config(scene, **options):
    run, data, tmp_path = scene
    defaults = {
        "data": DataConfig(path="", prompt=PromptConfig()),
        "model": ModelConfig(device="cpu"),
        "benchmarks": ("math500", "aime24@4", "arc_easy"),
        "benchmark_folder": str(data),
        "benchmark_temperature": 1.0,
        "checkpoints": (str(run),),
        "grader": RewardConfig("test_rlvr_suite:has_digit", workers=1, timeout=20.0),
        "max_new_tokens": 12,
        "output": str(tmp_path / "out"),
        "threads": 1,
    }
    return EvaluateConfig(**{**defaults, **options})


def has_digit(responses, problems):
    """A grader that the random model sometimes satisfies."""
    return [float(any(c in text for c in "0123456789")) for text in responses]


def test_results_are_those_of_evaluate(scene, tiny):
    options = config(scene)
    text = run_suite(options)
    out = scene[2] / "out"
    assert (out / "results.md").read_text() == text
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())["checkpoints"]
    assert list(results) == ["run_step_000002", "run_step_000010"]
    assert [entry["step"] for entry in results.values()] == [2, 10]
    from transformers import AutoModelForCausalLM

    reward = make_reward(options.grader)
    shares = []
    for name, entry in results.items():
        model = AutoModelForCausalLM.from_pretrained(entry["source"]).eval()
        for task, samples in (("math500", 1), ("aime24", 4)):
            expected = evaluate(
                model, tiny[1], read_benchmark(BENCHMARKS[task], scene[1]),
                template=PromptConfig(), max_new_tokens=12, batch_size=128,
                temperature=1.0 if samples > 1 else 0.0, samples=samples, grader=reward,
                seed=derive_seed(0, "benchmark", task),
            )  # fmt: skip
            found = entry["benchmarks"][task]
            assert found == json.loads(json.dumps(expected.metrics()))
            assert read_jsonl(out / "responses" / name / f"{task}.jsonl") == expected.records
            shares.append(found["accuracy"])
            low, high = (100 * x for x in found["interval"])
            assert f"{100 * found['accuracy']:.1f} [{low:.1f}, {high:.1f}]" in text
            hits = [sum(record["scores"]) for record in expected.records]
            k = [pass_at_k(samples, int(hit), samples) for hit in hits]
            assert found["pass_at_k"][str(samples)] == pytest.approx(sum(k) / 5)
        mean = (shares[-1] + shares[-2]) / 2  # without multiple choice
        assert re.search(rf"\| {name} \|.*\| {100 * mean:.1f} \|", text)
        assert entry["benchmarks"]["arc_easy"]["accuracy"] in (0.0, 1.0)
    reward.close()
    assert 0 < sum(shares) < len(shares)
    assert "aime24 by level" in text
    assert "Best" not in text


def set_accuracy(scene, name, task, value):
    """Overwrites a stored result, to see whether it is read or measured again."""
    path = scene[2] / "out" / "cells" / name / f"{task}.json"
    cell = json.loads(path.read_text())
    cell["result"]["accuracy"] = value
    path.write_text(json.dumps(cell))


def test_a_killed_call_continues_and_other_settings_are_refused(scene):
    options = config(scene)
    run_suite(options)
    path = scene[2] / "out" / "results.json"
    whole = json.loads(path.read_text())
    (scene[2] / "out" / "cells" / "run_step_000010" / "aime24.json").unlink()
    set_accuracy(scene, "run_step_000002", "math500", 0.125)
    run_suite(options)
    again = json.loads(path.read_text())["checkpoints"]
    assert again["run_step_000010"] == whole["checkpoints"]["run_step_000010"]
    assert again["run_step_000002"]["benchmarks"]["math500"]["accuracy"] == 0.125  # not run again
    with pytest.raises(ValueError, match=r"results of other settings \(seed\)"):
        run_suite(config(scene, seed=1))


def test_the_best_checkpoint_is_chosen_on_validation(scene, tiny_folder):
    options = config(
        scene, validation=str(tiny_folder / "eval.jsonl"), benchmarks=("math500", "aime24@4")
    )
    text = run_suite(options)
    for name, value in (("run_step_000002", 0.75), ("run_step_000010", 0.25)):
        set_accuracy(scene, name, "validation", value)
        for task in ("math500", "aime24"):
            set_accuracy(scene, name, task, 1 - value)
    text = run_suite(options)
    assert "Best on validation: **run_step_000002** (75.0)." in text
    assert "itself" not in text
    assert "themselves" not in text
    text = run_suite(config(scene, paper_protocol=True, **{
        "validation": options.validation, "benchmarks": options.benchmarks
    }))  # fmt: skip
    assert "Best on validation: **run_step_000002**" in text
    assert "on the benchmarks themselves: **run_step_000010** (75.0). Chosen on the test" in text
    assert "Best on aime24 itself: run_step_000010 (75.0)." in text


def test_checkpoints_by_name(scene, tiny_folder):
    run = scene[0]
    shutil.copytree(
        run / "checkpoints" / "step_000002", run / "checkpoints" / ".step_000012.writing"
    )
    model = str(tiny_folder / "model")
    found = checkpoint_sources(config(scene, checkpoints=(model, str(run))))
    assert found == {
        "model": model,
        "run_step_000002": str(run / "checkpoints" / "step_000002"),
        "run_step_000010": str(run / "checkpoints" / "step_000010"),
    }
    hub = checkpoint_sources(config(scene, checkpoints=(), model=ModelConfig(source="org/name")))
    assert hub == {"org_name": "org/name"}
    with pytest.raises(ValueError, match="are both 'model'"):
        checkpoint_sources(config(scene, checkpoints=(model, model)))
    (scene[2] / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        checkpoint_sources(config(scene, checkpoints=(str(scene[2] / "empty"),)))


def entry(step, accuracy):
    figures = {
        "accuracy": accuracy, "boxed_ratio": 1.0, "mean_tokens": 7, "reflection": {"any": 0.5},
    }  # fmt: skip
    return {"step": step, "benchmarks": {"math500": figures, "aime24": figures}}


@pytest.mark.parametrize(
    ("steps", "x", "dotted"),
    [
        ((None, 40, 20), [20, 40], 3),
        ((20, 20, 40), [0, 1, 2], 0),
        ((None, None, None), [0, 1, 2], 0),
    ],
)
def test_curves_are_over_steps_where_there_are_any(tmp_path, monkeypatch, steps, x, dotted):
    from matplotlib.axes import Axes

    drawn, lines = [], []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **_: lines.append(y))
    real = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **k: drawn.append((x, y)) or real(self, x, y, **k)
    )
    accuracies = [0.125, 0.25, 0.5]
    results = {str(i): entry(s, a) for i, (s, a) in enumerate(zip(steps, accuracies, strict=True))}
    plot(results, ["math500", "aime24"], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert all(found == x for found, _ in drawn)
    y = {20: 50.0, 40: 25.0}
    expected = [y[s] for s in x] if dotted else [12.5, 25.0, 50.0]
    assert drawn[0][1] == drawn[2][1] == expected  # the benchmark, and the average of two alike
    assert lines[:dotted] == [12.5] * dotted


def test_command_line(scene, capsys):
    words = ["rlvr", "eval", "--benchmarks", "[math500]", f"--benchmark_folder={scene[1]}"]
    words += [f"--checkpoints=[{scene[0]}]", "--max_new_tokens=6", "--grader.workers=1"]
    assert main([*words, f"--output={scene[2] / 'o'}"]) == 0
    assert "| run_step_000010 | " in capsys.readouterr().out
    for extra, message in (
        (["--data.path=x.jsonl", "--output=o"], "data.path must be unset with benchmarks"),
        ([], "output must be a folder with benchmarks"),
    ):
        assert main([*words, *extra]) == 1
        assert message in capsys.readouterr().err
    assert main(["rlvr", "eval", "--data.path=x.jsonl", "--paper_protocol=true"]) == 1
    assert "paper_protocol must be unset without benchmarks" in capsys.readouterr().err
    assert main(["rlvr", "eval"]) == 1
    assert "data.path must be set without benchmarks" in capsys.readouterr().err

"""The demo: its example, its arms, its figures; and the claim itself, as a slow test."""

import json

import pytest
import yaml

from oneshot.embedded import problems
from oneshot.rlvr import demo


def digits(number):
    return [int(digit) for digit in str(number)]


def test_training_examples_are_out_of_reach_of_a_guess():
    examples = [demo.training_problem(seed) for seed in range(30)]
    assert len({example.text for example in examples}) == 30
    assert demo.training_problem(3) == examples[3]
    for example in examples:
        (_, tens, ones), (_, other_tens, other_ones) = digits(example.left), digits(example.right)
        assert ones + other_ones > 9
        assert tens + other_tens + 1 > 9
        assert int(example.answer) == example.left + example.right
        assert problems.slip(example) != example.answer
        assert problems.split_of("+", example.left, example.right) == "train"


def history(accuracies, rewards):
    """Metrics of a run with an evaluation every second step; 100 unseen problems."""
    rows = [{"step": 0}] + [
        {"step": step, "reward/mean": reward, "policy/entropy": 1 / step}
        for step, reward in enumerate(rewards, start=1)
    ]
    for row, accuracy in zip(rows[::2], accuracies, strict=True):
        row |= {
            "validation/accuracy": accuracy,
            "validation/accuracy_low": accuracy - 0.1,
            "validation/accuracy_high": accuracy + 0.1,
            "validation/boxed_ratio": 0.5 + accuracy / 4,
        }
    return rows


def test_figures_of_an_arm():
    # The last five rewards first average 0.95 at step 7: (0.9 + 0.9 + 1 + 1 + 1) / 5 = 0.96.
    rewards = [0.1, 0.5, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0]
    row = demo.summarize(history([0.2, 0.3, 0.6, 0.8, 0.7], rewards))
    assert row["accuracy_before"] == 0.2
    assert row["accuracy_after"] == 0.7
    assert row["interval_after"] == pytest.approx([0.6, 0.8])
    assert (row["accuracy_peak"], row["peak_step"]) == (0.8, 6)
    assert row["saturated_step"] == 7
    assert row["accuracy_at_saturation"] == 0.7  # first evaluation from then on: step 8
    assert row["reward_start"] == 0.1
    assert row["reward_end"] == pytest.approx(0.98)
    assert row["boxed_before"] == pytest.approx(0.55)
    assert [point["unseen_accuracy"] for point in row["curve"][:3]] == [0.2, None, 0.3]
    assert row["curve"][0]["reward"] is None
    assert row["curve"][4] == {"step": 4, "reward": 0.9, "entropy": 0.25, "unseen_accuracy": 0.6}


def test_training_that_never_saturates():
    row = demo.summarize(history([0.2, 0.3, 0.3, 0.3], [0.9, 1.0, 0.9, 0.9, 1.0, 0.9]))
    assert row["saturated_step"] is None
    assert row["accuracy_at_saturation"] is None


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    result = demo.run_demo(5, output=folder, steps=2, unseen=8, evaluate_every=1, progress=False)
    return folder, result


def test_a_short_demo_writes_what_it_returns(short):
    folder, result = short
    assert json.loads((folder / "demo.json").read_text()) == result
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert list(result["arms"]) == ["outcome", "format", "random"]
    example = demo.training_problem(5)
    assert json.loads((folder / "train.jsonl").read_text()) == result["training_example"]
    assert result["training_example"]["answer"] == example.answer
    unseen = [json.loads(line) for line in (folder / "unseen.jsonl").read_text().splitlines()]
    assert len(unseen) == result["unseen_problems"] == 8
    for row in result["arms"].values():
        assert [point["step"] for point in row["curve"]] == [0, 1, 2]
        assert all(point["unseen_accuracy"] is not None for point in row["curve"])
        assert row["accuracy_before"] == result["arms"]["outcome"]["accuracy_before"]


def test_accuracies_follow_from_the_written_responses(short):
    folder, result = short
    for arm, row in result["arms"].items():
        lines = (folder / arm / "validation" / "step_000002.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        boxes = [f"\\boxed{{{record['answer']}}}" for record in records]
        right = [box in record["responses"][0] for box, record in zip(boxes, records, strict=True)]
        worked = ["Step by step" in record["responses"][0] for record in records]
        assert row["accuracy_after"] == sum(right) / 8
        assert row["worked_after"] == sum(worked) / 8


def test_arms_differ_in_the_reward_alone(short):
    folder, _ = short
    configs = [yaml.safe_load((folder / arm / "config.yaml").read_text()) for arm in demo.ARMS]
    rewards = [config["reward"].pop("function") for config in configs]
    assert rewards == ["math_verify", "format", "random"]
    for config in configs:
        config["run"].pop("output")
    assert configs[0] == configs[1] == configs[2]


def test_table_shows_every_arm(short, capsys):
    _, result = short
    demo.print_table(result)
    printed = capsys.readouterr().out
    for arm, row in result["arms"].items():
        assert arm in printed
        assert f"{row['accuracy_after']:.1%}" in printed
    assert result["training_example"]["problem"] in printed


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="arms: expected some of"):
        demo.run_demo(arms=["outcome", "length"], output=tmp_path / "new")
    with pytest.raises(FileExistsError):
        demo.run_demo(output=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_example_is_enough(seed, tmp_path):
    arms = demo.run_demo(seed, output=tmp_path / "run", progress=False)["arms"]
    outcome = arms["outcome"]
    assert 0.15 <= outcome["accuracy_before"] <= 0.45
    assert outcome["accuracy_after"] >= outcome["accuracy_before"] + 0.25
    assert outcome["accuracy_after"] >= outcome["accuracy_peak"] - 0.05
    assert outcome["accuracy_after"] > arms["format"]["accuracy_after"]
    assert arms["random"]["accuracy_after"] <= outcome["accuracy_before"] + 0.05

"""The lenient grader against the rules that its fact sheet records for the paper's evaluation."""

import pytest

from oneshot.rlvr.config import RewardConfig
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.rewards.harness_grader import extract, is_correct, number
from oneshot.rlvr.rewards.reward import make_reward


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{3}, no, \\boxed{\\frac{1}{2}}. The answer is 7", "\\frac{1}{2}"),
        ("$\\boxed 5$ and so on", "5"),
        ("cut: \\boxed{12", "12"),
        ("The final answer is $x^2$. I hope it is correct. \\boxed{3}", "x^2"),
        ("The answer is: 42.", "42"),
        ("Thus the final answer is 6/", "6"),
        ("答案是 8", "8"),
        ("We get 3 apples, then 1,234.5 in all, I think", "1234.5"),
        ("x = -7", "-7"),
        ("two\n  lines: \\boxed{a\n   b}", "ab"),
        ("no idea", ""),
        ("", ""),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


def never(*texts):
    raise AssertionError("numbers need no parser")


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("12.8", "12.7996", True),
        ("12.8", "1280", True),
        ("12.8", "0.128", True),
        ("12.8", "12.7", False),
        ("10000", "10001", True),
        ("10000", "10002", False),  # beyond 1e-4
        ("50", "50\\%", True),
        ("0.5", "50%", True),
        ("1,000", "1000", True),
        ("14916", "14\\,916", True),
        ("14916", "14{,}916", True),
        ("0", "1", False),
        ("-3", "3", False),
    ],
)
def test_numbers(truth, answer, right):
    assert is_correct(truth, answer, never, never) is right


def test_the_parser_decides_what_is_no_number():
    asked = []
    assert is_correct("x", "y", lambda *pair: asked.append(pair) or True, never)
    assert not is_correct("2", "y", lambda *pair: False, lambda text: None)
    assert asked == [("x", "y")]
    assert number("inf") is None
    assert number("4.5e33") == 4.5e33


def test_as_a_grader_process():
    problem = Problem([{"role": "user", "content": "?"}], "\\frac{4}{3}")
    reward = make_reward(RewardConfig("harness", timeout=10.0, workers=1))
    texts = ["\\boxed{8/6}", "The answer is 4/3.", "about 1.5", "\\boxed{}", "\\frac43"]
    try:
        assert reward(texts, [problem] * 5).scores == [1, 1, 0, 0, 0]
    finally:
        reward.close()


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        ("\\frac{14}{3}", ["4.6667", "4.667", "14/3"], ["4.67", "4.6", "466.67"]),
        ("\\sqrt{2}", ["1.41421", "\\sqrt2"], ["1.41", "2"]),
        (
            "(3/5,8/3]",
            ["(0.6,2.6667]", "\\left(0.6, \\frac{8}{3}\\right]"],
            ["[0.6,2.6667]", "(0.6,2.7]"],
        ),
        ("(\\sqrt{3}, 1)", ["(1.73205, 1)"], ["(1, 1.73205)", "(1.73205, 1, 0)"]),
        ("2x+1", ["1+2x"], ["2.0001x+1", "3"]),
    ],
)
def test_numbers_that_are_not_plain_are_compared_with_the_same_tolerance(truth, right, wrong):
    """As Qwen's harness does: numerically where both sides come to a number, tuples by element."""
    problem = Problem([{"role": "user", "content": "?"}], truth)
    reward = make_reward(RewardConfig("harness", timeout=10.0, workers=1))
    texts = [f"\\boxed{{{answer}}}" for answer in right + wrong]
    try:
        expected = [1.0] * len(right) + [0.0] * len(wrong)
        assert reward(texts, [problem] * len(texts)).scores == expected
    finally:
        reward.close()

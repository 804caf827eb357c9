"""The generated problems against independent arithmetic."""

import random
import re

import pytest

from oneshot.embedded import problems

SAMPLE = [
    problem
    for split in problems.SPLITS
    for problem in problems.sample_problems(700, split, seed=11)
]


def numbers_in(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def boxed(text):
    return re.findall(r"\\boxed\{([^{}]*)\}", text)


def add_by_digits(a, b, carry_on):
    """School addition on strings; `carry_on` says whether carries are remembered."""
    a, b = a[::-1], b[::-1]
    digits, carry = "", 0
    for place in range(len(a)):
        total = int(a[place]) + int(b[place]) + (carry if carry_on else 0)
        last = place == len(a) - 1
        digits = (str(total) if last else str(total % 10)) + digits
        carry = total // 10
    return int(digits)


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_answer_follows_from_the_text(family):
    for problem in problems.sample_problems(300, "corpus", seed=3, families=[family]):
        a, b = numbers_in(problem.text)
        expected = {"add": a + b, "gain": a + b, "multiply": a * b}.get(family, a - b)
        assert problem.answer == str(expected)
        assert (problem.left, problem.right) == (a, b)
        assert expected > 0


def test_worked_columns_are_true_and_spell_the_answer():
    for problem in SAMPLE:
        columns = problems.columns_of(problem)
        for column in columns:
            left, right = column.split("=")
            assert eval(left) == int(right), column
        values = [column.split("=")[1] for column in columns]
        digits = values[-1] + "".join(value[-1] for value in reversed(values[:-1]))
        assert int(digits) == int(problem.answer)
        assert boxed(problems.work(problem)) == [problem.answer]


def test_guess_is_addition_without_carries():
    additions = [problem for problem in SAMPLE if problem.sign == "+"]
    for problem in additions:
        a, b = str(problem.left), str(problem.right)
        assert boxed(problems.guess(problem)) == [str(add_by_digits(a, b, carry_on=False))]
        assert problem.answer == str(add_by_digits(a, b, carry_on=True))


@pytest.mark.parametrize(
    ("family", "left", "right", "answer", "slip"),
    [
        ("add", 278, 346, "624", "514"),
        ("add", 58, 71, "129", "129"),
        ("add", 508, 704, "1212", "1202"),
        ("subtract", 512, 478, "34", "166"),
        ("subtract", 885, 872, "13", "13"),
        ("loss", 85, 58, "27", "33"),
        ("multiply", 84, 6, "504", "484"),
        ("multiply", 71, 7, "497", "497"),
    ],
)
def test_worked_by_hand(family, left, right, answer, slip):
    problem = problems.ArithmeticProblem(family, left, right, "")
    assert (problem.answer, problems.slip(problem)) == (answer, slip)
    assert problem.needs_carry == (answer != slip)


def test_ramble_has_no_box_and_styles_are_told_apart():
    rng = random.Random(0)
    for problem in SAMPLE[::7]:
        for style in problems.STYLES:
            response = problems.respond(problem, style, rng)
            assert problems.style_of(response) == style
            assert len(boxed(response)) == (0 if style == "ramble" else 1)
    assert problems.style_of("") == "other"


def test_no_calculation_is_in_two_splits():
    calculations = {split: set() for split in problems.SPLITS}
    for split in problems.SPLITS:
        for problem in problems.sample_problems(4000, split, seed=5):
            operands = (problem.left, problem.right)
            if problem.sign != "-":
                operands = tuple(sorted(operands))
            calculations[split].add((problem.sign, operands))
            assert problems.split_of(problem.sign, problem.left, problem.right) == split
    corpus, train, test = (calculations[split] for split in problems.SPLITS)
    assert not corpus & test
    assert not corpus & train
    assert not train & test
    assert problems.split_of("+", 35, 278) == problems.split_of("+", 278, 35)


def test_a_seed_fixes_the_problems():
    first = problems.sample_problems(50, "test", seed=7)
    assert first == problems.sample_problems(50, "test", seed=7)
    assert first != problems.sample_problems(50, "test", seed=8)
    assert len({problem.text for problem in first}) == 50


def test_style_shares_are_kept():
    rng = random.Random(1)
    story = problems.ArithmeticProblem("gain", 12, 34, "")
    drawn = [problems.sample_style(story, rng) for _ in range(4000)]
    for style, share in problems.STYLE_SHARES["gain"].items():
        assert abs(drawn.count(style) / 4000 - share) < 0.03  # four standard errors
    assert all(abs(sum(table.values()) - 1) < 1e-9 for table in problems.STYLE_SHARES.values())


def test_wrong_arguments_are_named():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="split: expected one of"):
        problems.sample_problem(rng, "eval")
    with pytest.raises(ValueError, match="families: expected some of"):
        problems.sample_problem(rng, "test", ("divide",))
    with pytest.raises(ValueError, match="families"):
        problems.sample_problem(rng, "test", ())
    with pytest.raises(ValueError, match="style: expected one of"):
        problems.respond(SAMPLE[0], "shout", rng)

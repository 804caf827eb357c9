"""The strict grader against the verdicts that its fact sheet records for the released code."""

import pytest

from oneshot.rlvr.config import RewardConfig
from oneshot.rlvr.problems.data import Problem, read_problems
from oneshot.rlvr.rewards.reward import make_reward
from oneshot.rlvr.rewards.strict_grader import hendrycks_form, is_correct, last_box

RIGHT = {
    "12.8": ["12.80", "64/5", "\\frac{64}{5}", "12.8\\text{ mph}", "V = 12.8", " 12.8 ", "\\$12.8"],
    "\\frac{4}{3}": ["4/3", "\\dfrac{4}{3}", "\\frac43", "\\tfrac 43", "m=4/3"],
    "1000": ["1,000", "1000.0", "1000 cm", "1000 degrees", "1000^\\circ", "1000\\%"],
    "2": ["x=2", "\\text{2}", "{2}", "2.0"],
    "(1, 2]": ["(1,2]", "(1.0,2]"],
    "7\\frac{3}{4}": ["7 3/4", "31/4"],
    "\\sqrt{2}": ["\\sqrt2", "\\sqrt{2}"],
    "2x+1": ["1+2x", "1 + x*2"],
    "x^{2}": ["x*x"],
    "\\text{East}": ["east", "\\text{east}"],
    "0.5": ["\\frac{1}{2}", ".5"],
    "\\boxed{4}": ["4"],
}
WRONG = {
    "12.8": ["12.7", "12.699", "13", "\\sqrt[3]{2048}", "\\approx 12.8", "12.8 miles per hour", ""],
    "\\frac{4}{3}": ["8/6", "1.333", "\\frac{8}{6}", "-4/3"],
    "8996734080": ["8,996,734,080"],  # only every other comma goes
    "(1, 2]": ["[1,2]", "(1,2)", "(1,2,3]", "1,2", "(1,\\frac{4}{2}]"],
    "2": ["1+1", "4/2"],  # an integer must be written as one
    "1000": ["10^3"],
    "5000000": ["5 million"],
    "a+b+c": ["c+b+a"],  # more than two letters: no sympy
    "x^{10}": ["x^5*x^5"],  # a power of two digits: no sympy
    "": ["1"],
}


@pytest.mark.parametrize(("truth", "answer"), [(t, a) for t in RIGHT for a in RIGHT[t]])
def test_right(truth, answer):
    assert is_correct(truth, answer)


@pytest.mark.parametrize(("truth", "answer"), [(t, a) for t in WRONG for a in WRONG[t]])
def test_wrong(truth, answer):
    assert not is_correct(truth, answer)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{3}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{3} and \\boxed 5", None),  # the last one decides
        ("\\boxed{3} and \\boxed{5", None),
        ("\\boxed {5}", None),
        ("\\fbox{5}", None),
        ("\\boxed{}", ""),
        ("\\boxed", None),
        ("", None),
    ],
)
def test_last_box(text, content):
    assert last_box(text) == content


def test_hendrycks_form_spells_one_answer_one_way():
    for spellings, form in (
        (("\\frac12", "\\frac{1}2", "\\dfrac{1}{2}", "1/2", "0.5"), "\\frac{1}{2}"),
        (("\\sqrt3", "\\sqrt{3}", "\\sqrt 3"), "\\sqrt{3}"),
        (("90^\\circ", "90^{\\circ}", "90"), "90"),
        (("\\left( 1, 2 \\right)", "(1,2)"), "(1,2)"),
    ):
        found = {hendrycks_form(text) for text in spellings}
        if form == "\\sqrt{3}":
            found.discard("\\sqrt{}3")  # "\sqrt 3": the rule takes the blank as the argument
        if form == "\\frac{1}{2}":
            found.discard("\\frac{1}2")  # braces on one side only: stays as it is
        assert found == {form}


def test_an_answer_is_never_run_as_code(monkeypatch):
    """Names in full-width letters are plain names for Python; neither they nor dunders get in."""
    from sympy.parsing import sympy_parser

    evaluated = []
    monkeypatch.setattr(sympy_parser, "parse_expr", lambda text, **_: evaluated.append(text))
    assert not is_correct("x+1", "x+2")
    assert evaluated.pop() == "(x+1)-(x+2)"
    for answer in ("exec('1')", "().__a__", "ｅｘｅｃ(1)", "1.＿＿a＿＿", "().__ａ__"):
        assert not is_correct("x+1", answer)
    assert evaluated == []


def test_strict_reward():
    problem = Problem([{"role": "user", "content": "?"}], "12.8")
    reward = make_reward(RewardConfig("strict", timeout=10.0, workers=1))
    texts = ["\\boxed{64/5}", "\\boxed{12.7}", "12.8", "\\boxed{12.8}", "\\boxed{}", "\\boxed 12.8"]
    try:
        assert reward(texts, [problem] * 6).scores == [1, 0, 0, 1, 0, 0]
        reward._pool.timeout = 1.0
        reward.close()
        hang = reward(["\\boxed{9**9**9**9}", "\\boxed{12.80}"], [problem] * 2)
        assert (hang.scores, hang.timeouts) == ([0.0, 1.0], 1)
    finally:
        reward.close()


def test_choice_reward():
    problem = Problem([{"role": "user", "content": "?"}], "B")
    reward = make_reward(RewardConfig("choice", timeout=10.0, workers=1))
    texts = ["\\boxed{B}", "\\boxed{(b)}", "\\boxed{\\text{B}}", "\\boxed{B.}", "\\boxed{A}", "B"]
    try:
        assert reward(texts, [problem] * 6).scores == [1, 1, 1, 1, 0, 0]
    finally:
        reward.close()


def test_every_label_of_the_training_set_equals_itself_spelled_otherwise(shared_data):
    folder = shared_data / "rlvr" / "data" / "train" / "one_shot_rlvr"
    problems = read_problems(folder / "dsr_sub.parquet", empty_answers="keep")
    assert len(problems) == 1209
    for problem in problems:
        truth = problem.answer
        assert is_correct(truth, truth)
        assert is_correct(truth, truth.replace("\\frac", "\\dfrac"))
    integers = [p.answer for p in problems if p.answer.isdigit() and len(p.answer) < 16]
    assert len(integers) > 600
    for truth in integers[:200]:
        assert is_correct(truth, f"{truth}.0")
        assert not is_correct(truth, str(int(truth) + 1))

"""Rewards: boxes, the grader's verdicts, and graders that raise, hang or die."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest
import torch

from oneshot.rlvr.config import RewardConfig
from oneshot.rlvr.evaluation.benchmarks import BENCHMARKS, read_benchmark
from oneshot.rlvr.problems.data import Problem, read_problems
from oneshot.rlvr.rewards.grading import GraderStartError
from oneshot.rlvr.rewards.reward import (
    FunctionReward,
    RewardError,
    has_boxed_answer,
    last_boxed,
    make_reward,
)

PROBLEM = Problem([{"role": "user", "content": "Put it in \\boxed{}."}], "12.8")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("so \\boxed{5}.", "5"),
        ("first \\boxed{3}, then \\boxed{7}", "7"),
        ("\\boxed{\\frac{1}{2}} and {more}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{5", None),
        ("\\boxed{3} \\boxed{5", None),
        ("\\boxed 5", None),
        ("\\fbox{5}", None),
        ("\\boxed{}", ""),
        ("\\boxed{\\", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content
    assert has_boxed_answer(text) == bool(content)


@pytest.fixture(scope="module")
def math_verify():
    reward = make_reward(RewardConfig(timeout=3.0, workers=1))
    yield reward
    reward.close()


def test_math_verify_verdicts(math_verify):
    # The notable answers of the paper's problem (truth 12.8; the exact value is 12.699...).
    verdicts = {
        "12.8": 1,
        "12.80": 1,
        "64/5": 1,
        "\\frac{64}{5}": 1,
        "12.8\\text{ mph}": 1,
        "V = 12.8": 1,
        "12.7": 0,
        "13": 0,
        "\\sqrt[3]{2048}": 0,
        " 12.8 ": 1,
        " ": 0,
        "\\text{no}": 0,
    }
    texts = [f"\\boxed{{9}} no, \\boxed{{{answer}}}" for answer in verdicts] + ["12.8"]
    result = math_verify(texts, [PROBLEM] * len(texts))
    assert result.scores == [*verdicts.values(), 0]
    assert (result.timeouts, result.crashes) == (0, 0)
    assert math_verify([], []).scores == []


def test_math_verify_hang_scores_zero_and_is_counted(math_verify, monkeypatch):
    monkeypatch.setattr(math_verify._pool, "timeout", 0.5)
    math_verify.close()
    texts = ["\\boxed{10^{10^{10}}!}", "\\boxed{25.6/2}"]
    result = math_verify(texts, [PROBLEM] * 2)
    assert result.scores == [0.0, 1.0]
    assert (result.timeouts, result.crashes) == (1, 0)
    math_verify.close()


def test_every_answer_of_math500_is_equal_to_itself(math_verify, shared_data):
    problems = read_problems(shared_data / "rlvr" / "data" / "test" / "math500.parquet")[::5]
    # Straight to the grader: the reward itself does not ask it about equal strings.
    outcomes = math_verify._pool.grade([(p.answer, p.answer) for p in problems])
    wrong = [p.answer for p, o in zip(problems, outcomes, strict=True) if o.score != 1]
    assert wrong == []


SCIENTIFIC = {
    "4.5e33": (
        [
            *("4.5\\times 10^{33}", "4.5E33", "4.50e+33", "45 \\cdot 10^{32}", "45" + "0" * 32),
            *("$4.5 \\times 10^{33}$", "4.5\\times10^{33}\\,\\mathrm{erg/s}"),
            "4.5e33 \\text{ erg}",
        ],
        ["4.6\\times 10^{33}", "4.5\\times 10^{32}", "4.5", "4.5e", "148.5e", "33e4.5"],
    ),
    "8.7e8": (["870000000", "870,000,000", "8.7\\times10^8"], ["87000000", "8.7"]),
    "1e8": (["10^8", "10^{8}", "100000000", "1\\times 10^{8}"], ["10^9", "1", "e^8"]),
    "1.6e-19": (["1.6\\times 10^{-19}", "16e-20"], ["1.7\\times 10^{-19}", "0", "1.6"]),
    "1e-7": (["0.0000001", "10^{-7}"], ["0.0000002", "2e-7", "0"]),
    "0.00001": (["10^{-5}", "1e-5", "1.0E-05"], ["0.00002", "0"]),
    "4.5\\times 10^{33}": (["4.5e33", "4.5\\cdot10^{33}"], ["4.5e34"]),
    "3e-2": (["0.03", "3\\times 10^{-2}", "-2+3e"], ["3e", "0.3"]),  # 3e - 2 can be meant, too
    "870000000": (["8.7e8", "8.7\\times 10^8"], ["8.7e7"]),
}


@pytest.mark.parametrize("truth", SCIENTIFIC)
@pytest.mark.parametrize("grader", ["math_verify", "harness"])
def test_numbers_in_scientific_notation(truth, grader, math_verify):
    reward = math_verify if grader == "math_verify" else make_reward(RewardConfig(grader))
    right, wrong = SCIENTIFIC[truth]
    texts = [f"\\boxed{{{answer}}}" for answer in right + wrong]
    problems = [Problem(PROBLEM.messages, truth)] * len(texts)
    scores = dict(zip(right + wrong, reward(texts, problems).scores, strict=True))
    if reward is not math_verify:
        reward.close()
    assert scores == {**dict.fromkeys(right, 1.0), **dict.fromkeys(wrong, 0.0)}


def test_every_truth_of_minerva_can_be_met_in_latex(math_verify, shared_data):
    """58 of its 272 truths are in e-notation; a model writes powers of ten."""
    folder = shared_data / "rlvr" / "Qwen2.5-Eval" / "evaluation" / "data"
    if not (folder / "minerva_math" / "test.jsonl").is_file():
        pytest.skip("no benchmark files")
    truths = [p.answer for p in read_benchmark(BENCHMARKS["minerva_math"], folder)]
    written = {t: t.split("e") for t in truths if re.fullmatch(r"-?[\d.]+e-?\d+", t)}
    assert (len(truths), len(written)) == (272, 58)
    pairs = [(t, f"{m}\\times 10^{{{int(n)}}}") for t, (m, n) in written.items()]
    pairs += [(t, format(Decimal(t), "f")) for t in written]
    wrong = [(t, f"{m}\\times 10^{{{int(n) + 1}}}") for t, (m, n) in written.items()]
    found = [outcome.score for outcome in math_verify._pool.grade(pairs + wrong)]
    assert found == [1.0] * len(pairs) + [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        (
            "B",
            [
                *("B", "b", "(B)", "B.", "\\text{B}", "\\textbf{(B)}", "$\\mathbf{B}$", "[B] 12"),
                *("B. 12", "(B) 12", "B) 12", "B: 12", "B 12", "B\\ 12", "B - a dog", "B. A dog"),
                *("\\text{(B) } 12", "\\text{B. a cat}", "\\textbf{(B)}\\ 12", "(B) A and C"),
                *("12 (B)", "choice B", "Option (B)", "The answer is B.", "the answer is (b)"),
            ],
            ["A", "A. B", "(C) B", "12", "\\text{none}", "A) 12 (B)", "D. 2.5"],
        ),
        ("1", ["1", "(1)", "1. 12 cells", "\\text{(1) ice}"], ["12", "1.5", "2", "2. 1 cell", "A"]),
    ],
)
def test_a_choice_is_its_label_with_or_without_its_text(truth, right, wrong):
    reward = make_reward(RewardConfig("choice", workers=1))
    texts = [f"\\boxed{{{answer}}}" for answer in right + wrong]
    problems = [Problem(PROBLEM.messages, truth)] * len(texts)
    scores = dict(zip(right + wrong, reward(texts, problems).scores, strict=True))
    reward.close()
    assert scores == {**dict.fromkeys(right, 1.0), **dict.fromkeys(wrong, 0.0)}


def test_format_reward_looks_at_the_response_only():
    reward = make_reward(RewardConfig("format"))
    texts = ["\\boxed{1}", "\\boxed{}", "1", "\\boxed{1"]
    assert reward(texts, [PROBLEM] * 4).scores == [1, 0, 0, 0]


def test_random_reward_depends_on_seed_step_and_row_only():
    reward = make_reward(RewardConfig("random", random_probability=0.25), seed=3)
    texts, problems = ["\\boxed{12.8}"] * 4000, [PROBLEM] * 4000
    scores = reward(texts, problems, step=5).scores
    assert scores == reward(["x"] * 4000, problems, step=5).scores
    assert scores != reward(texts, problems, step=6).scores
    assert scores != make_reward(RewardConfig("random"), seed=4)(texts, problems, step=5).scores
    # By the row in the batch of all processes, not by the place in this one's share.
    rows = [7, 2, 990]
    found = reward(texts[:3], problems[:3], step=5, rows=rows).scores
    assert found == [scores[row] for row in rows]
    assert abs(sum(scores) / 4000 - 0.25) < 0.0275  # four standard deviations


MODULE = """
import os, signal, time

def odd(responses, problems):
    text = responses[0]
    if text == "sleep":
        time.sleep(60)
    if text == "deaf":            # like C code that never returns: no alarm gets through
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(60)
    if text == "stubborn":
        while True:
            try:
                time.sleep(60)
            except Exception:
                pass
    if text == "die":
        os._exit(3)
    print("noise on stdout")
    return [len(text) / 2 + len(problems[0].answer)]

def bad(responses, problems):
    raise KeyError("lost")

def wrong(responses, problems):
    return [float("nan")]
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "my_rewards.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "my_rewards"


def test_function_in_workers_survives_hangs_and_deaths(module, capfd):
    reward = make_reward(RewardConfig(f"{module}:odd", timeout=0.3, workers=2))
    texts = ["ab", "sleep", "deaf", "stubborn", "die", "abcd"]
    result = reward(texts, [PROBLEM] * 6)
    assert result.scores == [5.0, 0, 0, 0, 0, 6.0]
    assert (result.timeouts, result.crashes) == (3, 1)
    assert reward(["a"], [PROBLEM]).scores == [4.5]
    processes = [worker.process for worker in reward._pool._workers]
    reward.close()
    assert all(process.poll() is not None for process in processes)
    assert "noise" not in capfd.readouterr().out


def test_function_that_raises_is_named(module):
    reward = make_reward(RewardConfig(f"{module}:bad", workers=1))
    with pytest.raises(RewardError, match=r"reward 'my_rewards:bad' failed on response 0 \('ab'\)"):
        reward(["ab"], [PROBLEM])
    reward.close()
    reward = make_reward(RewardConfig(f"{module}:wrong", workers=1))
    with pytest.raises(
        RewardError, match=r"expected one finite number for one response, got \[nan"
    ):
        reward(["ab"], [PROBLEM])
    reward.close()


def test_function_that_cannot_be_imported(module):
    for name in (f"{module}:none", "no_such_module:f"):
        with pytest.raises(GraderStartError, match=f"grader '{name}' cannot start"):
            make_reward(RewardConfig(name, workers=1))(["a"], [PROBLEM])
    with pytest.raises(ValueError, match=r'random or "module:function", got \'mathverify\''):
        RewardConfig("mathverify")


def test_workers_need_no_torch():
    reward = make_reward(RewardConfig("json:dumps", workers=1))
    with pytest.raises(RewardError):
        reward(["a"], [PROBLEM])
    (worker,) = reward._pool._workers
    maps = f"/proc/{worker.process.pid}/maps"
    if os.path.exists(maps):
        with open(maps) as lines:
            assert "libtorch" not in lines.read()
    reward.close()


def test_a_phantom_is_no_answer():
    r"""LaTeX does not print it; every grader would read the 5 in `\\boxed{\\phantom{5}}`."""
    texts = [
        "\\boxed{\\phantom{5}}",
        "\\boxed{3\\hphantom{\\frac{1}{2}}}",
        "\\boxed{\\vphantom{1}5}",
    ]
    problems = [Problem(PROBLEM.messages, truth) for truth in ("5", "3", "5")]
    for grader in ("math_verify", "strict", "harness"):
        reward = make_reward(RewardConfig(grader, timeout=10.0, workers=1))
        assert reward(texts, problems).scores == [0, 1, 1], grader
        reward.close()


HOSTILE = [
    *("10^{10^{10}}!", "9" * 100_000, "(" * 5000 + "1" + ")" * 5000, "{" * 400 + "}" * 400),
    *("\\frac" * 2000, "\\sqrt" * 1000 + "{2}", "1e999999999", "10^{9999}", "x" + "^x" * 500),
    *("\\ud800", "\x00", "\\phantom{" * 50, "nan", "\\infty", "1,2," * 3000, "\\int" * 300),
]


@pytest.mark.parametrize("grader", ["math_verify", "strict", "harness", "choice"])
def test_hostile_answers_cost_their_time_and_no_more(grader):
    reward = make_reward(RewardConfig(grader, timeout=0.5, workers=2))
    texts = [f"\\boxed{{{answer}}}" for answer in [*HOSTILE, "12.8"]]
    for truth in ("12.8", "(1, 2]", "4.5e33"):
        problem = Problem(PROBLEM.messages, truth)
        scores = reward(texts, [problem] * len(texts)).scores
        assert scores == [0.0] * len(HOSTILE) + [float(truth == "12.8")]
    reward.close()


def test_graders_serve_several_threads(module, monkeypatch):
    """One pool, and verdicts that another thread throws away while they are read."""
    from oneshot.rlvr.rewards import reward as rewards

    monkeypatch.setattr(rewards, "CACHE_SIZE", 3)
    answers = make_reward(RewardConfig(timeout=20.0, workers=2))
    functions = make_reward(RewardConfig(f"{module}:odd", timeout=20.0, workers=2))

    def ask(thread):
        texts = [f"\\boxed{{{k}/2}}" for k in range(thread, thread + 12)]
        truths = [Problem(PROBLEM.messages, str(k / 2)) for k in range(thread, thread + 12)]
        for _ in range(3):
            assert answers(texts, truths).scores == [1.0] * 12
            assert answers(texts[1:], truths[:-1]).scores == [0.0] * 11
            assert functions(["ab", "abcd"], [PROBLEM] * 2).scores == [5.0, 6.0]

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    answers.close()
    functions.close()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"a": 1.0, "b": 2.0}, "expected a list of 2 numbers, got dict"),
        ({1.0, 2.0}, "expected a list of 2 numbers, got set"),
        (0.5, "expected a list of 2 numbers, got float"),
        (None, "expected a list of 2 numbers, got NoneType"),
        ((x for x in (1, 2)), "expected a list of 2 numbers, got generator"),
        ("12", "expected a list of 2 numbers, got str"),
        (torch.ones(2, 1), r"expected a list of 2 numbers, got shape \(2, 1\)"),
        (numpy.ones((1, 2)), r"expected a list of 2 numbers, got shape \(1, 2\)"),
        (torch.tensor(1.0), r"expected a list of 2 numbers, got shape \(\)"),
        ([[1.0], [2.0]], r"response 0: expected a finite number, got \[1.0\]"),
        ([torch.ones(1), 1.0], "response 0: expected a finite number, got tensor"),
        (["1", "2"], "response 0: expected a finite number, got '1'"),
        ([1.0, 1e308], r"response 1: .* got 1e\+308 \(float32 holds up to 3.4e38\)"),
        ([1.0, float("inf")], "response 1: expected a finite number, got inf"),
    ],
)
def test_what_a_reward_function_may_not_return(returned, message):
    with pytest.raises(RewardError, match=message):
        FunctionReward(lambda r, p: returned)(["a", "b"], [PROBLEM] * 2)


@pytest.mark.parametrize(
    "returned",
    [
        (1, 0.5),
        numpy.array([1, 0.5]),
        torch.tensor([1, 0.5]),
        [numpy.float32(1), torch.tensor(0.5)],
        [True, Fraction(1, 2)],
    ],
)
def test_what_a_reward_function_may_return(returned):
    scores = FunctionReward(lambda r, p: returned)(["a", "b"], [PROBLEM] * 2).scores
    assert scores == [1.0, 0.5]
    assert all(type(score) is float for score in scores)


def test_python_function_reward():
    problems = [PROBLEM] * 2
    assert FunctionReward(lambda r, p: [1, 0.5])(["a", "b"], problems).scores == [1.0, 0.5]
    with pytest.raises(RewardError, match="returned 1 scores for 2 responses"):
        FunctionReward(lambda r, p: [1])(["a", "b"], problems)
    with pytest.raises(RewardError, match="response 1: expected a finite number, got None"):
        FunctionReward(lambda r, p: [1, None])(["a", "b"], problems)
    with pytest.raises(ZeroDivisionError):
        FunctionReward(lambda r, p: [1 / 0])(["a"], problems[:1])
    with pytest.raises(ValueError, match="one entry per response, got 1 for 2"):
        FunctionReward(lambda r, p: [1, 1])(["a", "b"], problems[:1])
    assert json.dumps(FunctionReward(share)(["aab"], problems[:1]).scores) == "[2.0]"


def share(responses, problems):
    return [text.count("a") for text in responses]

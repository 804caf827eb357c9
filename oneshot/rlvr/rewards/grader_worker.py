"""Child process of `grading.py`: imports one grader, then grades the items of a pipe.

Run as `python -m oneshot.rlvr.rewards.grader_worker <pipe fd> <function> <seconds>`. It imports no
torch.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any


class _OutOfTime(BaseException):
    """Not an Exception: graders catch those."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise _OutOfTime


def math_verify_grader() -> Callable[[str, str], float]:
    """The grader of two answers, the true one first (math-verify is not symmetric).

    math-verify's own time-outs are off: the alarm of this process guards the whole call. Numbers in
    scientific notation are read before math-verify sees them (`decimals.py`).
    """
    import logging

    from math_verify import parse, verify

    from oneshot.rlvr.rewards import decimals

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)

    def grade(truth: str, answer: str) -> float:
        certain = decimals.equal(truth, answer)
        if certain is not None:
            return float(certain)
        return max(grade_expressions(*pair) for pair in decimals.readings(truth, answer))

    def grade_expressions(truth: str, answer: str) -> float:
        # A bare truth may parse to nothing, which verifies against nothing; so it is boxed too.
        gold = parse(f"\\boxed{{{truth}}}", parsing_timeout=None)
        prediction = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
        return float(verify(gold, prediction, timeout_seconds=None))

    return grade


def strict_grader() -> Callable[[str, str], float]:
    """The grader of the released code; imports what it needs before the first time limit."""
    import pylatexenc.latex2text  # noqa: F401
    import sympy.parsing.sympy_parser  # noqa: F401

    from oneshot.rlvr.rewards.strict_grader import is_correct

    return lambda truth, answer: float(is_correct(truth, answer))


def harness_grader() -> Callable[[str, str], float]:
    """The lenient grader of the evaluation harness; math-verify reads what is no plain number."""
    from math_verify import parse

    from oneshot.rlvr.rewards.decimals import as_latex
    from oneshot.rlvr.rewards.harness_grader import is_correct

    verify = math_verify_grader()

    def evaluated(text: str) -> float | None:
        for value in parse(f"\\boxed{{{as_latex(text)}}}", parsing_timeout=None)[:1]:
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError):
                break  # it has a variable, or is no expression
        return None

    return lambda truth, answer: float(
        is_correct(truth, answer, lambda gold, answer: bool(verify(gold, answer)), evaluated)
    )


def choice_grader() -> Callable[[str, str], float]:
    """The grader of multiple choice: the same label, alone or with the text of its choice."""
    from oneshot.rlvr.rewards.choices import label

    return lambda truth, answer: float(label(truth) == label(answer))


def named_grader(name: str) -> Callable[[str, Any], float]:
    """The grader that calls a reward function with one response and checks what it returns."""
    from oneshot.rlvr.rewards.reward import as_scores

    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)

    def grade(response: str, problem: Any) -> float:
        result = function([response], [problem])
        try:
            return as_scores(result, 1)[0]
        except (TypeError, ValueError):
            message = f"expected one finite number for one response, got {result!r}"
            raise TypeError(message) from None

    return grade


GRADERS: dict[str, Callable[[], Callable[[str, str], float]]] = {
    "math_verify": math_verify_grader,
    "strict": strict_grader,
    "harness": harness_grader,
    "choice": choice_grader,
}


def grade_one(grader: Callable[..., float], item: tuple[Any, ...], seconds: float) -> Any:
    """Grades one item under the alarm; returns (status, score or traceback)."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            score = grader(*item)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return "score", score
    except _OutOfTime:
        return "timeout", None
    except Exception:
        return "raised", traceback.format_exc(limit=-4)


def main() -> None:
    """Serves the pipe until it is closed."""
    connection = Connection(int(sys.argv[1]))
    name, seconds = sys.argv[2], float(sys.argv[3])
    os.dup2(2, 1)  # a grader that prints does not disturb the run's output
    signal.signal(signal.SIGALRM, _alarm)
    try:
        grader = GRADERS[name]() if name in GRADERS else named_grader(name)
    except Exception:
        connection.send(("failed", traceback.format_exc(limit=-4)))
        return
    connection.send(("ready", None))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(grade_one(grader, item, seconds))


if __name__ == "__main__":
    main()

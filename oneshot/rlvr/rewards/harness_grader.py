r"""Close to the lenient check of the evaluation harness that the paper's benchmarks use.

Wang et al. 2025 evaluate with a fork of Qwen2.5-Math's harness. It takes an answer wherever it
finds one, down to the last number of the response, and compares numbers with a relative tolerance
of 1e-4, also against a hundredth and a hundredfold of the truth (per cent); tuples and intervals
element by element. So does this. For what is no plain number the harness tries three LaTeX parsers;
here math-verify decides, and that is a difference. It also executes Python found in responses;
this never does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from oneshot.rlvr.rewards.strict_grader import hendrycks_form

TOLERANCE = 1e-4
_MARKERS = ("he answer is", "final answer is", "答案是")


def extract(text: str) -> str:
    r"""The answer of a response, "" if there is none.

    The first of: "final answer is $...$. I hope"; behind the last "boxed" (in braces, else up to a
    dollar sign); behind the last "he answer is" or a similar marker; the last number of the text.
    """
    _, hoped, rest = text.partition("final answer is $")
    if hoped and "$. I hope" in rest:
        answer = rest.partition("$. I hope")[0]
    elif "boxed" in text:
        answer = _after_box(text.rpartition("boxed")[2])
    else:
        marker = next((marker for marker in _MARKERS if marker in text), None)
        if marker is not None:
            answer = text.rpartition(marker)[2]
        else:
            numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
            answer = numbers[-1] if numbers else ""
    answer = re.sub(r"\n\s*", "", answer.strip())
    return answer.removeprefix(":").removesuffix(".").removesuffix("/").strip()


def _after_box(text: str) -> str:
    if not text.startswith("{"):
        return text.partition("$")[0]
    depth = 0
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:i]
    return text[1:]  # cut in the middle of the answer


def is_correct(
    truth: str,
    answer: str,
    symbolic: Callable[[str, str], bool],
    evaluated: Callable[[str], float | None],
) -> bool:
    """Whether an extracted answer passes.

    Args:
        truth: The true answer.
        answer: Of `extract`.
        symbolic: Decides when one of them is no number, the truth first.
        evaluated: The number that an expression comes to; None if it is no number.
    """
    if hendrycks_form(truth) == hendrycks_form(answer):
        return True
    expected, actual = number(truth), number(answer)
    if expected is not None and actual is not None:
        return any(_close(actual, value) for value in (expected, expected / 100, expected * 100))
    if symbolic(truth, answer):
        return True
    parts, others = _elements(truth), _elements(answer)
    if len(parts) > 1 and len(parts) == len(others) and _brackets(truth) == _brackets(answer):
        pairs = zip(parts, others, strict=True)
        return all(is_correct(part, other, symbolic, evaluated) for part, other in pairs)
    expected = evaluated(truth) if expected is None else expected
    actual = evaluated(answer) if actual is None else actual
    return expected is not None and actual is not None and _close(actual, expected)


def _close(actual: float, expected: float) -> bool:
    return math.isclose(actual, expected, rel_tol=TOLERANCE)


def _brackets(text: str) -> str:
    text = text.replace("\\left", "").replace("\\right", "").strip()
    return text[:1] + text[-1:]


def _elements(text: str) -> list[str]:
    """The elements of a tuple or interval; nothing for anything else."""
    inner = text.replace("\\left", "").replace("\\right", "").strip()
    if len(inner) < 2 or inner[0] not in "([" or inner[-1] not in ")]":
        return []
    return [element.strip() for element in inner[1:-1].split(",")]


def number(text: str) -> float | None:
    """A finite decimal number, with thousands commas, a dollar or a per cent sign; None if none."""
    text = re.sub(r"\\[,!]|\{,\}|,", "", text)
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "%").strip()
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return value / 100 if share else value

"""Arithmetic problems, and the three ways in which the embedded model answers them.

A base language model knows several ways to answer, mostly not the good one. Here they are

* ``work``: column by column with every carry spelled out, then the right answer in a box;
* ``guess``: an answer in a box at once, wrong whenever a carry or a borrow was needed;
* ``ramble``: some words about the numbers, and no answer at all.

Everything is a pure function of a `random.Random`. The operation and the operands of a problem
decide its split through a hash, so that two splits never share a calculation, whatever the
wording around it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

FAMILIES = ("add", "subtract", "multiply", "gain", "loss")
WORD_FAMILIES = ("gain", "loss")
SPLITS = ("corpus", "train", "test")
STYLES = ("work", "guess", "ramble")

# How often each style answers a problem of a family in the pre-training text. Guesses outnumber
# worked answers everywhere, so a reward for the format alone cannot find the better way. The shares
# of worked answers are graded, so that a change of habit spreads over the families one by one.
STYLE_SHARES = {
    "add": {"work": 0.34, "guess": 0.46, "ramble": 0.20},
    "subtract": {"work": 0.24, "guess": 0.50, "ramble": 0.26},
    "multiply": {"work": 0.12, "guess": 0.56, "ramble": 0.32},
    "gain": {"work": 0.05, "guess": 0.33, "ramble": 0.62},
    "loss": {"work": 0.03, "guess": 0.60, "ramble": 0.37},
}

_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "gain": "+", "loss": "-"}
_OPENERS = (("What is", "?"), ("Compute", "."), ("Find", "."))
_NAMES = ("Ada", "Ben", "Eva", "Leo", "Mia", "Noa", "Sam", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "pens", "shells", "stamps", "stones")
_GAINS = ("buys", "finds", "gets", "wins")
_LOSSES = ("gives away", "loses", "sells", "uses")
_MUSINGS = (
    "Numbers are everywhere.",
    "This reminds me of school.",
    "Some like it, some do not.",
    "It is hard to say.",
    "One could count.",
    "There may be more to it.",
)


@dataclass(frozen=True)
class ArithmeticProblem:
    """One calculation in words.

    Args:
        family: One of `FAMILIES`; bare calculations and stories differ in wording only.
        left: Left operand, two or three digits.
        right: Right operand; as many digits as `left`, or a single digit for a product.
        text: What the model is asked.
    """

    family: str
    left: int
    right: int
    text: str

    @property
    def sign(self) -> str:
        """The operation: "+", "-" or "*"."""
        return _SIGNS[self.family]

    @property
    def answer(self) -> str:
        """The right answer in decimal digits."""
        return _right_answer(self.sign, self.left, self.right)

    @property
    def needs_carry(self) -> bool:
        """Whether the guess, which forgets carries and borrows, is wrong."""
        return slip(self) != self.answer

    def as_row(self) -> dict[str, str]:
        """The problem as a row of a JSONL data set for `oneshot.rlvr`."""
        return {"problem": self.text, "answer": self.answer, "data_source": self.family}


def sample_problem(
    rng: random.Random, split: str, families: Sequence[str] = FAMILIES
) -> ArithmeticProblem:
    """Draws one problem of a split, families equally often.

    Args:
        rng: Source of randomness; its state is all that the problem depends on.
        split: One of `SPLITS`: "corpus" (pre-training text), "train" (candidates for the single
            training example) or "test" (unseen problems). No calculation is in two of them.
        families: The families to draw from.

    Returns:
        The problem. Products of equal operands and differences of zero do not occur.

    Raises:
        ValueError: Unknown split or family.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise ValueError(f"families: expected some of {FAMILIES}, got {tuple(families)!r}")
    while True:
        family = rng.choice(families)
        left, right = _sample_operands(rng, _SIGNS[family])
        if left != right and split_of(_SIGNS[family], left, right) == split:
            return ArithmeticProblem(family, left, right, _wording(rng, family, left, right))


def sample_problems(
    count: int, split: str, seed: int, families: Sequence[str] = FAMILIES
) -> list[ArithmeticProblem]:
    """Draws `count` problems with different texts; see `sample_problem`.

    Args:
        count: How many; there are far more than a million of them.
        split: One of `SPLITS`.
        seed: The list depends on nothing else.
        families: The families to draw from.

    Returns:
        The problems, in the order drawn.
    """
    rng = random.Random(seed)
    problems: dict[str, ArithmeticProblem] = {}
    while len(problems) < count:
        problem = sample_problem(rng, split, families)
        problems.setdefault(problem.text, problem)
    return list(problems.values())


def split_of(sign: str, left: int, right: int) -> str:
    """The split of a calculation: 81 % "corpus", 6 % "train", 13 % "test", fixed by a hash.

    Args:
        sign: "+", "-" or "*".
        left: Left operand.
        right: Right operand; a + b and b + a are the same calculation.

    Returns:
        One of `SPLITS`.
    """
    first, second = (left, right) if sign == "-" else sorted((left, right))
    bucket = hashlib.sha256(f"{first}{sign}{second}".encode()).digest()[0]
    return "test" if bucket < 32 else "train" if bucket < 48 else "corpus"


def work(problem: ArithmeticProblem) -> str:
    """The answer worked out column by column from the right: always correct."""
    columns = ",".join(columns_of(problem))
    calculation = f"{problem.left}{problem.sign}{problem.right}"
    return f"Step by step: {calculation}. {columns}. So \\boxed{{{problem.answer}}}."


def guess(problem: ArithmeticProblem) -> str:
    """The answer at once, all carries and borrows forgotten."""
    return f"The answer is \\boxed{{{slip(problem)}}}."


def ramble(problem: ArithmeticProblem, rng: random.Random) -> str:
    """Some words about the numbers, and no answer."""
    musings = " ".join(rng.sample(_MUSINGS, rng.randint(1, 3)))
    return f"Well, {problem.left} and {problem.right}. {musings}"


def slip(problem: ArithmeticProblem) -> str:
    """What comes out when carries are dropped and the smaller digit is always subtracted."""
    lefts = [int(digit) for digit in str(problem.left)]
    rights = [int(digit) for digit in str(problem.right)]
    if problem.sign == "+":
        columns = [a + b for a, b in zip(lefts, rights, strict=True)]
    elif problem.sign == "-":
        columns = [abs(a - b) for a, b in zip(lefts, rights, strict=True)]
    else:
        columns = [digit * problem.right for digit in lefts]
    return str(int(str(columns[0]) + "".join(str(column % 10) for column in columns[1:])))


def columns_of(problem: ArithmeticProblem) -> list[str]:
    """The column sums of `work`, such as "7+8=15" and then "3+4+1=8"; ones first."""
    lefts = [int(digit) for digit in reversed(str(problem.left))]
    rights = [int(digit) for digit in reversed(str(problem.right))]
    steps, carry = [], 0
    for place, digit in enumerate(lefts):
        if problem.sign == "*":
            step, value = f"{digit}*{problem.right}", digit * problem.right + carry
        elif problem.sign == "+":
            step, value = f"{digit}+{rights[place]}", digit + rights[place] + carry
        else:
            step, value = f"{digit}-{rights[place]}", digit - rights[place] - carry
        if carry:
            step += f"-{carry}" if problem.sign == "-" else f"+{carry}"
        if value < 0:  # borrow ten from the next column
            step, value, carry = f"{step}+10", value + 10, 1
        else:
            carry = value // 10
        steps.append(f"{step}={value}")
    return steps


def sample_style(
    problem: ArithmeticProblem,
    rng: random.Random,
    shares: dict[str, dict[str, float]] = STYLE_SHARES,
) -> str:
    """Draws one of `STYLES` with the shares that belong to the problem's family."""
    table = shares[problem.family]
    return rng.choices(STYLES, [table[style] for style in STYLES])[0]


def respond(problem: ArithmeticProblem, style: str, rng: random.Random) -> str:
    """Writes the response of one style.

    Args:
        problem: What was asked.
        style: One of `STYLES`.
        rng: Used by "ramble" alone.

    Returns:
        The response, without any end-of-turn token.

    Raises:
        ValueError: Unknown style.
    """
    if style == "work":
        return work(problem)
    if style == "guess":
        return guess(problem)
    if style == "ramble":
        return ramble(problem, rng)
    raise ValueError(f"style: expected one of {STYLES}, got {style!r}")


def style_of(response: str) -> str:
    """Tells by its first word in which of `STYLES` a response is written; "other" if in none."""
    first = (response.split(maxsplit=1) or [""])[0]
    return {"Step": "work", "The": "guess", "Well,": "ramble"}.get(first, "other")


def _right_answer(sign: str, left: int, right: int) -> str:
    if sign == "+":
        return str(left + right)
    return str(left - right if sign == "-" else left * right)


def _sample_operands(rng: random.Random, sign: str) -> tuple[int, int]:
    digits = 2 if rng.random() < 0.4 else 3
    low, high = 10 ** (digits - 1), 10**digits - 1
    left = rng.randint(low, high)
    if sign == "*":
        return left, rng.randint(2, 9)
    right = rng.randint(low, high)
    return (max(left, right), min(left, right)) if sign == "-" else (left, right)


def _wording(rng: random.Random, family: str, left: int, right: int) -> str:
    if family not in WORD_FAMILIES:
        opener, end = rng.choice(_OPENERS)
        return f"{opener} {left}{_SIGNS[family]}{right}{end}"
    name, things = rng.choice(_NAMES), rng.choice(_THINGS)
    if family == "gain":
        return f"{name} has {left} {things} and {rng.choice(_GAINS)} {right} more. How many now?"
    return f"{name} has {left} {things} and {rng.choice(_LOSSES)} {right}. How many are left?"

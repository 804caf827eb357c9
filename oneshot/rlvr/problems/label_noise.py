r"""Wrong labels on purpose, to measure training on answers that are not right.

Wang et al. 2025 (arXiv:2504.20571) relabel their single example (12.7, 4 or 9292725 for 12.8) and
flip 60 % or 90 % of the labels of the full set: "random ± within 10 and random sign change", and
numerator and denominator for fractions. Their code is not released. Here that reads:

* a number: plus or minus a random integer from 1 to 10, then the sign changes with probability 1/2;
* `\frac{a}{b}` or a/b: the same to a and b; the denominator stays positive;
* anything else with a number in it: its first number;
* no number: cannot be flipped and is not sampled.

A flipped label never equals the old one in value.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from oneshot.rlvr.problems.datafiles import Row, label_of, with_label
from oneshot.training.seeding import derive_seed

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"(-?)(?:\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|\\[dt]?frac(\d)(\d)|(\d+)/(\d+))")


def relabel(rows: Sequence[Row], label: str) -> list[Row]:
    """All rows with one given label."""
    return [with_label(row, label) for row in rows]


def flip_labels(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[int]]:
    """Rows with a fraction of their labels flipped.

    Args:
        rows: The training set.
        fraction: Share of all rows, rounded to a whole number of them.
        seed: Which ones, and how.

    Returns:
        All rows in their order, and the positions of the flipped ones.

    Raises:
        ValueError: A fraction outside [0, 1], or more than there are labels with a number.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    count = round(fraction * len(rows))
    labels = [label_of(row, f"row {i}") for i, row in enumerate(rows)]
    able = [i for i, label in enumerate(labels) if _NUMBER.search(label)]
    if count > len(able):
        raise ValueError(
            f"fraction {fraction} asks for {count} of {len(rows)} labels, but only {len(able)} "
            "have a number to change"
        )
    chosen = sorted(random.Random(derive_seed(seed, "flipped rows")).sample(able, count))
    result = list(rows)
    for i in chosen:
        generator = random.Random(derive_seed(seed, "flipped label", i))
        result[i] = with_label(rows[i], flip_label(labels[i], generator))
    return result, chosen


def flip_label(label: str, generator: random.Random) -> str:
    r"""One wrong label.

    Raises:
        ValueError: There is no number in it.
    """
    fraction = _FRACTION.fullmatch(label.strip())
    if fraction:
        sign, *parts = fraction.groups()
        top, bottom = (int(part) for part in parts if part is not None)
        old = Fraction(-top if sign else top, bottom)
        while True:
            new_top, new_bottom = _moved(top, generator), abs(_moved(bottom, generator))
            if new_bottom > 1 and Fraction(new_top, new_bottom) not in (old, 0):
                minus = "-" if new_top < 0 else ""
                return f"{minus}\\frac{{{abs(new_top)}}}{{{new_bottom}}}"
    match = _NUMBER.search(label)
    if match is None:
        raise ValueError(f"label {label!r} has no number to change")
    number = Decimal(match[0])
    while True:
        moved = number + generator.choice((-1, 1)) * generator.randint(1, 10)
        moved = -moved if generator.random() < 0.5 else moved
        if moved not in (number, 0):  # a lone sign change of 0 would change nothing
            return f"{label[: match.start()]}{moved}{label[match.end() :]}"


def _moved(number: int, generator: random.Random) -> int:
    moved = number + generator.choice((-1, 1)) * generator.randint(1, 10)
    return -moved if generator.random() < 0.5 else moved

r"""Numbers in scientific notation, which math-verify misreads: 4.5e33 as 4.5 times Euler's e.

A written decimal has an exact value, so two of them need no computer algebra: `value` reads
`4.5e33`, `4.5\times 10^{33}`, `10^{-5}`, `870,000,000` and `0.00001`.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\!|\\,)\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_POWER = r"10\s*\^\s*(?:\{\s*([-+]?\d{1,4})\s*\}|(\d))"
_TIMES = r"\s*(?:\\times|\\cdot|\*|×|·|⋅)\s*"
_UNIT = r"(?:(?:\\[,;: ]|~|\s)*\\(?:text|mathrm|textrm|rm)\s*\{[^{}]*\})?"
_WRITTEN = re.compile(
    rf"\$?\s*([-+]?)\s*(?:({_DIGITS})(?:[eE]([-+]?\d{{1,4}})|{_TIMES}{_POWER})?|{_POWER})"
    rf"{_UNIT}\s*\$?"
)
_E_NOTATION = re.compile(r"(?<![\w.\\}])((?:\d+(?:\.\d*)?|\.\d+))[eE]([-+]?\d{1,4})(?![\w.])")
LONGEST = 4000  # digits; Python refuses to read longer numbers
_NEARLY = Fraction(1, 10**6)


def value(text: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of a written decimal and whether it has a power of ten; None if none.

    A unit in `\text{}` or `\mathrm{}` behind the number is left out, as math-verify does.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits, *powers = match.groups()
    if len(digits or "") > LONGEST:
        return None
    power = next((int(p) for p in powers if p is not None), None)
    mantissa = Fraction(re.sub(r"[,{}!\\]", "", digits)) if digits else Fraction(1)
    if sign == "-":
        mantissa = -mantissa
    return mantissa * Fraction(10) ** (power or 0), power is not None


def equal(truth: str, answer: str) -> bool | None:
    """Whether two written decimals are equal; None where this module cannot tell.

    With a power of ten on one side the values decide. Without one only a difference is certain,
    of more than a millionth: math-verify rounds to six places, so that 1e-7 equals 2e-7.
    """
    first, second = value(truth), value(answer)
    if first is None or second is None:
        return None
    if first[1] or second[1]:
        return first[0] == second[0]
    difference = abs(first[0] - second[0])
    return False if difference > _NEARLY * max(abs(first[0]), abs(second[0])) else None


def readings(truth: str, answer: str) -> list[tuple[str, str]]:
    r"""The pairs of expressions that a truth and an answer can mean; one match is enough.

    e-notation becomes `\times 10^{}`. A truth such as `3e-2` can also be 3e minus 2, so that with
    a sign behind the e its own spelling stays a second reading.
    """
    pairs = [(as_latex(truth), as_latex(answer))]
    if any(match[2][0] in "+-" for match in _E_NOTATION.finditer(truth)):
        pairs.append((truth, answer))
    return pairs


def as_latex(text: str) -> str:
    r"""The text with `a \times 10^{n}` for each number in e-notation."""
    return _E_NOTATION.sub(lambda m: rf"{m[1]}\times 10^{{{int(m[2])}}}", text)

r"""The strict answer check of the code released with Wang et al. 2025 (arXiv:2504.20571).

An answer is right when it equals the truth (a) as a string after the normalisation of Hendrycks et
al. 2021 (MATH), or (b) after a second normalisation, element by element of a tuple or interval, as
a number or by sympy. It is stricter than math-verify: an unreduced fraction, a rounded decimal or a
word behind the number is wrong. Written anew from the description of the rules; where these have
quirks (only every other thousands comma of 8,996,734,080 is dropped) so has this.

sympy may take for ever on a hostile answer: this runs in grader processes with a time limit.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata

_UNITS = (
    "degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week",
    "month", "year", "foot", "feet", "inch", "yard",
)  # fmt: skip
_POWERS = {"million": "*10^6", "billion": "*10^9", "trillion": "*10^12"}
_BRACKETS = "()[]"
_SYMBOLS = {"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"}
_INTEGER = 1e-7  # a number this close to an integer is one


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` as the released code finds it.

    The last `\boxed` decides: without a brace right behind it, or without the closing one, there is
    no answer. Unlike `rewards.last_boxed`, escaped braces count.
    """
    start = text.rfind("\\boxed")
    begin = start + len("\\boxed{")
    if start < 0 or text[begin - 1 : begin] != "{":
        return None
    depth = 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return None


def is_correct(truth: str, answer: str) -> bool:
    """Whether an answer (the content of the box) equals the truth."""
    boxed = last_box(truth)
    truth = truth if boxed is None else boxed
    return hendrycks_form(truth) == hendrycks_form(answer) or _same_value(truth, answer)


def hendrycks_form(answer: str) -> str:
    """The string normalisation of the MATH data set: LaTeX spellings of one answer become one."""
    text = answer.strip()
    enclosed = re.fullmatch(r"\\text\{(.+?)\}", text)
    text = enclosed[1].strip() if enclosed else text
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
        ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = text.split("\\text{ ")[0]  # a unit on the right
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # "k = 5"
        text = sides[1]
    text = re.sub(r"\\sqrt(?!\{|$)(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = _braced_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    simple = re.fullmatch(r"(-?\d+)/(-?\d+)", text)
    if simple and all(str(int(part)) == part for part in simple.groups()):
        return f"\\frac{{{simple[1]}}}{{{simple[2]}}}"
    return text


def _braced_fractions(text: str) -> str:
    r"""\frac12 and \frac1{b} with braces around both parts; anything odd stays as it is."""
    pieces = text.split("\\frac")
    result = pieces[0]
    for piece in pieces[1:]:
        if piece.startswith("{"):
            result += "\\frac" + piece
        elif len(piece) < 2:
            return text
        elif piece[1] == "{":
            result += f"\\frac{{{piece[0]}}}{piece[1:]}"
        else:
            result += f"\\frac{{{piece[0]}}}{{{piece[1]}}}{piece[2:]}"
    return result


def _same_value(truth: str, answer: str) -> bool:
    first, second = _plain_form(truth), _plain_form(answer)
    if first == second:
        return True
    if not second:
        return False
    one, other = _elements(first), _elements(second)
    if len(one) != len(other):
        return False
    if len(one) > 1 and (first[0] != second[0] or first[-1] != second[-1]):
        return False
    return all(_same_element(a, b) for a, b in zip(one, other, strict=True))


def _same_element(truth: str, answer: str) -> bool:
    if _is_fraction(truth) and _is_fraction(answer):
        return truth == answer  # reduced fractions: only the literal one
    if _is_integer(truth) != _is_integer(answer):
        return False  # an integer must be written as one
    return _sympy_equal(truth, answer)


def _plain_form(text: str) -> str:
    """Lower-case ASCII arithmetic without units, commas, percent and dollar signs."""
    enclosed = re.fullmatch(r"\\text\{(.+?)\}", text)
    text = enclosed[1] if enclosed else text
    for symbol in ("\\%", "%", "\\$", "$"):
        text = text.replace(symbol, "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in _POWERS.items():
        text = text.replace(word, power)
    for unit in _UNITS:
        text = re.sub(rf"{unit}(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    number = _number(text)
    if number is not None and abs(number - round(number)) <= _INTEGER:
        text = str(round(number))
    if "\\" in text:
        text = _without_latex(text)
    text = re.sub("- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text)  # 7 3/4 is 7 + 3/4
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    return str(int(float(_without_commas(text)))) if _is_integer(text) else text


def _without_latex(text: str) -> str:
    from pylatexenc.latex2text import LatexNodes2Text

    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac")
    text = text.replace("\\frac", " \\frac")  # 7\frac{3}{4}
    with contextlib.suppress(Exception):  # what it cannot read stays as it is
        text = LatexNodes2Text().latex_to_text(text)
        for symbol, plain in _SYMBOLS.items():
            text = text.replace(symbol, plain)
    return text.strip()


def _without_commas(text: str) -> str:
    while True:
        shorter = re.sub(r"(\d)(,)(\d\d\d)($|\D)", r"\1\3\4", text)
        if shorter == text:
            return text
        text = shorter


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _is_integer(text: str) -> bool:
    number = _number(_without_commas(text))
    return number is not None and abs(number - round(number)) <= _INTEGER


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+.?/0*[1-9][0-9]*.?", text) is not None


def _elements(text: str) -> list[str]:
    """Elements of a tuple or interval; the text itself if it is none."""
    text = _without_commas(text)
    inner = text[1:-1]
    bracketed = len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS
    if bracketed and not any(bracket in inner for bracket in _BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [text] if text else []


def _sympy_equal(truth: str, answer: str) -> bool:
    difference = f"({truth})-({answer})"
    # Python reads full-width letters in a name as plain ones, and sympy's parser evaluates: what it
    # gets must be arithmetic, so names of attributes and dunders are counted as Python sees them.
    seen = unicodedata.normalize("NFKC", difference)
    if "__" in seen:
        return False
    letters = set(re.sub("sqrt|frac", "", seen)) & set("abcdefghijklmnopqrstuvwxyz")
    if len(letters) > 2 or "^{" in difference or "^(" in difference:
        return False
    if re.search(r"\^[0-9]+\^|\^[0-9][0-9]+", difference):
        return False
    from sympy import simplify
    from sympy.parsing import sympy_parser

    transformations = (
        *sympy_parser.standard_transformations,
        sympy_parser.implicit_multiplication_application,
    )
    try:
        parsed = sympy_parser.parse_expr(
            difference.replace("^", "**"), transformations=transformations
        )
        return bool(simplify(parsed) == 0)
    except Exception:  # not an expression: not equal
        return False

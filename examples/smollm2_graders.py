"""A grader of one's own: does the response name the answer?

    PYTHONPATH=examples oneshot rlvr eval --grader.function smollm2_graders:names_answer ...

It serves the evaluation on capitals, where nothing is boxed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def words(text: str) -> str:
    """Lower-case words without accents and punctuation, one blank around each."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return f" {' '.join(re.findall(r'[a-z0-9]+', plain.lower()))} "


def names_answer(responses: Sequence[str], problems: Sequence[Any]) -> list[float]:
    """1 for each response in which the words of the answer stand next to each other."""
    return [
        float(words(problem.answer) in words(response))
        for response, problem in zip(responses, problems, strict=True)
    ]

r"""The label of a multiple-choice answer, whether it stands alone or with the text of its choice.

Qwen's harness takes the last letter from A to E that stands alone, in any case; so the article of
"B. a cat" wins over the B. Here a label at the beginning wins, then one in brackets or behind
"choice" or "option", and only then the last one that stands alone.
"""

from __future__ import annotations

import re

_LABEL = "[A-Ea-e1-5]"
_PATTERNS = (
    rf"({_LABEL})",  # B
    rf"[(\[]\s*({_LABEL})\s*[)\]].*",  # (B) 12
    rf"({_LABEL})\s*[.):](?!\d).*",  # B. 12 and B) 12, but no number such as 2.5
    r"([A-E])\s*[-,=–—]\s*.*",  # B - 12
    r"([A-E])\s+.*",  # B 12
    rf".*[(\[]\s*({_LABEL})\s*[)\]]",  # 12 (B)
    rf".*\b(?:choice|option|answer)\s*(?:is\s*)?:?\s*({_LABEL})\b.*",
)
_COMMANDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox|bf|rm)\b")
_SPACES = re.compile(r"\\[,;:! ]|\\(?:quad|qquad)\b|[~{}$]|\*\*")


def label(text: str) -> str:
    """The label of an answer, upper case; an answer without one as it is, upper case."""
    plain = _SPACES.sub(" ", _COMMANDS.sub(" ", text)).strip().strip(".:/").strip()
    plain = " ".join(plain.split())
    for pattern in _PATTERNS:
        match = re.fullmatch(
            pattern, plain, re.DOTALL | (re.IGNORECASE if "choice" in pattern else 0)
        )
        if match:
            return match[1].upper()
    alone = re.findall(r"\b[A-E]\b", plain)
    return alone[-1] if alone else plain.upper()

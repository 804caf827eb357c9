"""What each source is worth: its votes against the final labels and against the other sources.

All numbers count tokens by entity type (B- and I- are one). They need no gold label; where the
final labels are wrong, so is the agreement with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids, LabelSpace, bio_to_io

SourceTable = dict[str, dict[str, Any]]


def analyse(
    labels: LabelSpace,
    sources: Sequence[str],
    sentences: Sequence[Sentence],
    final: Sequence[Ids],
) -> SourceTable:
    """Numbers of each source by its name, ready for JSON.

    Args:
        labels: The label space.
        sources: Names of the columns of the votes.
        sentences: With the votes.
        final: Label ids [T] of each sentence.

    Returns:
        For each source: votes, the number of tokens that it gives a type; share, of all tokens;
        overlap and conflict, the shares of its votes where another source gives a type, and gives
        another type; same_as, the sources whose votes are all equal to its own; by_type: votes,
        agreement (share of these votes whose token has this type in the end) and coverage (share
        of the tokens of this type in the end that it gives the type). A share of nothing is None.

    Raises:
        ValueError: Numbers of sentences or tokens differ.
    """
    lengths = [[len(x) for x in side] for side in (sentences, final)]
    if lengths[0] != lengths[1]:
        raise ValueError("final must have the labels of every token of the sentences")
    votes = np.maximum(bio_to_io(np.concatenate([s.votes for s in sentences])), 0)
    outcome = bio_to_io(np.concatenate(final))
    return {
        name: {
            **_against_others(votes, s),
            "same_as": [
                other
                for k, other in enumerate(sources)
                if k != s and votes[:, s].any() and (votes[:, k] == votes[:, s]).all()
            ],
            "by_type": {
                kind: _against_outcome(votes[:, s] == i, outcome == i)
                for i, kind in enumerate(labels.entity_types, start=1)
            },
        }
        for s, name in enumerate(sources)
    }


def _against_others(votes: Ids, s: int) -> dict[str, Any]:
    speaks = votes[:, s] > 0
    others = np.delete(votes, s, axis=1)[speaks]
    another = others > 0
    other_type = another & (others != votes[speaks, s, None])
    return {
        "votes": int(speaks.sum()),
        "share": float(speaks.mean()),
        "overlap": _mean(another.any(1)),
        "conflict": _mean(other_type.any(1)),
    }


def _against_outcome(said: npt.NDArray[np.bool_], outcome: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "votes": int(said.sum()),
        "agreement": _mean(outcome[said]),
        "coverage": _mean(said[outcome]),
    }


def _mean(values: Any) -> float | None:
    """The share of true values in an array; None of an empty one."""
    return float(np.mean(values)) if len(values) else None


def remarks(table: SourceTable) -> list[str]:
    """Sources without a vote, and those whose votes are equal."""
    lines = [
        f"source {name!r} never names an entity" for name, x in table.items() if not x["votes"]
    ]
    seen: set[str] = set()
    for name, numbers in table.items():
        if name not in seen and numbers["same_as"]:
            same = ", ".join(map(repr, numbers["same_as"]))
            lines.append(f"source {name!r} says the same as {same}: they count as independent")
            seen.update(numbers["same_as"])
    return lines


def markdown(table: SourceTable) -> str:
    """The numbers as a Markdown table, a row for each source and type that it names."""
    lines = [
        "| source | type | votes | agreement | coverage | overlap | conflict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, numbers in table.items():
        whole = [_percent(numbers[key]) for key in ("overlap", "conflict")]
        lines.append(f"| {name} | all | {numbers['votes']} | | | {' | '.join(whole)} |")
        for kind, x in numbers["by_type"].items():
            if x["votes"]:
                shares = [_percent(x[key]) for key in ("agreement", "coverage")]
                lines.append(f"| | {kind} | {x['votes']} | {' | '.join(shares)} | | |")
    return "\n".join([*lines, "", *(f"* {line}" for line in remarks(table))]) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"

"""Votes as observations for a model, and the rules of what silence means.

A model sees, for every token and source, a row over the L labels: one-hot at the label that the
source gives, or all 0 where it abstains (`oneshot.ops.combine_emissions` then leaves it out).
In the rows below, a token is *marked* if at least one source gives it a label other than O.

| rule | silence, token not marked | silence, token marked | O said, token marked |
|---|---|---|---|
| "vote_o" | one-hot O | one-hot O | one-hot O |
| "reference" | one-hot O | [0.01, 0.99 / L, ...] | [0.01, 0.99 / L, ...] |
| "abstain" | one-hot O | 0 | one-hot O (0 with `o_is_silence`) |

"reference" is what the authors' code calls observation normalisation; its row is almost flat and
does not sum to 1. "abstain" says the same thing exactly: a source that found nothing where another
one did has no opinion. Files of spans know no O, so for them `o_is_silence` makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import ABSTAIN, Ids

Rule = Literal["vote_o", "reference", "abstain"]

_SILENT_O = 0.01  # probability of O in the reference's row; the rest is spread over L labels


def resolve(votes: Ids, *, o_is_silence: bool = False) -> Ids:
    """Votes under the rule "abstain", as ids: silence is O where no source says otherwise.

    Args:
        votes: [..., S] label ids, `ABSTAIN` for silence; BIO or IO.
        o_is_silence: An O said counts as silence.

    Returns:
        [..., S]: `ABSTAIN` remains, or is put, only on marked tokens.
    """
    silent = votes <= 0 if o_is_silence else votes == ABSTAIN
    marked = (votes > 0).any(-1, keepdims=True)
    return np.where(silent, np.where(marked, ABSTAIN, 0), votes)


def observations(
    sentences: Sequence[Sentence],
    n_labels: int,
    rule: Rule = "abstain",
    *,
    o_is_silence: bool = False,
) -> list[torch.Tensor]:
    """One tensor for each sentence.

    Args:
        sentences: Their votes are read.
        n_labels: L.
        rule: What silence means, see above.
        o_is_silence: With rule "abstain", an O said counts as silence, too.

    Returns:
        float32 [T, S, L] each.

    Raises:
        ValueError: An unknown rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    return [torch.from_numpy(_rows(s.votes, n_labels, rule, o_is_silence)) for s in sentences]


def _rows(votes: Ids, n_labels: int, rule: Rule, o_is_silence: bool) -> npt.NDArray[np.float32]:
    abstain = rule == "abstain"
    ids = resolve(votes, o_is_silence=o_is_silence) if abstain else np.maximum(votes, 0)
    # id -1 picks the last row, the zeros
    result = np.eye(n_labels + 1, n_labels, dtype=np.float32)[ids]
    if rule == "reference":
        doubtful = (ids == 0) & (ids > 0).any(-1, keepdims=True)
        result[doubtful] = [_SILENT_O] + [(1 - _SILENT_O) / n_labels] * (n_labels - 1)
    return result

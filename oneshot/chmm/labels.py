"""Entity types as BIO label ids: spans to ids and back, BIO to IO and back.

Order of the ids: 0 is O, then for each entity type in order B (odd) and I (even), so L = 2 E + 1.
In IO the ids are 0 for O and 1 .. E for the types. `ABSTAIN` is a source that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

ABSTAIN = -1

Ids = npt.NDArray[np.int64]
Overlaps = Literal["error", "first", "longest"]


class Span(NamedTuple):
    """An entity: tokens start .. end - 1, and its type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class LabelSpace:
    """The BIO labels of some entity types.

    Attributes:
        entity_types: Names of the types; their order is the order of the label ids.

    Raises:
        ValueError: No type, an empty name or one that comes twice.
    """

    entity_types: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.entity_types or not all(self.entity_types):
            raise ValueError(f"entity_types must be names, at least one, got {self.entity_types!r}")
        if len(set(self.entity_types)) < len(self.entity_types):
            raise ValueError(f"entity_types must differ, got {list(self.entity_types)}")

    def __len__(self) -> int:
        return 2 * len(self.entity_types) + 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """("O", "B-x", "I-x", "B-y", ...), one for each id."""
        return ("O", *(f"{prefix}-{name}" for name in self.entity_types for prefix in "BI"))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each name in `names`."""
        return {name: i for i, name in enumerate(self.names)}

    def to_names(self, ids: Ids) -> list[str]:
        """Label names of ids 0 .. L - 1, such as seqeval wants them."""
        return [self.names[i] for i in ids.tolist()]

    def from_names(
        self, names: Sequence[str], stray_inside: Literal["error", "begin"] = "error"
    ) -> Ids:
        """Ids of BIO label names; "-" and "" are `ABSTAIN`.

        Args:
            names: One for each token.
            stray_inside: What an I- is that continues no entity of its type: an error, or
                "begin", the begin of one (as in files with IO labels).

        Raises:
            ValueError: An unknown name (the message has its position), or a stray I-.
        """
        ids = np.empty(len(names), np.int64)
        for t, name in enumerate(names):
            i = ABSTAIN if name in ("-", "") else self.ids.get(name)
            if i is None:
                raise ValueError(
                    f"token {t}: expected one of {', '.join(self.names)}, got {name!r}"
                )
            if is_inside(i) and (t == 0 or ids[t - 1] not in (i - 1, i)):
                if stray_inside == "error":
                    before = repr(names[t - 1]) if t else "the start"
                    raise ValueError(
                        f"token {t}: {name} must follow B-{name[2:]} or {name}, got {before} before"
                        ' it (stray_inside="begin" reads it as a B-)'
                    )
                i -= 1
            ids[t] = i
        return ids

    def from_spans(
        self,
        spans: Iterable[Sequence[object]],
        length: int,
        outside: int = 0,
        overlaps: Overlaps = "error",
    ) -> Ids:
        """Ids of spans over `length` tokens.

        Args:
            spans: (start, end, type), in any order.
            length: Number of tokens.
            outside: Id of a token that no span covers: 0, or `ABSTAIN`.
            overlaps: Of spans that share a token (identical ones too): an error, or keep the one
                that comes first in `spans`, or the longest one (of equals, the first).

        Raises:
            ValueError: Not a span, outside the tokens, of unknown type, or overlapping another.
        """
        checked = [(*self._checked(span, length), span) for span in spans]
        if overlaps == "longest":
            checked.sort(key=lambda x: x[0] - x[1])  # stable: of equals, the first
        ids = np.full(length, outside, np.int64)
        covered = np.zeros(length, bool)
        for start, end, begin, span in checked:
            if covered[start:end].any():
                if overlaps == "error":
                    raise ValueError(
                        f"span {list(span)} overlaps another one of the same source (data.overlaps:"
                        " first or longest keeps one of them)"
                    )
                continue
            covered[start:end] = True
            ids[start:end] = begin + 1
            ids[start] = begin
        return ids

    def _checked(self, span: object, length: int) -> tuple[int, int, int]:
        if not isinstance(span, list | tuple) or len(span) != 3:
            raise ValueError(f"expected a span [start, end, type], got {span!r}")
        start, end, name = span
        if not all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end)):
            raise ValueError(f"span {list(span)}: start and end must be whole numbers")
        if not 0 <= start < end <= length:
            raise ValueError(f"span {list(span)}: expected 0 <= start < end <= {length} (tokens)")
        if name not in self.entity_types:
            raise ValueError(
                f"span {list(span)}: expected a type of {', '.join(self.entity_types)}, "
                f"got {name!r}"
            )
        return start, end, self.ids[f"B-{name}"]

    def to_spans(self, ids: Ids) -> list[Span]:
        """Entities of BIO ids in strict IOB2: an I- that continues no entity of its type is O."""
        spans = []
        start = None
        padded = [*ids.tolist(), 0]
        for t, i in enumerate(padded):
            if start is not None and i != (padded[start] + 1):
                spans.append(Span(start, t, self.entity_types[padded[start] // 2]))
                start = None
            if is_begin(i):
                start = t
        return spans

    @cached_property
    def legal_start(self) -> npt.NDArray[np.bool_]:
        """[L]: whether a sentence may begin with the label (not with an I-)."""
        return np.array([not is_inside(i) for i in range(len(self))])

    @cached_property
    def legal_transitions(self) -> npt.NDArray[np.bool_]:
        """[L, L]: whether label j may follow label i; I-x only after B-x or I-x."""
        return np.array(
            [
                [not is_inside(j) or i in (j - 1, j) for j in range(len(self))]
                for i in range(len(self))
            ]
        )


def is_begin(label: int) -> bool:
    """Whether the id is that of a B-."""
    return label > 0 and label % 2 == 1


def is_inside(label: int) -> bool:
    """Whether the id is that of an I-."""
    return label > 0 and label % 2 == 0


def bio_to_io(ids: Ids) -> Ids:
    """IO ids of BIO ids, of any shape; O and `ABSTAIN` stay."""
    return np.where(ids > 0, (ids + 1) // 2, ids)


def io_to_bio(ids: Ids) -> Ids:
    """BIO ids of the IO ids of one sentence [T].

    A type is I- right after the same type and else B- (the rule of the WRENCH benchmark):
    neighbouring entities of one type become one.
    """
    before = np.concatenate([[0], ids[:-1]])
    return np.where(ids > 0, 2 * ids - (ids != before), ids)


def io_to_bio_posteriors(posteriors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """BIO probabilities [T, L] of IO probabilities [T, E + 1], as `io_to_bio` would share them out.

    A token's mass of a type goes to I- with the probability of that type at the token before, and
    else to B-.
    """
    types = posteriors[:, 1:]
    # The mass of everything else is a sum: 1 - p would be 0 for a p that rounds to 1.
    others = [np.delete(posteriors, k + 1, axis=1).sum(1) for k in range(types.shape[1])]
    result = np.zeros((len(posteriors), 2 * types.shape[1] + 1))
    result[:, 0] = posteriors[:, 0]
    result[0, 1::2] = types[0]
    result[1:, 1::2] = types[1:] * np.stack(others, 1)[:-1]
    result[1:, 2::2] = types[1:] * types[:-1]
    return result

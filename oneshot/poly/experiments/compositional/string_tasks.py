"""String tasks composed of skills: each is a selection, an order, an alphabet and a decoration.

"head-sort-mirror-gap" takes the first three letters of a word, sorts them, mirrors the alphabet and
puts an x between them: hbdgeaf -> hbd -> bdh -> igc -> ixgxc. Tasks that share skills can help each
other, and a new composition of known skills can be recognised from a few examples.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from oneshot.training.seeding import derive_seed

LETTERS = "abcdefghij"
SHORTEST, LONGEST = 5, 7
SPLITS = 4
"""Number of splits. No base model sees the held-out tasks of any, so one serves every split."""
HELD_OUT = 6
"""Held-out tasks of each split."""
MINIMUM_SKILLS = 3
"""Skills of a held-out task that differ from the default (all, copy, same, plain)."""

Skill = Callable[[str], str]


def _alphabet(letters: str) -> Skill:
    table = str.maketrans(LETTERS, letters)
    return lambda word: word.translate(table)


def _swap_pairs(word: str) -> str:
    """Swaps neighbours: abcde becomes badce."""
    return "".join(word[i : i + 2][::-1] for i in range(0, len(word), 2))


SELECTION: Mapping[str, Skill] = {
    "all": lambda word: word,
    "head": lambda word: word[:3],
    "tail": lambda word: word[-3:],
    "odd": lambda word: word[::2],
}
ORDER: Mapping[str, Skill] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "rotate": lambda word: word[1:] + word[:1],
    "swap": _swap_pairs,
    "sort": lambda word: "".join(sorted(word)),
}
ALPHABET: Mapping[str, Skill] = {
    "same": _alphabet(LETTERS),
    "next": _alphabet(LETTERS[1:] + LETTERS[:1]),
    "mirror": _alphabet(LETTERS[::-1]),
    "number": _alphabet(string.digits),
    "far": _alphabet("klmnopqrst"),
}
# Decorations are letters, because exact match ignores punctuation.
DECORATION: Mapping[str, Skill] = {
    "plain": lambda word: word,
    "double": lambda word: word + word,
    "gap": lambda word: "x".join(word),
    "wrap": lambda word: f"y{word}z",
}
CODES = dict(
    zip((*SELECTION, *ORDER, *ALPHABET, *DECORATION), string.ascii_uppercase, strict=False)
)
"""One capital for each skill, by which prompts of the base model name it."""


class Composition(NamedTuple):
    """One task: the names of its four skills, applied from left to right."""

    selection: str
    order: str
    alphabet: str
    decoration: str

    @property
    def name(self) -> str:
        """Name of the task, such as "head-sort-mirror-gap"."""
        return "-".join(self)

    @property
    def code(self) -> str:
        """What the prompts of the base model call it: four capitals."""
        return "".join(CODES[skill] for skill in self)

    def apply(self, word: str) -> str:
        """The answer of the task to a word over `LETTERS`."""
        word = ORDER[self.order](SELECTION[self.selection](word))
        return DECORATION[self.decoration](ALPHABET[self.alphabet](word))

    def shared(self, other: Composition) -> int:
        """Number of skills that two tasks have in common, 0 to 4."""
        return sum(mine == theirs for mine, theirs in zip(self, other, strict=True))


COMPOSITIONS = tuple(
    Composition(*skills) for skills in itertools.product(SELECTION, ORDER, ALPHABET, DECORATION)
)
DEFAULT = COMPOSITIONS[0]


@dataclass(frozen=True)
class Split:
    """Tasks of one split; no composition is in both.

    Attributes:
        train: Training tasks.
        held_out: Tasks for few-shot adaptation, unseen by base model and inventories.
    """

    train: tuple[Composition, ...]
    held_out: tuple[Composition, ...]


def reserved(seed: int) -> tuple[Composition, ...]:
    """Held-out tasks of all splits, `HELD_OUT` for each, in the order of the splits."""
    candidates = [c for c in COMPOSITIONS if c.shared(DEFAULT) <= len(c) - MINIMUM_SKILLS]
    draw = random.Random(derive_seed(seed, "held out"))
    return tuple(draw.sample(candidates, SPLITS * HELD_OUT))


def seen(seed: int) -> tuple[Composition, ...]:
    """Compositions on which base models are trained: all but the reserved ones."""
    held_out = set(reserved(seed))
    return tuple(c for c in COMPOSITIONS if c not in held_out)


def make_split(seed: int, split: int, tasks: int) -> Split:
    """Draws the tasks of one split.

    Args:
        seed: Seed of the tasks.
        split: Number of the split, 1 to `SPLITS`.
        tasks: Training tasks.

    Raises:
        ValueError: An unknown split, or more training tasks than compositions.
    """
    if not 1 <= split <= SPLITS:
        raise ValueError(f"split must be in 1 .. {SPLITS}, got {split}")
    pool = seen(seed)
    if not 0 < tasks <= len(pool):
        raise ValueError(f"tasks must be in 1 .. {len(pool)}, got {tasks}")
    train = random.Random(derive_seed(seed, "train", split)).sample(pool, tasks)
    held_out = reserved(seed)[(split - 1) * HELD_OUT : split * HELD_OUT]
    return Split(tuple(train), held_out)


def few_shot_rows(split: Split, strings: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows for `oneshot.poly.data`: distinct words of every task and their answers.

    The definition of a task is an opaque tag of two letters, for prompts that identify the task
    without naming a skill.

    Args:
        split: The tasks.
        strings: Words of each task.
        seed: Seed of words and tags.
    """
    tasks = (*split.train, *split.held_out)
    pairs = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    tags = random.Random(derive_seed(seed, "tags")).sample(pairs, len(tasks))
    for task, tag in zip(tasks, tags, strict=True):
        draw = random.Random(derive_seed(seed, "words", task.name))
        for word in draw_words(draw, strings):
            answer = task.apply(word)
            yield {"task": task.name, "definition": tag, "input": word, "output": answer}


def instruction_rows(
    compositions: Sequence[Composition], strings: int, unnamed: float, seed: int
) -> Iterator[tuple[str, str]]:
    """Prompts that name their skills, and the answers.

    Args:
        compositions: Compositions, drawn uniformly for each row.
        strings: Number of rows.
        unnamed: Share of prompts with "?" in place of the skills.
        seed: Seed of everything.
    """
    draw = random.Random(derive_seed(seed, "instructions"))
    for word in draw_words(draw, strings):
        composition = draw.choice(compositions)
        skills = "?" if draw.random() < unnamed else composition.code
        yield f"{skills}:{word}=", composition.apply(word)


def draw_words(draw: random.Random, count: int) -> list[str]:
    """Distinct words over `LETTERS`, of `SHORTEST` to `LONGEST` letters."""
    words: dict[str, None] = {}
    while len(words) < count:
        length = draw.randint(SHORTEST, LONGEST)
        words["".join(draw.choices(LETTERS, k=length))] = None
    return list(words)

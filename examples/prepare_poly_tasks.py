"""Writes the data of docs/poly.md: tasks on short strings, and two that share their skills.

tasks.jsonl has six tasks (copy, reverse, repeat, first, last, double every letter), new.jsonl two
more (reverse and double, last twice). A row is {"task", "definition", "input", "output"}.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

LETTERS = "abcdefgh"
TRAINING: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "reverse": lambda word: word[::-1],
    "repeat": lambda word: word + word,
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
    "double": lambda word: "".join(letter * 2 for letter in word),
}
NEW: dict[str, Callable[[str], str]] = {
    "reverse_double": lambda word: TRAINING["double"](word[::-1]),
    "last_twice": lambda word: word[-1] * 2,
}


def write(path: Path, tasks: dict[str, Callable[[str], str]], rows: int, seed: int) -> None:
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for name, transform in tasks.items():
            words = {"".join(rng.choices(LETTERS, k=rng.randint(3, 6))) for _ in range(2 * rows)}
            for word in sorted(words)[:rows]:
                row = {
                    "task": name,
                    "definition": name,
                    "input": word,
                    "output": transform(word),
                }
                file.write(json.dumps(row) + "\n")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("data/strings"))
parser.add_argument("--rows", type=int, default=200, help="of each task")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
arguments.folder.mkdir(parents=True, exist_ok=True)
write(arguments.folder / "tasks.jsonl", TRAINING, arguments.rows, arguments.seed)
write(arguments.folder / "new.jsonl", NEW, arguments.rows, arguments.seed + 1)

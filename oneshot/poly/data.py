"""Tasks of text in, text out: reading them, splitting them, drawing batches.

Two forms: a folder of Super-NaturalInstructions files, and JSON lines. A malformed row is an error
that names file and row. Repeated inputs of a task are dropped, so that no test example is trained
on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from oneshot.poly.settings import DataConfig
from oneshot.runs.jsonl import read_jsonl
from oneshot.runs.seeding import derive_seed


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        prompt: What the model reads.
        references: Right answers; training uses the first.
        options: Answers to rank, for classification.
    """

    prompt: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task and its split.

    Attributes:
        name: Its name.
        train: Training examples.
        dev: Examples to select by.
        test: Examples to report.
    """

    name: str
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class RawTask:
    """A task as it was read: `pool` without the test examples, and these."""

    name: str
    pool: tuple[Example, ...]
    test: tuple[Example, ...]

    def split(self, train: int | None, dev: int, seed: int) -> Task:
        """Draws training and dev examples from the pool.

        Args:
            train: Training examples; None takes all that the dev examples leave.
            dev: Dev examples.
            seed: Decides which ones.

        Raises:
            ValueError: The pool is too small.
        """
        needed = (1 if train is None else train) + dev
        if len(self.pool) < needed:
            raise ValueError(
                f"task {self.name}: {needed} training and dev examples are asked for, "
                f"{len(self.pool)} are there besides the test"
            )
        order = list(self.pool)
        random.Random(derive_seed(seed, "split", self.name)).shuffle(order)
        end = len(order) - dev if train is None else train
        return Task(self.name, tuple(order[:end]), tuple(order[end : end + dev]), self.test)


def read_tasks(config: DataConfig) -> list[RawTask]:
    """The tasks that the config names, in its order (all of them: by name).

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: A malformed row, an unknown task, or one with too few examples.
    """
    path = Path(config.path)
    if path.is_dir():
        files = sorted(path.glob("task*.json"))
        names = list(dict.fromkeys(_file_task(file) for file in files))
        chosen = _choose(config.tasks, names, path)
        raw = [_superni(name, [f for f in files if _file_task(f) == name]) for name in chosen]
    elif path.is_file():
        rows = _jsonl(path)
        raw = [(name, *rows[name]) for name in _choose(config.tasks, sorted(rows), path)]
    else:
        raise FileNotFoundError(f"data.path: {path} is neither a folder nor a file")
    return [_task(name, pool, test, config) for name, pool, test in raw]


Row = dict[str, Any]
"""{definition, input, output: list, options: list}."""


def _task(name: str, pool: list[Row], test: list[Row], config: DataConfig) -> RawTask:
    seen: set[str] = set()
    unique: list[list[Row]] = []
    for rows in (test, pool):
        fresh = []
        for row in rows:
            if row["input"] not in seen:
                seen.add(row["input"])
                fresh.append(row)
        unique.append(fresh)
    test, pool = unique
    if not test:
        test, pool = pool[: config.test_examples], pool[config.test_examples :]
    test = test[: config.test_examples]
    if not pool:
        raise ValueError(
            f"task {name}: nothing is left for training after {len(test)} test examples"
        )
    answers = {row["output"][0] for row in pool}
    options = tuple(sorted(answers)) if len(answers) <= config.max_options else ()
    return RawTask(
        name,
        tuple(_example(row, options, config.prompt) for row in pool),
        tuple(_example(row, options, config.prompt) for row in test),
    )


def _example(row: Row, options: tuple[str, ...], prompt: str) -> Example:
    text = prompt.replace("{definition}", row["definition"]).replace("{input}", row["input"])
    return Example(text, tuple(row["output"]), tuple(row["options"]) or options)


def _file_task(file: Path) -> str:
    return file.name.removesuffix(".json").removesuffix(".train").removesuffix(".test")


def _choose(asked: Sequence[str], names: Sequence[str], path: Path) -> list[str]:
    if not names:
        raise ValueError(f"{path}: no tasks there")
    chosen = []
    for word in asked or names:
        matching = [n for n in names if n == word] or [n for n in names if n.startswith(word)]
        if len(matching) != 1:
            raise ValueError(
                f"data.tasks: {word!r} must name one task of {path}, it names "
                f"{', '.join(matching) or 'none'}"
            )
        chosen.append(matching[0])
    return chosen


def _superni(name: str, files: Iterable[Path]) -> tuple[str, list[Row], list[Row]]:
    """Instances of one task: those of a .test file apart, if there is one."""
    pool: list[Row] = []
    test: list[Row] = []
    for file in files:
        with file.open(encoding="utf-8") as stream:
            content = json.load(stream)
        for key in ("Definition", "Instances"):
            if key not in content:
                raise ValueError(f"{file}: no {key!r}: not a file of Super-NaturalInstructions")
        definition = content["Definition"]
        if isinstance(definition, list):
            definition = definition[0]
        rows = test if file.name.endswith(".test.json") else pool
        for i, instance in enumerate(content["Instances"]):
            row = {**instance, "definition": definition}
            rows.append(_checked(row, f"{file}, instance {i}"))
    return name, pool, test


def _jsonl(path: Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """Rows by task; a row with "split": "test" is set apart."""
    found: dict[str, tuple[list[Row], list[Row]]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, line {number}"
        if not isinstance(row.get("task"), str):
            raise ValueError(f"{where}: no task (a text)")
        pool, test = found.setdefault(row["task"], ([], []))
        (test if row.get("split") == "test" else pool).append(_checked(row, where))
    return found


def _checked(row: Row, where: str) -> Row:
    output = row.get("output")
    output = [output] if isinstance(output, str) else output
    if not isinstance(row.get("input"), str):
        raise ValueError(f"{where}: input must be a text, got {row.get('input')!r}")
    if not isinstance(output, list) or not output or not all(isinstance(o, str) for o in output):
        raise ValueError(f"{where}: output must be a text or several, got {row.get('output')!r}")
    return {
        "input": row["input"],
        "output": output,
        "definition": row.get("definition", ""),
        "options": row.get("options", []),
    }


def draw_batch(
    tasks: Sequence[Task],
    size: int,
    step: int,
    seed: int,
    sampling: Literal["uniform", "proportional"],
) -> list[tuple[int, Example]]:
    """The examples of one step with the numbers of their tasks, drawn with replacement.

    Depends on seed and step alone.
    """
    draw = random.Random(derive_seed(seed, "batch", step))
    weights = [len(t.train) if sampling == "proportional" else 1 for t in tasks]
    chosen = draw.choices(range(len(tasks)), weights, k=size)
    return [(t, draw.choice(tasks[t].train)) for t in chosen]


def without(task: RawTask, too_long: set[str]) -> RawTask:
    """The task without the examples of these prompts."""
    keep = [tuple(e for e in part if e.prompt not in too_long) for part in (task.pool, task.test)]
    return replace(task, pool=keep[0], test=keep[1])

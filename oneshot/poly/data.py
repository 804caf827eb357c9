"""Tasks of text in, text out: reading them, splitting them, drawing batches.

Two formats: a folder of Super-NaturalInstructions files, and JSON lines. A malformed row is an
error that names file and row, the last row included. Repeated inputs of a task are dropped, so that
no test example is trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from oneshot.poly.config import DataConfig
from oneshot.training.seeding import derive_seed


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
                f"task {self.name}: {needed} training and dev examples are requested, "
                f"{len(self.pool)} remain besides the test"
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


SPLITS = ("train", "test")
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
    """The task of a file; `.train` and `.test` say which part of it.

    Raises:
        ValueError: Another part, such as ".dev".
    """
    name, _, part = file.name.removesuffix(".json").partition(".")
    if part not in ("", *SPLITS):
        raise ValueError(
            f"{file}: a file of a task must end with .json, .train.json or .test.json, got "
            f".{part}.json; dev examples are drawn from the training ones (data.dev_examples)"
        )
    return name


def _choose(requested: Sequence[str], names: Sequence[str], path: Path) -> list[str]:
    if not names:
        raise ValueError(f"{path}: no tasks in it")
    chosen = []
    for word in requested or names:
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
        content = _parsed(_text(file), str(file))
        for key, kinds in (("Definition", (str, list)), ("Instances", list)):
            if not isinstance(content.get(key), kinds):
                raise ValueError(
                    f"{file}: no {key!r} of the right type, got {content.get(key)!r:.60}: not a "
                    f"file of Super-NaturalInstructions"
                )
        definition = content["Definition"]
        if isinstance(definition, list):
            definition = definition[0] if definition else ""
        rows = test if file.name.endswith(".test.json") else pool
        for i, instance in enumerate(content["Instances"]):
            where = f"{file}, instance {i}"
            rows.append(_checked({**_object(instance, where), "definition": definition}, where))
    return name, pool, test


def _jsonl(path: Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """Rows by task; a row with "split": "test" is set apart."""
    tasks: dict[str, tuple[list[Row], list[Row]]] = {}
    for where, row in _lines(path):
        if not isinstance(row.get("task"), str):
            raise ValueError(f"{where}: no task (a text)")
        split = row.get("split", "train")
        if split not in SPLITS:
            raise ValueError(
                f'{where}: split must be "train" or "test", got {split!r}; dev examples are drawn '
                f"from the training rows (data.dev_examples)"
            )
        pool, test = tasks.setdefault(row["task"], ([], []))
        (test if split == "test" else pool).append(_checked(row, where))
    return tasks


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON-lines file, and where each is; blank lines are skipped."""
    # Not str.splitlines: a JSON text may hold U+2028 and its like.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parsed(line, where)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: must be UTF-8, got byte {error.start} ({error.reason})"
        ) from None


def _parsed(text: str, where: str) -> Row:
    try:
        return _object(json.loads(text), where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: damaged ({error})") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object, got {value!r:.60}")
    return value


def _checked(row: Row, where: str) -> Row:
    output = row.get("output")
    output = [output] if isinstance(output, str) else output
    if not isinstance(row.get("input"), str):
        raise ValueError(f"{where}: input must be a text, got {row.get('input')!r}")
    if not output or not _texts(output):
        raise ValueError(f"{where}: output must be a text or several, got {row.get('output')!r}")
    definition, options = row.get("definition"), row.get("options")
    if definition is not None and not isinstance(definition, str):
        raise ValueError(f"{where}: definition must be a text, got {definition!r:.60}")
    if options is not None and not _texts(options):
        raise ValueError(f"{where}: options must be a list of texts, got {options!r:.60}")
    if options and not set(output) & set(options):
        raise ValueError(
            f"{where}: options must hold an output, got {options!r:.60} and outputs {output!r:.60}"
        )
    return {
        "input": row["input"],
        "output": output,
        "definition": definition or "",
        "options": options or [],
    }


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


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
    if sampling not in ("uniform", "proportional"):
        raise ValueError(f'sampling must be "uniform" or "proportional", got {sampling!r}')
    draw = random.Random(derive_seed(seed, "batch", step))
    weights = [len(t.train) if sampling == "proportional" else 1 for t in tasks]
    chosen = draw.choices(range(len(tasks)), weights, k=size)
    return [(t, draw.choice(tasks[t].train)) for t in chosen]


def without(task: RawTask, too_long: set[str]) -> RawTask:
    """The task without the examples of these prompts."""
    keep = [tuple(e for e in part if e.prompt not in too_long) for part in (task.pool, task.test)]
    return replace(task, pool=keep[0], test=keep[1])

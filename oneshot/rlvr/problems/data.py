"""Problems with a verifiable answer: reading them, and making batches of them.

Three file formats: Parquet with verl's columns (the training files of Wang et al. 2025), JSON lines
and JSON lists (rows of `{problem|question|prompt, answer}` or of verl's columns), and datasets of
the Hugging Face hub by name. A malformed row is an error that names the file and the row.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from oneshot.training.seeding import derive_seed

Item = TypeVar("Item")

PROBLEM_KEYS = ("problem", "question", "prompt")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        messages: The conversation that asks it, as `{"role", "content"}` dictionaries.
        answer: The verified answer, as text.
        data_source: Name of the set it comes from.
        index: Position in its set (verl: `extra_info.index`).
        extra: Every other field of the row.
    """

    messages: list[dict[str, str]]
    answer: str
    data_source: str = ""
    index: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def read_problems(
    path: str | Path,
    *,
    problem_key: str | None = None,
    answer_key: str | None = None,
    empty_answers: Literal["error", "keep"] = "error",
    limit: int | None = None,
) -> list[Problem]:
    """Reads problems from a file or a hub dataset.

    Args:
        path: `.parquet`, `.jsonl` or `.json` file, or "hf:<name>[/<config>]:<split>", where
            <name> is "org/set" or a local folder of data files (then no config).
        problem_key: Field of the problem; a text with braces is a format over the row's fields.
            Default: the first of problem, question, prompt that the row has.
        answer_key: Field of the answer. Default: "answer". An answer with "####" (GSM8K's worked
            solutions) counts from behind the last one.
        empty_answers: "keep" accepts a problem whose answer is empty: no response to it can be
            correct. (Row 266 of the paper's dsr_sub.parquet is one.)
        limit: Only the first `limit` problems.

    Returns:
        The problems in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown suffix, no problem at all, or a malformed row (file and row named).
    """
    rows = source_rows(path)
    problems: list[Problem] = []
    for number, row in rows:
        if limit is not None and len(problems) == limit:
            break
        try:
            problems.append(_problem(row, len(problems), problem_key, answer_key))
            if not problems[-1].answer and empty_answers == "error":
                raise ValueError("the answer is empty (data.empty_answers: keep accepts that)")
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
    if not problems:
        raise ValueError(f"{path}: no problems in it")
    return problems


def repeat_to_batch(problems: Sequence[Item], size: int) -> list[Item]:
    """Repeats problems (or anything) in turn up to `size`: 1 -> 128 copies, 2 -> 64 each.

    With `size` problems or more, they are returned as they are. Each copy is a row of its own, so
    its responses form a group of their own (Wang et al. 2025: 128 copies are 128 groups).
    """
    if not problems:
        raise ValueError("problems is empty")
    if len(problems) >= size:
        return list(problems)
    return [problems[i % len(problems)] for i in range(size)]


def batch_for_step(problems: Sequence[Item], size: int, step: int, seed: int) -> list[Item]:
    """The batch of one step: epochs in an order shuffled by `seed`, last incomplete batch dropped.

    Args:
        problems: The training set, repeated to at least `size` rows.
        size: Rows of a batch.
        step: Step counted from 1.
        seed: Seed of the order.
    """
    batches_per_epoch = len(problems) // size
    epoch, batch = divmod(step - 1, batches_per_epoch)
    order = list(range(len(problems)))
    random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
    return [problems[i] for i in order[batch * size : (batch + 1) * size]]


def source_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file or of a hub dataset ("hf:..."), with their numbers from 1."""
    return _hub_rows(str(path)) if str(path).startswith("hf:") else file_rows(Path(path))


def file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a .parquet, .jsonl or .json file, with their numbers from 1."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of problems")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse_json(line, f"{path}, row {number}")
    elif path.suffix == ".json":
        rows = _parse_json(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(rows, list):
            raise ValueError(f"{path}: expected a list of problems, got {type(rows).__name__}")
        yield from enumerate(rows, start=1)
    else:
        raise ValueError(f"{path}: expected .parquet, .jsonl or .json, got {path.suffix!r}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs `pip install pyarrow`") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from None
    yield from enumerate(table.to_pylist(), start=1)


def _hub_rows(name: str) -> Iterator[tuple[int, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name}: hub datasets need `pip install datasets`") from error
    source, separator, split = name.removeprefix("hf:").rpartition(":")
    if not separator or not source or not split:
        raise ValueError(f"{name}: expected hf:<name>[/<config>]:<split>")
    parts = source.split("/")
    if Path(source).exists() or len(parts) <= 2:
        dataset = datasets.load_dataset(source, split=split)
    else:
        dataset = datasets.load_dataset("/".join(parts[:2]), "/".join(parts[2:]), split=split)
    yield from enumerate(dataset, start=1)


def _problem(row: Any, position: int, problem_key: str | None, answer_key: str | None) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    verl = isinstance(row.get("reward_model"), Mapping)
    if verl and answer_key is None:
        answer: Any = row["reward_model"].get("ground_truth")
        used = {"reward_model", "prompt", "extra_info", "data_source"}
    else:
        key = answer_key or "answer"
        if key not in row:
            raise ValueError(f"no field {key!r}; the row has {sorted(row)}")
        answer = row[key]
        used = {key}
    content, content_keys = _content(row, problem_key)
    info = row.get("extra_info")
    if not isinstance(info, Mapping):
        info = {}
    extra = {key: value for key, value in row.items() if key not in used | content_keys}
    extra.update({key: value for key, value in info.items() if key != "index"})
    return Problem(
        messages=_messages(content),
        answer=_answer(answer),
        data_source=str(row.get("data_source") or ""),
        index=row_index(row, position),
        extra=extra,
    )


def row_index(row: Mapping[str, Any], position: int) -> int:
    """The index of a row: `extra_info.index` as a whole number or its digits, else its position.

    Raises:
        ValueError: The index is something else.
    """
    info = row.get("extra_info")
    index = info.get("index") if isinstance(info, Mapping) else None
    if index is None:
        return position
    if isinstance(index, str) and index.strip().isdecimal():
        return int(index)
    if isinstance(index, float) and index.is_integer():  # a Parquet column with missing values
        return int(index)
    if isinstance(index, bool) or not isinstance(index, int):
        raise ValueError(
            f"extra_info.index must be a whole number, got {index!r}; remove it to count the rows"
        )
    return index


def check_indices(problems: Sequence[Problem]) -> None:
    """Refuses different problems of one index: their accuracies would be mixed up.

    Copies of one problem may share it: the paper's files hold 128 copies of each example.

    Raises:
        ValueError: Two problems of one index differ in question or answer.
    """
    first: dict[int, int] = {}
    for i, problem in enumerate(problems):
        other = problems[first.setdefault(problem.index, i)]
        if (other.messages, other.answer) != (problem.messages, problem.answer):
            raise ValueError(
                f"problems {first[problem.index] + 1} and {i + 1} both have the index "
                f"{problem.index} (extra_info.index) and differ; number the rows anew, or remove "
                "the field to count them"
            )


def _content(row: Mapping[str, Any], key: str | None) -> tuple[Any, set[str]]:
    if key is None:
        name = next((name for name in PROBLEM_KEYS if name in row), None)
        if name is None:
            raise ValueError(f"no field problem, question or prompt; the row has {sorted(row)}")
        return row[name], {name}
    names = {name for _, name, _, _ in string.Formatter().parse(key) if name} or {key}
    missing = sorted(names - set(row))
    if missing:
        raise ValueError(f"no field {missing[0]!r}; the row has {sorted(row)}")
    return (key.format_map(row) if "{" in key else row[key]), names


def _messages(content: Any) -> list[dict[str, str]]:
    if isinstance(content, str):
        content = [{"role": "user", "content": content}]
    if not isinstance(content, list) or not content:
        raise ValueError(f"expected a text or a list of messages, got {content!r}")
    messages = []
    for message in content:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message needs role and content, got {message!r}")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"a message needs text, got {message['content']!r}")
        messages.append({"role": str(message["role"]), "content": message["content"]})
    return messages


def _answer(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return answer_text(value).rpartition("####")[2].strip()


def answer_text(value: Any) -> str:
    """An answer as text; a number without an exponent, which graders read as Euler's e.

    Raises:
        ValueError: It is neither text nor a number, or not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected an answer as text or number, got {value!r}")
    if str(value).strip().lower().lstrip("+-") in ("nan", "inf"):
        raise ValueError(f"expected a finite number as the answer, got {value!r}")
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)

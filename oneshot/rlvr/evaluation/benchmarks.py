"""The benchmarks of Wang et al. 2025 (arXiv:2504.20571): sources and their rows.

Local files lie as in the released evaluation folder, <folder>/<name>/test.jsonl; without a folder
they come from the hub. Tables of the ARC benchmarks are in the paper, their prompt is not: ours is
`choice_prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot.rlvr.problems.data import Problem, answer_text, source_rows
from oneshot.rlvr.rewards.reward import last_boxed


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: Its name, and that of its local folder.
        hub: "hf:" source for when there is no local folder.
        answer: "answer", "solution" (last box in the worked solution; "answer" in files that have
            no solution) or "final_answer" (a list of one).
        samples: Responses per problem in the paper: 1 is greedy, 8 is avg@8 at temperature 0.6.
        choices: Multiple choice: the answer is the label of a choice.
    """

    name: str
    hub: str
    answer: str = "answer"
    samples: int = 1
    choices: bool = False


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("math500", "hf:HuggingFaceH4/MATH-500:test", "solution"),
        Benchmark("aime24", "hf:HuggingFaceH4/aime_2024:train", samples=8),
        Benchmark("amc23", "hf:math-ai/amc23:test", samples=8),
        Benchmark("minerva_math", "hf:math-ai/minervamath:test", "solution"),
        Benchmark(
            "olympiadbench", "hf:Hothan/OlympiadBench/OE_TO_maths_en_COMP:train", "final_answer"
        ),
        Benchmark("aime25", "hf:math-ai/aime25:test", samples=8),
        Benchmark("arc_easy", "hf:allenai/ai2_arc/ARC-Easy:test", choices=True),
        Benchmark("arc_challenge", "hf:allenai/ai2_arc/ARC-Challenge:test", choices=True),
    )
}
PAPER_SIX = ("math500", "aime24", "amc23", "minerva_math", "olympiadbench", "aime25")


def parse_names(names: Sequence[str]) -> list[tuple[Benchmark, int]]:
    """Benchmarks and responses per problem of names such as "aime24" or "aime24@64".

    "six" stands for the six of the paper's average.

    Raises:
        ValueError: An unknown or repeated name, or a number of responses that is not positive.
    """
    result: list[tuple[Benchmark, int]] = []
    expanded = [n for name in names for n in (PAPER_SIX if name == "six" else (name,))]
    for entry in expanded:
        name, at, count = entry.partition("@")
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            raise ValueError(f"benchmarks must be six or some of {known}, got {name!r}")
        if at and (not count.isdigit() or int(count) < 1):
            raise ValueError(f"benchmarks: expected <name>@<responses per problem>, got {entry!r}")
        if any(known.name == name for known, _ in result):
            raise ValueError(f"benchmarks: {name!r} is there twice")
        result.append((BENCHMARKS[name], int(count) if at else BENCHMARKS[name].samples))
    return result


def read_benchmark(
    benchmark: Benchmark, folder: str | Path | None = None, limit: int | None = None
) -> list[Problem]:
    """The problems of a benchmark.

    Args:
        benchmark: Which one.
        folder: Holds <name>/test.jsonl; None: the hub.
        limit: Only the first problems.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row that does not fit (file and row named).
    """
    source = benchmark.hub if folder is None else str(Path(folder) / benchmark.name / "test.jsonl")
    problems: list[Problem] = []
    for number, row in source_rows(source):
        if limit is not None and len(problems) == limit:
            break
        try:
            problems.append(_problem(benchmark, row, len(problems)))
        except ValueError as error:
            raise ValueError(f"{source}, row {number}: {error}") from None
    if not problems:
        raise ValueError(f"{source}: no problems in it")
    return problems


def choice_prompt(question: str, labels: Sequence[str], texts: Sequence[str]) -> str:
    """A multiple-choice question with its choices, a line each, and what to answer."""
    lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    instruction = "Put the letter of the right choice into \\boxed{}."
    return "\n".join([question, *lines, instruction])


def _problem(benchmark: Benchmark, row: Any, position: int) -> Problem:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    text = _field(row, "problem", "question")
    if benchmark.choices:
        choices = _field(row, "choices")
        answer, labels = str(_field(row, "answerKey")), list(choices["label"])
        if answer not in labels:
            raise ValueError(f"answerKey must be one of {labels}, got {answer!r}")
        text = choice_prompt(text, labels, choices["text"])
    else:
        answer = _answer(benchmark, row)
    known = {"problem", "question", "choices", "solution"}
    return Problem(
        messages=[{"role": "user", "content": str(text)}],
        answer=answer,
        data_source=benchmark.name,
        index=position,
        extra={key: value for key, value in row.items() if key not in known},
    )


def _answer(benchmark: Benchmark, row: Mapping[str, Any]) -> str:
    if benchmark.answer == "solution" and isinstance(row.get("solution"), str):
        boxed = last_boxed(row["solution"])
        if boxed is None:
            raise ValueError("the solution has no boxed answer")
        value: Any = boxed
    elif benchmark.answer == "final_answer":
        value = _field(row, "final_answer")
        value = str(value[0] if isinstance(value, list) and value else value).replace("$", "")
    else:
        value = _field(row, "answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # AMC: 27.0
    answer = answer_text(value).strip()
    if not answer:
        raise ValueError("the answer is empty")
    return answer


def _field(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"no field {' or '.join(names)}; the row has {sorted(row)}")

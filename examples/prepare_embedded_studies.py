"""Writes the data of configs/studies/embedded.yaml: a set, then what a history selects of it.

    python examples/prepare_embedded_studies.py sets
    oneshot rlvr train --config configs/studies/embedded.yaml --run.output runs/studies_history \
        --data.path data/embedded_studies/full.jsonl --rollout.batch_size 16
    python examples/prepare_embedded_studies.py choose --history runs/studies_history/accuracy.jsonl

`sets` writes the unseen problems (those of the demo) and the whole set: 60 three-digit problems
of all families, and 4 sums of four digits, which the model never saw and cannot work out. `choose`
ranks the set by historical variance and writes the files that
`oneshot/rlvr/studies/definitions.py` names:
- train.jsonl               the example of rank 1;
- shots_2, shots_4          the first 2 and 4;
- example_middle            the middle rank;
- example_low               of those solved in at least 3 of 4 responses, the one of least variance;
- example_unsolved          the first of those never solved;
- example_short             no rank: a story of two digits, where the set has three;
- full_60, full_90          the whole set with that share of its labels flipped;
- label_near, _guess, _wild the example of rank 1 with the label 1 too high, with what a guess that
                            forgets carries gives, and with the paper's 9292725.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from oneshot.embedded import problems
from oneshot.rlvr.demo import UNSEEN_SEED
from oneshot.rlvr.problems.datafiles import Row, read_rows, write_rows
from oneshot.rlvr.problems.label_noise import flip_labels, relabel
from oneshot.rlvr.problems.selection import Ranked, rank, read_history, rows_by_index, shots

SET_SIZE, SET_SEED = 60, 2027
WILD = "9292725"
SHORT = problems.ArithmeticProblem(
    "gain", 68, 74, "Sam has 68 books and buys 74 more. How many now?"
)
TOO_HARD = ((4827, 3968), (6159, 2784), (3476, 5947), (2985, 4638))


def whole_set() -> list[problems.ArithmeticProblem]:
    """The problems of full.jsonl, in its order."""
    hard = [problems.ArithmeticProblem("add", a, b, f"What is {a}+{b}?") for a, b in TOO_HARD]
    drawn = problems.sample_problems(3 * SET_SIZE, "train", SET_SEED)
    return [problem for problem in drawn if problem.left > 99][:SET_SIZE] + hard


def make_sets(options: argparse.Namespace) -> None:
    rows: list[Row] = [
        {**problem.as_row(), "extra_info": {"index": i}} for i, problem in enumerate(whole_set())
    ]
    write_rows(options.folder / "full.jsonl", rows)
    unseen = problems.sample_problems(256, "test", UNSEEN_SEED)
    write_rows(options.folder / "unseen.jsonl", [dict(problem.as_row()) for problem in unseen])


def chosen_ranks(ranking: list[Ranked]) -> dict[str, list[int]]:
    """Which ranks each file holds."""
    solved = [entry.rank for entry in ranking if entry.mean >= 0.75]
    unsolved = [entry.rank for entry in ranking if entry.mean == 0]
    if not solved or not unsolved:
        raise ValueError("the history has no problem that is mostly solved, or none never solved")
    return {
        "train": [1],
        "shots_2": [1, 2],
        "shots_4": [1, 2, 3, 4],
        "example_middle": [(len(ranking) + 1) // 2],
        "example_low": solved[-1:],
        "example_unsolved": unsolved[:1],
    }


def choose(options: argparse.Namespace) -> None:
    rows = read_rows(options.folder / "full.jsonl")
    ranking = rank(read_history(options.history))
    for name, ranks in chosen_ranks(ranking).items():
        chosen = shots(rows_by_index(rows), ranking, ranks, len(ranks))
        write_rows(options.folder / f"{name}.jsonl", chosen)
        for number, row in zip(ranks, chosen, strict=True):
            entry = ranking[number - 1]
            print(
                f"{name}: rank {number}, {row['problem']!r} ({row['answer']}), "
                f"std {entry.std:.3f}, mean {entry.mean:.3f}"
            )
    example = whole_set()[ranking[0].index]
    labels = {"near": str(int(example.answer) + 1), "guess": problems.slip(example), "wild": WILD}
    first = read_rows(options.folder / "train.jsonl")
    for name, label in labels.items():
        write_rows(options.folder / f"label_{name}.jsonl", relabel(first, label))
        print(f"label_{name}: {label}")
    write_rows(options.folder / "example_short.jsonl", [dict(SHORT.as_row())])
    for percent in (60, 90):
        noisy, flipped = flip_labels(rows, percent / 100, seed=0)
        write_rows(options.folder / f"full_{percent}.jsonl", noisy)
        print(f"full_{percent}: {len(flipped)} of {len(rows)} labels flipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("data/embedded_studies"))
    commands = parser.add_subparsers(required=True)
    commands.add_parser("sets", help="write the sets").set_defaults(run=make_sets)
    select = commands.add_parser("choose", help="write what the ranking selects")
    select.add_argument("--history", type=Path, required=True, help="accuracy.jsonl of a run on it")
    select.set_defaults(run=choose)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

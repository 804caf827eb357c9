"""Makes the files of configs/smollm2_oneshot.yaml from your copies of three public data sets.

    python examples/prepare_smollm2_oneshot.py sets --mawps singleop.jsonl --svamp test.jsonl \
        --capitals task1146_country_capital.json
    oneshot rlvr eval ...            (8 samples per candidate, see docs/results/smollm2_oneshot.md)
    python examples/prepare_smollm2_oneshot.py choose

`sets` writes, in data/smollm2_oneshot, JSON lines of {problem, answer, data_source, index}:
- evaluation.jsonl  256 MAWPS single-operation problems held out (the order is that of a hash of the
                    text, so it is the same whatever the order of your copy);
- candidates.jsonl  40 of the others, from which the training problem is chosen;
- svamp.jsonl       200 SVAMP problems, also by hash;
- capitals.jsonl    every country of Super-NaturalInstructions task 1146.

`choose` reads the sampled accuracy of each candidate and writes the one nearest to 1/2 (the first
of equals) to train.jsonl: a group of 8 responses to it is most often mixed, which is when GRPO
learns. The evaluation problems play no part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

HELD_OUT = 256
CANDIDATES = 40
SVAMP_PROBLEMS = 200


def normalized(text: str) -> str:
    """Letters and digits alone, so that spacing and case do not hide a repeated problem."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def by_hash(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Distinct problems in the order of the SHA-256 of their normalized text."""
    distinct = {normalized(row["problem"]): row for row in reversed(rows)}
    order = sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    return [distinct[text] for text in order]


def number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def mawps(path: Path) -> list[dict[str, Any]]:
    """MAWPS rows {input, target}; the blank before punctuation goes."""
    return [
        {
            "problem": re.sub(r"\s+([.,?!'])", r"\1", row["input"]).strip(),
            "answer": number(row["target"]),
            "data_source": "mawps/singleop",
        }
        for row in read_jsonl(path)
    ]


def svamp(path: Path) -> list[dict[str, Any]]:
    """SVAMP rows {Body, Question, Answer}; a body without its full stop gets one."""
    rows = []
    for row in read_jsonl(path):
        body = row["Body"].strip()
        body += "" if body[-1] in ".?!" else "."
        problem = f"{body} {row['Question'].strip()}"
        rows.append({"problem": problem, "answer": number(row["Answer"]), "data_source": "svamp"})
    return rows


def capitals(path: Path) -> list[dict[str, Any]]:
    """The instances of Super-NaturalInstructions task 1146, asked as a question."""
    rows = []
    for instance in json.loads(path.read_text(encoding="utf-8"))["Instances"]:
        output = instance["output"]
        rows.append(
            {
                "problem": f"What is the capital of {instance['input']}?",
                "answer": output[0] if isinstance(output, list) else output,
                "data_source": "superni/task1146",
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    numbered = [{**row, "extra_info": {"index": i}} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in numbered), encoding="utf-8")
    print(f"{path}: {len(rows)} problems")


def make_sets(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    problems = by_hash(mawps(options.mawps))
    write(options.folder / "evaluation.jsonl", problems[:HELD_OUT])
    write(options.folder / "candidates.jsonl", problems[HELD_OUT : HELD_OUT + CANDIDATES])
    write(options.folder / "svamp.jsonl", by_hash(svamp(options.svamp))[:SVAMP_PROBLEMS])
    write(options.folder / "capitals.jsonl", by_hash(capitals(options.capitals)))


def choose(options: argparse.Namespace) -> None:
    candidates = read_jsonl(options.folder / "candidates.jsonl")
    records = json.loads((options.folder / "candidates.json").read_text())["records"]
    accuracy = [sum(r["scores"]) / len(r["scores"]) for r in records]
    chosen = min(range(len(candidates)), key=lambda i: (abs(accuracy[i] - 0.5), i))
    print(f"candidate {chosen}, sampled accuracy {accuracy[chosen]:.3f}")
    write(options.folder / "train.jsonl", [candidates[chosen]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("data/smollm2_oneshot"))
    commands = parser.add_subparsers(required=True)
    sets = commands.add_parser("sets", help="write the sets")
    for name in ("mawps", "svamp", "capitals"):
        sets.add_argument(f"--{name}", type=Path, required=True)
    sets.set_defaults(run=make_sets)
    commands.add_parser("choose", help="write the training problem").set_defaults(run=choose)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

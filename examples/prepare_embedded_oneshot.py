"""Writes the data of configs/oneshot_embedded.yaml: one training problem and 256 unseen ones."""

import argparse
from pathlib import Path

from oneshot.embedded.problems import sample_problems
from oneshot.rlvr.demo import UNSEEN_SEED, training_problem, write_rows

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, default=Path("data/embedded"))
parser.add_argument("--seed", type=int, default=0, help="which training problem")
arguments = parser.parse_args()
arguments.folder.mkdir(parents=True, exist_ok=True)
write_rows(arguments.folder / "train.jsonl", [training_problem(arguments.seed)])
write_rows(arguments.folder / "unseen.jsonl", sample_problems(256, "test", UNSEEN_SEED))

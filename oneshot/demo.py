"""The command `oneshot demo`: every training layer on a small scale, one after the other.

<output>/rlvr/    one-example RLVR on the embedded model, beside two control rewards
<output>/chmm/    vote, HMM and conditional HMM on a generated corpus with unreliable sources
<output>/poly/    a shared LoRA and routed adapters on tasks that are mixtures of known skills
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("rlvr", "chmm", "poly")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts, prints their tables; returns the exit status.

    Args:
        argv: Command-line arguments; by default those of the process.

    Raises:
        FileExistsError: The output folder exists.
    """
    parser = argparse.ArgumentParser(
        prog="oneshot demo",
        description="Every training layer on a small scale: one-example RLVR, weak NER, routing.",
    )
    parser.add_argument("--part", choices=PARTS, help="only this part (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of data and runs (default 0)")
    parser.add_argument("--steps", type=int, default=64, help="RLVR steps per arm (default 64)")
    parser.add_argument("--output", help="new folder (default runs/demo-<date>-<time>)")
    parser.add_argument("--json", metavar="FILE", help="write the metrics to this file, too")
    parsed = parser.parse_args(argv)
    folder = Path(parsed.output or time.strftime("runs/demo-%Y%m%d-%H%M%S"))
    folder.mkdir(parents=True)
    result: dict[str, Any] = {}
    for part in PARTS if parsed.part is None else (parsed.part,):
        if part == "rlvr":
            result[part] = _rlvr(parsed.seed, parsed.steps, folder / part)
        elif part == "chmm":
            result[part] = _chmm(parsed.seed, folder / part)
        else:
            result[part] = _poly(parsed.seed, folder / part)
    print(f"results are in {folder}")
    if parsed.json:
        Path(parsed.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _rlvr(seed: int, steps: int, folder: Path) -> dict[str, Any]:
    from oneshot.rlvr import demo
    from oneshot.training.command_line import hide_loading_bars

    hide_loading_bars()
    result = demo.run_demo(seed, output=folder, steps=steps)
    demo.print_table(result)
    return result


def _chmm(seed: int, folder: Path) -> dict[str, Any]:
    from oneshot.chmm import demo

    result = demo.run_demo(seed, output=folder)
    demo.print_table(result)
    return result


def _poly(seed: int, folder: Path) -> dict[str, Any]:
    from oneshot.poly import demo

    result = demo.run_demo(seed, output=folder)
    demo.print_table(result)
    return result

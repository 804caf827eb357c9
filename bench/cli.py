"""The ``oneshot bench`` command."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

import torch

from oneshot.bench.registry import SUITES

HERE = Path(__file__).resolve().parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oneshot bench",
        description="Verify every provider of every op against float64, time those who pass in "
        "interleaved rounds, and write the results as JSON, Markdown and PNG. "
        "`oneshot bench render FILE` makes the table and the plot of an earlier run.",
    )
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="cpu",
        help="cpu; gpu: GPU shapes and peers, timed by CUDA events; gpu-rehearsal: its operations "
        "at tiny sizes on the CPU (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="small operations, short rounds")
    parser.add_argument("--family", action="append", help="only this family (repeatable)")
    parser.add_argument("--select", metavar="EXPR", help="only operations that match (pytest -k)")
    parser.add_argument(
        "--seconds", type=float, help="time per provider and operation (default: 2, quick 0.2)"
    )
    parser.add_argument("--threads", type=int, help="threads of torch and of the kernels")
    parser.add_argument(
        "--verify-only", action="store_true", help="check every provider's numbers without timing"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench/results"),
        help="folder for results, one folder per machine inside (default: %(default)s)",
    )
    return parser


def _render(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oneshot bench render", description="Markdown table and PNG beside a result file."
    )
    parser.add_argument("file", type=Path, help="JSON written by `oneshot bench`")
    arguments = parser.parse_args(argv)
    if not arguments.file.is_file():
        parser.error(f"file must be an existing result file, got {arguments.file}")
    from oneshot.bench.render import render

    for path in render(arguments.file):
        print(path)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    import pytest

    seconds = arguments.seconds or (0.2 if arguments.quick else 2.0)
    options = [
        # An empty configuration instead of the user's, and no cache folder.
        *("-c", os.devnull, "--rootdir", str(HERE), "-p", "no:cacheprovider", "-q"),
        *("--benchmark-quiet", f"--benchmark-max-time={seconds}"),
        f"--benchmark-min-rounds={3 if arguments.quick else 5}",
        "--benchmark-disable" if arguments.verify_only else "--benchmark-only",
        *("--output", str(arguments.output.resolve())),
        *("--suite", arguments.suite),
    ]
    options += ["--quick"] if arguments.quick else []
    for family in arguments.family or []:
        options += ["--family", family]
    if arguments.select:
        options += ["-k", arguments.select]
    return int(pytest.main([*options, str(HERE / "test_suite.py")]))


def main(argv: list[str]) -> int:
    """Run the suite, or render a result file.

    Args:
        argv: Arguments after ``oneshot bench``.

    Returns:
        Exit status: 0 when every provider that could be loaded computed the right thing.
    """
    if argv[:1] == ["render"]:
        return _render(argv[1:])
    parser = _parser()
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("pytest_benchmark") is None:
        parser.error("needs pytest-benchmark: pip install '.[bench]'")
    if arguments.threads is not None:
        if arguments.threads < 1:
            parser.error(f"--threads must be at least 1, got {arguments.threads}")
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if SUITES[arguments.suite].device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--suite gpu needs a GPU, and torch {torch.__version__} sees none")
    return _run(arguments)

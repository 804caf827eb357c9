"""`make gpu` on a machine without a GPU: a clear refusal, and a dry run of all steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "on_gpu.py"


def run(*options):
    environment = {k: v for k, v in os.environ.items() if k != "ONESHOT_PARITY"}
    return subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True, env=environment
    )


def test_without_a_gpu_it_says_so_and_fails():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run()
    assert done.returncode == 2
    assert f"make gpu needs a GPU: torch {torch.__version__}" in done.stderr


def test_a_dry_run_goes_through_the_steps():
    done = run("--dry-run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert "== parity, collected: status 0" in said
    assert "== compute-sanitizer: skipped, a dry run" in said
    assert "15 passed" in said
    assert said.endswith("ok     parity, collected\nok     benchmarks\n")

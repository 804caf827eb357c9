"""Runs the tests of each family in a process in which Triton interprets its kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FAMILIES = sorted(
    path.stem.removeprefix("test_")
    for path in HERE.glob("test_*.py")
    if path.stem not in ("test_interpreted", "test_compiled", "test_dispatch")
)


def run(family, markers):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = (sys.executable, "-m", "pytest", "-q", "-x", "-m", markers)
    done = subprocess.run(
        [*command, str(HERE / f"test_{family}.py")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("family", FAMILIES)
def test_interpreted_kernels_match_the_reference(family):
    run(family, "not gpu_free")


@pytest.mark.gpu_free
@pytest.mark.parametrize("family", FAMILIES)
def test_interpreted_kernels_match_the_reference_in_full(family):
    run(family, "gpu_free")

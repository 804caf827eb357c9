"""Runs the tests of the families in a process in which Triton interprets its kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_interpreted_kernels_keep_their_promises():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = (sys.executable, "-m", "pytest", "-q", "-x", str(HERE))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

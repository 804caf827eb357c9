"""The parity suite once more on each backend that needs a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import backends
import pytest

OTHERS = [name for name in backends.BACKENDS if name != "native"]


def run(name, markers):
    reason = backends.missing(name)
    if reason is not None:
        pytest.skip(reason)
    environment = {
        variable: value
        for variable, value in os.environ.items()
        if variable not in ("ONESHOT_DISABLE_NATIVE", "ONESHOT_CPU_ISA")
    }
    environment |= backends.BACKENDS[name] | {"ONESHOT_PARITY": name}
    command = (sys.executable, "-m", "pytest", "-q", "-x", "-m", markers, Path(__file__).parent)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", OTHERS)
def test_backend(name):
    run(name, "not gpu_free")


@pytest.mark.gpu_free
@pytest.mark.parametrize("name", OTHERS)
def test_backend_in_full(name):
    run(name, "gpu_free")

"""Who computes the ops in a process of the parity suite: ONESHOT_PARITY names one of BACKENDS.

"native" is what the process has anyway: the CPU kernels at the instruction-set level of
ONESHOT_CPU_ISA, or the reference with ONESHOT_DISABLE_NATIVE=1. The others are tried by
`test_parity_backends.py`, a process each.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
NAME = os.environ.get("ONESHOT_PARITY", "native")
# Backend -> what its process needs in the environment.
BACKENDS = {
    "native": {},
    "triton": {"TRITON_INTERPRET": "1", "ONESHOT_DISABLE_NATIVE": "1"},
    "emulated": {"ONESHOT_DISABLE_NATIVE": "1"},
    # The tests fill fresh memory with NaN by torch's deterministic mode; cuBLAS then wants this.
    "cuda": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    "cuda-triton": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "ONESHOT_DISABLE_NATIVE": "1"},
}
SEEDS = itertools.count()
DEVICE = "cuda" if NAME.startswith("cuda") else "cpu"


def missing(name: str) -> str | None:
    """Why a backend cannot run here; None if it can."""
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no GPU"
        from oneshot._load import cuda_library

        if name == "cuda" and cuda_library()[0] is None:
            return f"the CUDA library is {cuda_library()[1]}"
    if name.endswith("triton") and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if name == "emulated" and shutil.which("g++") is None:
        return "the CUDA emulator needs g++"
    return None


def _emulate() -> set[str]:
    """Register tests/cuda_emulation/launchers as the kernels of CPU tensors."""
    from oneshot.ops.backends import references, use

    sys.path.insert(0, str(TESTS / "cuda_emulation"))
    launchers = {}
    for path in sorted((TESTS / "cuda_emulation" / "launchers").glob("*.py")):
        module = importlib.import_module(f"launchers.{path.stem}")
        for name in set(vars(module)) & set(references()):
            launchers[name] = _reordered(getattr(module, name))
    return set(use(launchers))


def _reordered(launcher):
    """Threads run in another order at each call."""
    if "seed" not in inspect.signature(launcher).parameters:
        return launcher
    return lambda *arguments: launcher(*arguments, seed=next(SEEDS))


def start() -> set[str]:
    """Make this process compute with the backend NAME; returns the ops that it computes."""
    if NAME not in BACKENDS:
        raise ValueError(f"ONESHOT_PARITY must be one of {[*BACKENDS]}, got {NAME!r}")
    for variable, value in BACKENDS[NAME].items():
        if os.environ.get(variable) != value:
            raise ValueError(f"the backend {NAME} needs {variable}={value} in the environment")
    reason = missing(NAME)
    if reason is not None:
        pytest.exit(f"the backend {NAME} cannot run: {reason}", returncode=2)
    if NAME == "triton":
        sys.path.insert(0, str(TESTS / "triton"))
        import interpreter  # noqa: F401
    from oneshot.ops.backends import references, use

    if NAME == "triton":
        return set(use("triton"))
    if NAME == "emulated":
        return _emulate()
    if NAME == "native":
        return set(references())
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name for name in references() if has(f"oneshot::{name}", "CUDA")}


def why_not(name: str, dtype: torch.dtype) -> str | None:
    """Why this backend leaves an op at this dtype to the reference; None if it computes it."""
    if name not in SERVED:
        return f"{NAME} has no kernel of {name}"
    if NAME.endswith("triton") and dtype == torch.float64:
        from oneshot.triton_kernels import FAMILY

        if not FAMILY[name].startswith("hmm"):
            return f"{NAME} leaves float64 to the reference"
    return None


SERVED = start()

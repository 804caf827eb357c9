"""`make gpu`: everything that needs a GPU, on the GPU of this machine.

Builds the CUDA library for it with the installed CUDA build of torch, runs the parity suite with
the compiled kernels and with Triton, a small selection under compute-sanitizer where that is
installed, and the GPU benchmarks. `--dry-run` needs no GPU: it builds nothing, collects what would
run, and runs the benchmarks on tiny CPU tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# A few of each family: a sanitizer makes kernels tens of times slower.
SANITIZED = (
    "test_sizes_and_dtypes or test_every_switch or test_gae or test_routed_lora or test_forms"
)
TOOLS = ("memcheck", "racecheck")
EVERYTHING = "gpu_free or not gpu_free"
# The tests fill fresh memory with NaN by torch's deterministic mode, for which cuBLAS wants this.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def run(title: str, command: list[object], **environment: str) -> bool:
    """Run one step beneath a heading; whether it succeeded."""
    words = " ".join(map(str, command))
    print(
        f"\n== {title}\n{' '.join(f'{k}={v}' for k, v in environment.items())} {words}", flush=True
    )
    start = time.monotonic()
    done = subprocess.run([*map(str, command)], cwd=ROOT, env={**os.environ, **environment})
    print(f"== {title}: status {done.returncode}, {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def parity(markers: str, *options: str) -> list[object]:
    """The parity suite as a command."""
    return [sys.executable, "-m", "pytest", "-q", "-m", markers, *options, "tests/parity"]


def side_by_side() -> list[str]:
    """Options that share the tests among the cores, where pytest-xdist is installed.

    Triton compiles hundreds of kernels for the suite: two minutes of sixteen cores.
    """
    return ["-n", "auto"] if importlib.util.find_spec("xdist") else []


def build() -> bool:
    """_C_cuda for the GPU that is here."""
    if shutil.which("nvcc") is None:
        print("\n== build: no nvcc, so the compiled kernels are left out")
        return False
    major, minor = torch.cuda.get_device_capability()
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-build-isolation",
        "--no-deps",
        "-e",
        ".",
    ]
    return run("build", install, ONESHOT_BUILD_CUDA="ON", TORCH_CUDA_ARCH_LIST=f"{major}.{minor}")


def main() -> int:
    """Run all steps, and say at the end which failed.

    Returns:
        0 if all succeeded, 1 if one failed, 2 without a GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="what needs no GPU, on the CPU")
    dry_run = parser.parse_args().dry_run
    if not dry_run and not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "sees no GPU"
        print(f"make gpu needs a GPU: torch {torch.__version__} {why}", file=sys.stderr)
        return 2
    steps: dict[str, bool] = {}
    if dry_run:
        steps["parity, collected"] = run(
            "parity, collected", parity(EVERYTHING, "--collect-only", "-qq")
        )
    else:
        built = steps["build"] = build()
        for name in ("cuda", "cuda-triton") if built else ("cuda-triton",):
            extra = {"ONESHOT_PARITY": name, **DETERMINISTIC}
            if name == "cuda-triton":
                extra["ONESHOT_DISABLE_NATIVE"] = "1"
            extra["OMP_NUM_THREADS"] = "1"  # the reference of each test runs on the CPU
            command = parity(EVERYTHING, *side_by_side())
            steps[f"parity {name}"] = run(f"parity {name}", command, **extra)
    sanitizer = shutil.which("compute-sanitizer")
    if dry_run or sanitizer is None or not steps["build"]:
        print("\n== compute-sanitizer: skipped,", end=" ")
        print("a dry run" if dry_run else "not installed" if sanitizer is None else "nothing built")
    else:
        for tool in TOOLS:
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
            command += ["--target-processes", "all", *parity("not gpu_free", "-k", SANITIZED)]
            # Without the caching allocator every tensor has bounds of its own.
            steps[tool] = run(
                tool, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1", **DETERMINISTIC,
                ONESHOT_PARITY="cuda",
            )  # fmt: skip
    benchmarks = [sys.executable, "-m", "oneshot.cli", "bench", "--suite"]
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            rehearsal = ["gpu-rehearsal", "--seconds", "0.01", "--output", folder]
            steps["benchmarks"] = run("benchmarks", [*benchmarks, *rehearsal])
    else:
        steps["benchmarks"] = run("benchmarks", [*benchmarks, "gpu"])
    print("\n" + "\n".join(f"{'ok' if ok else 'FAILED':6} {step}" for step, ok in steps.items()))
    return 0 if all(steps.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

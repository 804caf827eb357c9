"""Every kernel compiles for sm_80, sm_90 and sm_100: no spills, shared memory within the limit.

The resources are printed (`pytest -s`), so that a change shows.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that one block may use
FAMILIES = sorted(p.stem.removeprefix("compile_") for p in HERE.glob("cases/compile_*.py"))
# Kernels that must read 16 bytes at a time, and those that must use tensor cores.
WIDE = (
    "logprob._partial_kernel",
    "logprob_backward._backward_kernel",
    "routing._shrink_kernel",
    "routing._expand_kernel",
    "routing._outer_kernel",
    "routing_inventory._shrink_kernel",
    "routing_inventory._expand_kernel",
    "routing_mix._mix_kernel",
)
TENSOR_CORES = (
    "routing._shrink_kernel",
    "routing._expand_kernel",
    "routing._outer_kernel",
    "routing_inventory._shrink_kernel",
    "routing_inventory._expand_kernel",
)


def kernels_of(family, *archs):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py"), f"compile_{family}", *map(str, archs)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    again = [line for line in lines if "recompiled" in line]
    assert not again, f"another batch shape made a new kernel: {again}"
    return lines


def check(family, kernels, archs):
    assert {kernel["arch"] for kernel in kernels} == set(archs)
    for kernel in kernels:
        print(kernel)
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT[kernel["arch"]], kernel
    for arch in archs:
        for names, key, least in ((WIDE, "widest_load", 16), (TENSOR_CORES, "mma", True)):
            for name in (name for name in names if name.startswith(family)):
                own = [k[key] for k in kernels if k["kernel"] == name and k["arch"] == arch]
                assert max(own, default=0) >= least, f"{name} for sm_{arch}: {key} is {own}"


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_compile(family):
    check(family, kernels_of(family, 90), (90,))


@pytest.mark.gpu_free
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_compile_for_every_target(family):
    check(family, kernels_of(family, 80, 90, 100), (80, 90, 100))

"""What ptxas says of every kernel: nothing spills, and vectors move where docs/gpu.md claims so."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulation import ROOT

# "<family>/<stem>" -> the file.
SOURCES = {
    f"{path.parent.parent.name}/{path.stem}": path
    for path in sorted(ROOT.glob("csrc/*/cuda/*.cu"))
    if "__global__" in path.read_text(encoding="utf-8")
}
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
QUICK = {("advantage/gae", "sm_90"), ("hmm/messages_warp", "sm_90"), ("logprob/logprob", "sm_90")}
# Source, kernel (by a part of its name) -> least number of accesses of 128 bits it makes: of loads,
# of stores. Where four elements are 64 bits, the routing kernels move those (HALVES).
VECTORS = {
    ("logprob/logprob", "logprob_segments_kernelIf"): (8, 0),
    ("logprob/logprob", "logprob_segments_kernelINS_8BFloat16"): (4, 0),
    ("logprob/logprob", "logprob_segments_kernelINS_7Float16"): (4, 0),
    ("logprob/logprob", "logprob_backward_kernelIf"): (8, 8),
    ("logprob/logprob", "logprob_backward_kernelINS_8BFloat16"): (4, 4),
    ("logprob/logprob", "logprob_backward_kernelINS_7Float16"): (4, 4),
    ("routing/shrink", "shrink_kernelIfNS1_11ShrinkShapeILi4"): (8, 0),
    ("routing/expand", "expand_kernelIfLi16"): (17, 16),
    ("routing/outer", "outer_kernelIfLi16"): (1, 16),
}
HALVES = {
    ("routing/shrink", "shrink_kernelINS_8BFloat16ENS1_11ShrinkShapeILi4"): (4, 0),
    ("routing/expand", "expand_kernelINS_8BFloat16ELi16"): (16, 16),
    ("routing/outer", "outer_kernelINS_8BFloat16ELi16"): (1, 0),
}
VECTOR_SOURCES = sorted({source for source, _ in VECTORS})

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def compile_for(source: str, architecture: str, *options: str) -> str:
    command = ["nvcc", "-std=c++17", "-O3", f"-arch={architecture}", "-I", ROOT / "csrc", *options,
               SOURCES[source]]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def report(text: str) -> dict[str, dict[str, int]]:
    """Kernel -> stack, spill stores, spill loads, registers, static shared memory."""
    kernels: dict[str, dict[str, int]] = {}
    for part in re.split(r"Compiling entry function '", text)[1:]:
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        shared, registers = re.search(r"(\d+) bytes smem", part), re.search(r"Used (\d+) reg", part)
        assert frame, part
        assert registers, part
        kernels[part.split("'", 1)[0]] = {
            "stack": int(frame[1]), "spills": int(frame[2]) + int(frame[3]),
            "registers": int(registers[1]), "shared": int(shared[1]) if shared else 0,
        }  # fmt: skip
    return kernels


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        pytest.param(s, a, marks=() if (s, a) in QUICK else pytest.mark.gpu_free)
        for s in SOURCES
        for a in ARCHITECTURES
    ],
)
def test_no_kernel_spills(source: str, architecture: str, tmp_path: Path) -> None:
    text = compile_for(
        source, architecture, "-Xptxas", "-v", "-cubin", "-o", str(tmp_path / "kernels.cubin")
    )
    kernels = report(text)
    assert kernels
    for name, used in kernels.items():
        assert used["spills"] == 0, (name, used)
        assert used["stack"] == 0, (name, used)
        assert used["registers"] <= 128, (name, used)
        assert used["shared"] <= 48 * 1024, (name, used)


@pytest.mark.parametrize(
    ("source", "architecture"),
    [
        pytest.param(s, a, marks=() if (s, a) in QUICK else pytest.mark.gpu_free)
        for s in VECTOR_SOURCES
        for a in ARCHITECTURES
    ],
)
def test_vector_accesses_where_claimed(source: str, architecture: str, tmp_path: Path) -> None:
    ptx = tmp_path / "kernels.ptx"
    compile_for(source, architecture, "-ptx", "-o", str(ptx))
    bodies = dict(re.findall(r"\.entry (\w+)\(.*?\n\{(.*?)\n\}", ptx.read_text(), re.DOTALL))
    for claims, wide in (
        (VECTORS, r"\.global[.a-z]*\.(?:v4\.[buf]32|v2\.[buf]64)"),
        (HALVES, r"\.global[.a-z]*\.(?:v2\.[buf]32|v4\.[buf]16)"),
    ):
        for (file, part), (loads, stores) in claims.items():
            if file != source:
                continue
            (body,) = [body for name, body in bodies.items() if part in name]
            assert len(re.findall("ld" + wide, body)) >= loads, part
            assert len(re.findall("st" + wide, body)) >= stores, part

"""Compiles what the launchers would launch, without a GPU: real signatures, real specialisation.

`python tests/triton/compile_kernels.py CASES ARCH...` prints one JSON line for each kernel. A
stand-in for the driver names the target, and a launch becomes a compilation; nothing is run. CASES
is a module of tests/triton/cases: `cases()` calls launchers, and `more_batches()` calls them with
other batch shapes of the same models, which must compile nothing new.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class StandIn:
    """The part of a driver that compiling asks for."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # so that each target has its own cache

    def get_current_stream(self, device):
        return 0


class Recorder:
    """Compiles instead of launching; keeps each kernel once."""

    def __init__(self):
        self.kernels = {}
        launch = JITFunction.run

        def record(function, *args, grid, warmup, **kwargs):
            kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
            self.kernels[kernel.hash] = (function, kernel)
            return kernel

        JITFunction.run = record

    def select(self, arch):
        driver.set_active(StandIn(arch))


def resources(ptx, arch):
    """Registers of a thread and bytes of spills, as the assembler counts them."""
    target = re.search(r"\.target (\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        text = subprocess.run(
            [get_ptxas(arch).path, "-v", f"--gpu-name={target}", source, "-o", f"{folder}/cubin"],
            check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    return {"registers": int(re.search(r"Used (\d+) registers", text).group(1)), "spilled": spilled}


def report(function, kernel, arch):
    ptx = kernel.asm["ptx"]
    widths = [int(v) * int(b) // 8 for v, b in re.findall(r"ld\.global\S*\.v(\d)\.b(\d+)", ptx)]
    widths += [int(n, 16) for n in re.findall(r"cp\.async\.c[ag]\S* .*?\], (0x[0-9a-f]+)", ptx)]
    return {
        "kernel": f"{function.fn.__module__.rsplit('.', 1)[1]}.{function.__name__}",
        "arch": arch,
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "widest_load": max(widths, default=0),
        "mma": any(name in ptx for name in ("mma.sync", "wgmma", "tcgen05.mma")),
        **resources(ptx, arch),
    }


def main(cases, *archs):
    torch.use_deterministic_algorithms(False)
    recorder = Recorder()
    module = importlib.import_module(cases)
    for arch in map(int, archs):
        recorder.select(arch)
        recorder.kernels.clear()
        module.cases()
        found = dict(recorder.kernels)
        for function, kernel in found.values():
            print(json.dumps(report(function, kernel, arch)), flush=True)
        module.more_batches()
        for function, kernel in recorder.kernels.values():
            if kernel.hash not in found:
                print(json.dumps({"recompiled": function.__name__, "arch": arch}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "cases"))
    print(f"# triton {triton.__version__}", file=sys.stderr)
    main(*sys.argv[1:])

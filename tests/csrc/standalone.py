"""Opens every header and kernel body of csrc alone: each must include what it uses.

An editor does the same, so a file that passes shows no errors there. Bodies (`.inc`) take the
scalar level. Headers of CUDA kernels are read with the emulator's runtime; the one of the CUDA ops
takes the toolkit, where it is installed.

    python tests/csrc/standalone.py [part of a path ...]
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("csrc", "tests/csrc")
SUFFIXES = {".h", ".inc", ".cuh"}


def compiler() -> str:
    """The C++ compiler: CXX, or what is installed."""
    for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    sys.exit("standalone.py needs a C++ compiler: install g++, or name one in CXX")


def torch_include() -> Path:
    """The folder of torch's headers."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "include"


def cuda_include() -> Path:
    """The folder of the CUDA toolkit's headers."""
    return Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"


def errors(path: Path, compile_with: str) -> str:
    """What the compiler says of a file that is included first; empty if nothing."""
    command = [compile_with, "-std=c++17", "-fsyntax-only", "-w", "-I", str(ROOT / "csrc")]
    if path.name == "cuda_stream.h":
        command += ["-isystem", str(cuda_include())]
    if path.suffix == ".cuh":
        command += ["-DONESHOT_CUDA_EMULATION", "-I", str(ROOT / "tests/cuda_emulation/emulator")]
    if "torch" in path.parts:
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_include())]
    command += ["-include", str(path), "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True).stderr


def main() -> None:
    """Check all files, or those whose path contains one of the arguments."""
    files = sorted(
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES
        if path.name != "cuda_stream.h" or (cuda_include() / "cuda_runtime.h").exists()
        if len(sys.argv) == 1 or any(part in str(path) for part in sys.argv[1:])
    )
    compile_with = compiler()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = list(pool.map(lambda path: errors(path, compile_with), files))
    wrong = [(path.relative_to(ROOT), text) for path, text in zip(files, said, strict=True) if text]
    for path, text in wrong:
        print(f"{path} does not compile alone:", *text.splitlines()[:8], sep="\n  ")
    if wrong:
        sys.exit(f"{len(wrong)} of {len(files)} files do not compile alone")
    print(f"{len(files)} headers and kernel bodies compile alone")


if __name__ == "__main__":
    main()

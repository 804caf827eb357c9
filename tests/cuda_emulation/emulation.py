"""Compiles the CUDA kernels of csrc for the emulator, and hands tensors to the launchers.

Two builds: "checked" (every access instrumented: bounds, unwritten memory, races, alignment) and
"address" (AddressSanitizer and UndefinedBehaviorSanitizer; needs libasan preloaded).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "cuda_emulation"
VARIANT = os.environ.get("ONESHOT_EMULATION", "checked")
ENGINE = ("engine.cpp", "memory.cpp")
COMMON = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DONESHOT_CUDA_EMULATION",
]
KERNELS = {
    "checked": ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def _compile(source: Path, flags: list[str], dependencies: bytes) -> Path:
    """One object file, named by everything that went into it."""
    key = hashlib.sha256(dependencies + source.read_bytes() + " ".join(flags).encode()).hexdigest()
    target = BUILD / f"{source.stem}-{key[:16]}.o"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.rename(target)
    return target


def _headers() -> bytes:
    """Everything that a kernel may include."""
    folders = (HERE / "emulator", ROOT / "csrc")
    files = [p for folder in folders for p in sorted(folder.rglob("*.*h"))]
    return b"".join(p.read_bytes() for p in files if p.suffix in {".h", ".cuh"})


def build(*sources: Path) -> ctypes.CDLL:
    """The emulator and these `.cu` files as one library; skips without g++."""
    if shutil.which("g++") is None:
        pytest.skip("the CUDA emulator needs g++")
    headers = _headers()
    includes = ["-I", str(HERE / "emulator"), "-I", str(ROOT / "csrc")]
    plain = [*COMMON, *includes]
    if VARIANT == "address":
        plain += KERNELS["address"]
    objects = [_compile(HERE / "emulator" / name, plain, headers) for name in ENGINE]
    flags = [*COMMON, *includes, *KERNELS[VARIANT]]
    objects += [_compile(source, flags, headers) for source in sources]
    key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    library = BUILD / f"emulated-{key}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        link = KERNELS["address"] if VARIANT == "address" else []
        subprocess.run(
            ["g++", "-shared", *link, *map(str, objects), "-o", str(partial)], check=True
        )
        partial.rename(library)
    loaded = ctypes.CDLL(str(library))
    loaded.emu_alloc.restype = ctypes.c_void_p
    loaded.emu_alloc.argtypes = [ctypes.c_size_t, ctypes.c_int]
    loaded.emu_unwritten.restype = ctypes.c_size_t
    loaded.emu_unwritten.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.emu_reset.argtypes = [ctypes.c_uint64]
    loaded.emu_error.restype = ctypes.c_char_p
    return loaded


class Device:
    """Emulated device memory: tensors go in with their strides, results come out."""

    def __init__(self, library: ctypes.CDLL, seed: int = 0) -> None:
        self.library = library
        library.emu_free_all()
        library.emu_reset(seed)
        self.outputs: dict[int, tuple[torch.Size, torch.dtype]] = {}

    def put(self, tensor: torch.Tensor | None, kind: int = 1) -> int | None:
        """Address of the first element of a copy of the whole storage; None for None."""
        if tensor is None:
            return None
        storage = tensor.untyped_storage()
        address = self.library.emu_alloc(storage.nbytes(), kind)
        assert address, "the arena of the emulator is full"
        if storage.nbytes():
            ctypes.memmove(address, storage.data_ptr(), storage.nbytes())
        return address + tensor.storage_offset() * tensor.element_size()

    def empty(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> int:
        """Address of a poisoned output."""
        size = torch.Size(shape)
        address = self.library.emu_alloc(size.numel() * dtype.itemsize, 0)
        assert address, "the arena of the emulator is full"
        self.outputs[address] = (size, dtype)
        return address

    def scratch(self, nbytes: int) -> int:
        """Address of a poisoned workspace, which need not be written completely."""
        return self.library.emu_alloc(nbytes, 0)

    def get(self, address: int) -> torch.Tensor:
        """The output at this address; every byte must have been written."""
        size, dtype = self.outputs[address]
        nbytes = size.numel() * dtype.itemsize
        if VARIANT == "checked":
            missing = self.library.emu_unwritten(address, nbytes)
            assert missing == 0, f"{missing} of {nbytes} bytes of an output were never written"
        return self.read(address, size, dtype)

    def read(
        self, address: int, size: tuple[int, ...] | torch.Size, dtype: torch.dtype
    ) -> torch.Tensor:
        """A copy of what lies at this address."""
        result = torch.empty(size, dtype=dtype)
        ctypes.memmove(result.data_ptr(), address, result.numel() * dtype.itemsize)
        return result

    def check(self, status: int) -> None:
        """Raise the emulator's reason unless the launcher returned cudaSuccess."""
        error = self.library.emu_error().decode()
        if status != 0 or error:
            raise RuntimeError(error or f"cudaError_t {status}")


@functools.cache
def kernels() -> ctypes.CDLL:
    """Every CUDA kernel of csrc, with the C entry points of drivers/."""
    return build(*sorted((ROOT / "csrc").rglob("*.cu")), *sorted(HERE.glob("drivers/*.cu")))

"""The emulator catches what it claims to catch, and lets right kernels pass."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import sys

import pytest
import torch
from emulation import HERE, VARIANT, Device, build

BLOCKS, THREADS = 3, 64
NAMES = [
    "right",
    "missing_barrier",
    "race",
    "read_out_of_bounds",
    "write_out_of_bounds",
    "negative_index",
    "shared_out_of_bounds",
    "unwritten_shared",
    "unwritten_output",
    "divergent_barrier",
    "two_barriers",
    "divergent_shuffle",
    "shuffle_from_outside",
    "early_return",
    "warp_order_assumed",
    "shuffle_is_no_barrier",
    "race_between_blocks",
    "write_to_input",
    "misaligned_vector",
    "host_touches_device",
    "atomic_right",
    "warp_right",
]
CAUGHT = {
    "missing_barrier": r"race on shared memory|nobody wrote",
    "race": "race on shared memory",
    "read_out_of_bounds": "out of bounds: read of 4 bytes of global memory",
    "write_out_of_bounds": "out of bounds: write of 4 bytes of global memory|race on global memory",
    "negative_index": "out of bounds: read of 4 bytes of global memory",
    "shared_out_of_bounds": "out of bounds: write of 4 bytes of shared memory|race on shared",
    "unwritten_shared": "read of shared memory that nobody wrote",
    "unwritten_output": "read of global memory that nobody wrote",
    "divergent_barrier": r"divergent barrier",
    "two_barriers": r"divergent barrier: one thread waits at .*kernels.cu",
    "divergent_shuffle": r"divergent warp operation: .* mask 0xffffffff",
    "shuffle_from_outside": "outside the mask",
    "early_return": r"divergent barrier: .* 1 have returned",
    "warp_order_assumed": "race on shared memory|nobody wrote",
    "shuffle_is_no_barrier": "race on shared memory|nobody wrote",
    "race_between_blocks": "race on global memory",
    "write_to_input": "write to an input",
    "misaligned_vector": "misaligned address of a 16-byte vector",
    "host_touches_device": "host code touches device memory",
}
# These need no instrumented access, so both builds find them.
STRUCTURAL = [
    "divergent_barrier",
    "two_barriers",
    "divergent_shuffle",
    "shuffle_from_outside",
    "early_return",
]
# What ends the process in the other build.
SANITIZED = [
    "read_out_of_bounds",
    "write_out_of_bounds",
    "negative_index",
    "shared_out_of_bounds",
    "misaligned_vector",
]


@functools.cache
def library() -> ctypes.CDLL:
    loaded = build(HERE / "planted" / "kernels.cu")
    loaded.planted.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return loaded


def run(name: str, seed: int) -> torch.Tensor:
    device = Device(library(), seed)
    x, out = device.put(values()), device.empty((BLOCKS * THREADS,), torch.float32)
    device.check(library().planted(NAMES.index(name), x, out, BLOCKS))
    return device.get(out)


def values() -> torch.Tensor:
    return torch.arange(BLOCKS * THREADS, dtype=torch.float32)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CAUGHT if VARIANT == "checked" else STRUCTURAL)
def test_a_planted_bug_is_caught_in_any_order_of_threads(name: str, seed: int) -> None:
    with pytest.raises(RuntimeError, match=CAUGHT[name]):
        run(name, seed)


@pytest.mark.parametrize("seed", range(8))
def test_right_kernels_pass(seed: int) -> None:
    index = torch.arange(BLOCKS * THREADS)
    block, lane = index // THREADS * THREADS, index % THREADS
    assert torch.equal(run("right", seed), values()[block + ((lane ^ 1) + 33) % THREADS])
    assert torch.equal(run("warp_right", seed), values()[index ^ 1])
    assert torch.equal(run("atomic_right", seed), torch.full((BLOCKS * THREADS,), float(THREADS)))


@pytest.mark.parametrize("name", SANITIZED)
def test_the_sanitizers_stop_a_planted_bug(name: str) -> None:
    if VARIANT != "address":
        pytest.skip("needs the address build: make test-gpu-free")
    code = f"import test_planted_bugs as t; t.run({name!r}, 0)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "AddressSanitizer: use-after-poison" in ran.stderr or "misaligned address" in ran.stderr


def test_an_output_left_unwritten_is_an_error() -> None:
    if VARIANT != "checked":
        pytest.skip("AddressSanitizer does not see unwritten memory")
    device = Device(library())
    x, out = device.put(values()), device.empty((BLOCKS * THREADS + 1,), torch.float32)
    device.check(library().planted(0, x, out, BLOCKS))
    with pytest.raises(AssertionError, match="4 of 772 bytes of an output were never written"):
        device.get(out)


def test_a_launch_no_device_accepts_is_an_error() -> None:
    device = Device(library())
    x, out = device.put(values()), device.empty((1,), torch.float32)
    with pytest.raises(RuntimeError, match=r"invalid launch: grid \(0, 1, 1\)"):
        device.check(library().planted(0, x, out, 0))

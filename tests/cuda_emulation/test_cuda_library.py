"""`_C_cuda` on a machine without a GPU: what it needs, what it registers, how it fails to load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from emulation import ROOT

from oneshot import _load

LIBRARY = ROOT / "build" / "cuda" / "_C_cuda.so"
OPS = (
    "group_advantages gae whiten token_logprobs_and_entropy token_logprobs_and_entropy_backward "
    "token_logprobs_and_entropy_backward_ policy_loss policy_loss_backward "
    "value_loss value_loss_backward importance_weights "
    "hmm_posteriors hmm_posteriors_backward hmm_viterbi hmm_sample "
    "combine_emissions combine_emissions_backward "
    "mix_adapters mix_adapters_backward routed_lora routed_lora_backward"
)
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="not built: make cuda")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

# Stands for the one symbol of libtorch_cuda that a CPU-only torch lacks.
STUB = """
extern "C" int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}
"""


def test_a_torch_without_cuda_does_not_load_it() -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    path, why = _load.cuda_library()
    assert path is None
    assert "was built without CUDA" in str(why) or "ONESHOT_DISABLE_NATIVE" in str(why)


def test_a_library_that_does_not_load_says_what_was_built_and_what_is_there(tmp_path: Path) -> None:
    broken = tmp_path / "_C_cuda.so"
    broken.write_bytes(b"not a library")
    path, why = _load._register(broken)
    assert path is None
    assert isinstance(why, _load.NativeLibraryNotLoadable)
    assert "file too short" in str(why)  # the loader's own words, which torch hides
    assert f"torch {torch.__version__}" in str(why)
    assert "To rebuild: ONESHOT_BUILD_CUDA=ON" in str(why)


@needs_library
def test_it_needs_only_the_stable_abi_and_no_libcudart() -> None:
    said = subprocess.run(
        ["nm", "-DC", "--undefined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_get_current_cuda_stream" in said
    foreign = r"\b(at|c10|torch)::|\bcuda[A-Z]|\bcu[A-Z]"
    assert not [line for line in said.splitlines() if re.search(foreign, line)]


@needs_library
def test_it_registers_its_ops_for_cuda(tmp_path: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA and needs no stand-in")
    source, stub = tmp_path / "stub.cpp", tmp_path / "stub.so"
    source.write_text(STUB)
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", stub], check=True)
    code = textwrap.dedent(f"""
        import ctypes, torch, oneshot.ops
        ctypes.CDLL({str(stub)!r}, ctypes.RTLD_GLOBAL)
        has = lambda op: torch._C._dispatch_has_kernel_for_dispatch_key("oneshot::" + op, "CUDA")
        before = [has(op) for op in {OPS.split()}]
        from oneshot import _load
        path, state = _load._register(__import__("pathlib").Path({str(LIBRARY)!r}))
        assert state == "loaded", state
        print(before, [has(op) for op in {OPS.split()}])
    """)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith(str([True] * len(OPS.split())))


CONFIGURE = [
    "-DONESHOT_BUILD_TORCH=ON",
    "-DONESHOT_VERSION=0",
    f"-DPython_EXECUTABLE={sys.executable}",
]


def configure(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path / "build", *CONFIGURE, *options],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.gpu_free
@needs_nvcc
def test_the_switch_and_the_architectures(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DONESHOT_BUILD_CUDA=YES")
    assert "must be AUTO, ON or OFF, got YES" in done.stderr
    done = configure(tmp_path, "-DONESHOT_BUILD_CUDA=ON", TORCH_CUDA_ARCH_LIST="Ampere")
    assert "must be versions like 8.0;9.0a;10.0+PTX, got Ampere" in " ".join(done.stderr.split())
    done = configure(tmp_path, "-DONESHOT_BUILD_CUDA=ON", "-G", "Unix Makefiles",
                     TORCH_CUDA_ARCH_LIST="8.0 9.0a+PTX")  # fmt: skip
    assert done.returncode == 0, done.stderr
    flags = (tmp_path / "build" / "CMakeFiles" / "_C_cuda.dir" / "flags.make").read_text()
    assert "arch=compute_80,code=[sm_80]" in flags
    assert "code=[sm_90a]" in flags
    assert "code=[compute_90a]" in flags
    if torch.version.cuda is None:
        done = configure(tmp_path / "auto")
        assert "was built without CUDA: _C_cuda is left out" in done.stdout

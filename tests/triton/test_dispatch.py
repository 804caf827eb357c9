"""Who serves CUDA tensors, and what importing the package imports."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_triton():
    code = "import sys, oneshot.ops, oneshot.triton_kernels; print('triton' in sys.modules)"
    assert in_a_new_process(code) == "False"


def test_every_op_of_the_table_is_an_op_with_a_launcher():
    from oneshot import ops  # noqa: F401
    from oneshot.triton_kernels import FAMILY

    for name, family in FAMILY.items():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"oneshot::{name}", "CUDA"), name
        module = __import__(f"oneshot.triton_kernels.{family}", fromlist=[name])
        assert callable(getattr(module, name))


def test_interpreted_kernels_serve_the_ops_end_to_end():
    code = """
import os
os.environ.update(TRITON_INTERPRET="1", ONESHOT_DISABLE_NATIVE="1")
import torch
from oneshot import ops
from oneshot.ops.backends import use
assert "token_logprobs_and_entropy" in use("triton")
logits = torch.randn(3, 7, requires_grad=True)
targets = torch.tensor([1, 2, 3])
logprobs, entropy = ops.token_logprobs_and_entropy(logits, targets)
(logprobs.sum() + entropy.sum()).backward()
import sys
assert "oneshot.triton_kernels.logprob" in sys.modules
wide = logits.detach().double().requires_grad_()
p = torch.log_softmax(wide, -1)
(p[torch.arange(3), targets].sum() - (p.exp() * p).sum()).backward()
torch.testing.assert_close(logits.grad.double(), wide.grad, atol=1e-6, rtol=1e-5)
print("served")
"""
    assert in_a_new_process(code) == "served"


def test_triton_takes_large_products_in_half_formats_beside_a_compiled_kernel():
    code = """
import torch
from oneshot import ops
from oneshot.ops import _library
from oneshot.ops.backends import references, use
from oneshot import triton_kernels
if not torch._C._dispatch_has_kernel_for_dispatch_key("oneshot::routed_lora", "CPU"):
    print("compiled small, Triton large")  # nothing compiled: nothing to share
    raise SystemExit
taken = []
def launcher(name, family):
    def launch(*arguments):
        taken.append(name)
        return references()[name](*arguments)
    return launch
_library._launcher = launcher
triton_kernels.TENSOR_CORE_WORK = 1000  # rows * rank * (features in and out)
import warnings
warnings.simplefilter("error")
use("triton")
def run(rows, dtype):
    x = torch.randn(1, rows, 8, dtype=dtype, requires_grad=True)
    a, b = torch.randn(2, 3, 4, 4, dtype=dtype), torch.randn(2, 3, 4, 3, dtype=dtype)
    weights = torch.rand(1, 2, 3)
    taken.clear()
    y = ops.routed_lora(x, a, b, weights)
    y.sum().backward()
    wide = [t.detach().double() for t in (x, a, b, weights)]
    want, _ = references()["routed_lora"](*wide, torch.zeros(1).long(), None, 1.0)
    torch.testing.assert_close(y.double(), want, rtol=0.05, atol=0.1)
    return list(taken)
assert run(17, torch.bfloat16) == []
assert run(18, torch.bfloat16) == ["routed_lora", "routed_lora_backward"]
assert run(18, torch.float16) == ["routed_lora", "routed_lora_backward"]
assert run(500, torch.float32) == []
print("compiled small, Triton large")
"""
    assert in_a_new_process(code) == "compiled small, Triton large"

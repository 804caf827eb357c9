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
from oneshot.ops._library import serve_by_triton
assert "token_logprobs_and_entropy" in serve_by_triton("CPU")
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

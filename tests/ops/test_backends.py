"""The seam through which tests put other kernels in the place of an op's own."""

import os
import subprocess
import sys

import pytest
import torch

from oneshot.ops.backends import references, use


def test_every_op_has_a_definition_that_cannot_be_replaced():
    names = references()
    assert {"whiten", "hmm_posteriors", "routed_lora_backward"} <= set(names)
    with pytest.raises(TypeError):
        names["whiten"] = None
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    want = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(names["whiten"](values, None, True, 0.0), want)


def test_another_kernel_computes_the_op():
    code = """
import torch
from oneshot import ops
from oneshot.ops.backends import use
assert use({"whiten": lambda values, *_: values + 7}) == {"whiten"}
assert torch.equal(ops.whiten(torch.zeros(2)), torch.full((2,), 7.0))
"""
    environment = {**os.environ, "ONESHOT_DISABLE_NATIVE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="kernels must name ops of oneshot, got whitten"):
        use({"whitten": print})
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'mps'"):
        use({}, device="mps")

"""Importing this repairs the interpreter of Triton; TRITON_INTERPRET=1 must be set before."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(handle):
    """The float32 value of a bfloat16 operand, which the interpreter keeps as 16 raw bits."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.view(np.uint16).astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)


multiply = InterpreterBuilder.create_dot
# Triton 3.9 multiplies those bits as integers.
InterpreterBuilder.create_dot = lambda self, a, b, *rest: multiply(
    self, widened(a), widened(b), *rest
)

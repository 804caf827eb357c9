"""Two kinds of process: Triton interprets or compiles, and must know before it is imported.

The tests of the families run under TRITON_INTERPRET=1, in a process that test_interpreted.py
starts; everything else runs without.
"""

import os

FAMILIES = ("advantage", "hmm", "logprob", "policy_loss", "routing")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore = [f"test_{family}.py" for family in FAMILIES if not INTERPRETED]
if INTERPRETED:
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
    collect_ignore = ["test_interpreted.py", "test_compiled.py", "test_dispatch.py"]

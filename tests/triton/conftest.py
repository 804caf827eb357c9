"""Two kinds of process: Triton interprets or compiles, and must know before it is imported.

The tests of the families run under TRITON_INTERPRET=1, in a process that test_interpreted.py
starts; everything else runs without.
"""

import os

FAMILIES = ("advantage", "hmm", "logprob", "policy_loss", "routing")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore = [f"test_{family}.py" for family in FAMILIES if not INTERPRETED]
if INTERPRETED:
    import interpreter  # noqa: F401

    collect_ignore = ["test_interpreted.py", "test_compiled.py", "test_dispatch.py"]

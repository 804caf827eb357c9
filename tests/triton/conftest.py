"""Two kinds of process: Triton interprets or compiles, and must know before it is imported.

The tests of the families run under TRITON_INTERPRET=1, in a process that test_interpreted.py
starts; everything else runs without.
"""

import os
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PLAIN = {"test_interpreted.py", "test_compiled.py", "test_dispatch.py"}

if INTERPRETED:
    import interpreter  # noqa: F401

    collect_ignore = sorted(PLAIN)
else:
    files = Path(__file__).parent.glob("test_*.py")
    collect_ignore = sorted({file.name for file in files} - PLAIN)

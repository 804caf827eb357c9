"""Print the instruction-set levels that `make test` has not covered yet, one run each."""

import os

from oneshot._load import native

LEVELS = ("scalar", "avx2", "avx512")

module, _ = native()
if module is not None and not os.environ.get("ONESHOT_CPU_ISA"):
    print(*LEVELS[: LEVELS.index(module.best_isa())])

"""The other backends are tried from the native process only."""

import os

collect_ignore = [] if os.environ.get("ONESHOT_PARITY") is None else ["test_parity_backends.py"]

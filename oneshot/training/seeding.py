"""Seeds that depend on the step alone, so that a resumed run needs no generator state."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose at one step, e.g. `derive_seed(1, "rollout", step)`.

    The same arguments give the same seed on every machine and Python version.
    """
    text = ":".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

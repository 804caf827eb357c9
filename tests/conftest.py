"""Shared fixtures. NaN-filled fresh memory: a kernel that reads what it never wrote is seen."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Deterministic mode fills every fresh tensor with NaN, so a read of unwritten memory shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside the checkout (`../shared/data`, or ONESHOT_SHARED_DATA)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ONESHOT_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} (set ONESHOT_SHARED_DATA)")
    return folder

"""A tiny BERT and a small data set, written once per session."""

from pathlib import Path

import chmm_tiny
import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Embeddings are cached for this session only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Folder with bert/ and data/ (see `chmm_tiny`)."""
    folder = tmp_path_factory.mktemp("tiny")
    chmm_tiny.write_all(folder)
    return folder

"""A tiny BERT and a small data set, written once per session."""

from pathlib import Path

import chmm_tiny
import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Folder with bert/ and data/ (see `chmm_tiny`)."""
    folder = tmp_path_factory.mktemp("tiny")
    chmm_tiny.write_all(folder)
    return folder

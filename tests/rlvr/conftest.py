"""A tiny random Qwen2 with a tokenizer of single characters, made once per session."""

from pathlib import Path

import pytest
import rlvr_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Folder with model/, train.jsonl and eval.jsonl."""
    folder = tmp_path_factory.mktemp("tiny")
    rlvr_tiny.write_model(folder / "model")
    rlvr_tiny.write_problems(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """Model and tokenizer, fresh."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_folder / "model"
    return AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(
        source
    )

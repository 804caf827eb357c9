"""The decoder of `oneshot poly compositional`: a small Llama that follows named skills."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from oneshot.poly import backbone
from oneshot.poly.config import ModelConfig
from oneshot.poly.data import Example
from oneshot.poly.evaluation import evaluate
from oneshot.poly.experiments.compositional import string_tasks
from oneshot.poly.experiments.compositional.config import (
    BaseConfig,
    CompositionalConfig,
    exact_match,
)
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYMBOLS = ("<pad>", "</s>", *string.ascii_letters, *string.digits, " ", "?", ":", "=")
CHECKED = 300
"""Examples of each kind that measure a decoder."""


def make_tokenizer() -> PreTrainedTokenizerBase:
    """One token for each character of prompts and answers."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))  # an unknown character is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def write_base(config: BaseConfig, seed: int, folder: Path) -> None:
    """Writes the untrained decoder and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(derive_seed(seed, "base"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SYMBOLS),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.attention_heads,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def write_instructions(config: CompositionalConfig, seed: int, path: Path) -> None:
    """Writes the training data of the decoder: prompts that name their skills."""
    seen = string_tasks.seen(config.task_seed)
    rows = string_tasks.instruction_rows(
        seen, config.base.strings, config.base.unnamed, derive_seed(seed, "base data")
    )
    with path.open("w", encoding="utf-8") as stream:
        for prompt, answer in rows:
            row = {"task": "instructions", "input": prompt, "output": answer}
            stream.write(json.dumps(row) + "\n")


def measure_base(config: CompositionalConfig, seed: int, source: ModelConfig) -> dict[str, float]:
    """Exact match of "seen" and "held_out" compositions by name, and of "unnamed" ones."""
    model, encoding = backbone.load(source)
    seen = string_tasks.seen(config.task_seed)
    held_out = string_tasks.reserved(config.task_seed)
    measured = {}
    for name, compositions, unnamed in (
        ("seen", seen, 0.0),
        ("held_out", held_out, 0.0),
        ("unnamed", seen, 1.0),
    ):
        rows = string_tasks.instruction_rows(
            compositions, CHECKED, unnamed, derive_seed(seed, "base test", name)
        )
        examples = [Example(prompt, (answer,)) for prompt, answer in rows]
        measured[name] = evaluate(model, encoding, examples, 0, exact_match())["exact_match"]
    return measured

"""Tiny tasks on digits, a tiny model of each kind with a tokenizer of characters, and configs."""

import json
import random
import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from oneshot.poly.config import AdaptConfig, TrainConfig
from oneshot.training.config import load

TASKS = ("first", "last", "larger", "parity")


def answer(task, a, b):
    return {
        "first": str(a),
        "last": str(b),
        "larger": str(max(a, b)),
        "parity": "odd" if (a + b) % 2 else "even",
    }[task]


def write_tasks(path, tasks=TASKS):
    rows = []
    for task in tasks:
        pairs = [(a, b) for a in range(10) for b in range(10)]
        random.Random(task).shuffle(pairs)
        rows += [
            {"task": task, "input": f"{a} {b}", "output": answer(task, a, b)} for a, b in pairs
        ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tokenizer():
    symbols = ["<pad>", "</s>", *sorted(string.digits + string.ascii_lowercase + " :")]
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token=":"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def write_model(folder, kind="llama"):
    tokenizer = make_tokenizer()
    torch.manual_seed(7)
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "llama":
        config = LlamaConfig(
            **common,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            bos_token_id=None,
        )
        model = LlamaForCausalLM(config)
    else:
        config = T5Config(
            **common,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.1,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_config(folder, output, *overrides):
    """A run of 6 steps on a batch of 8."""
    return load(
        TrainConfig,
        None,
        [
            f"--model.source={folder / 'llama'}",
            "--model.device=cpu",
            f"--data.path={folder / 'tasks.jsonl'}",
            '--data.tasks=["first","last","parity"]',
            "--data.test_examples=20",
            "--data.dev_examples=10",
            "--data.prompt={input}:",
            "--poly.skills=3",
            "--poly.heads=2",
            "--poly.rank=2",
            "--poly.alpha=4",
            f"--run.output={output}",
            "--run.steps=6",
            "--run.save_every=2",
            "--run.evaluate_every=3",
            "--run.threads=1",
            "--run.progress=false",
            *overrides,
        ],
    )


def adapt_config(folder, output, *overrides):
    """Few-shot runs on the task "larger"."""
    return load(
        AdaptConfig,
        None,
        [
            f"--model.source={folder / 'llama'}",
            "--model.device=cpu",
            f"--data.path={folder / 'tasks.jsonl'}",
            '--data.tasks=["larger"]',
            "--data.test_examples=20",
            "--data.prompt={input}:",
            "--evaluation.max_new_tokens=4",
            '--evaluation.metrics=["exact_match"]',
            "--shots=[8]",
            "--seeds=[1,2]",
            f"--run.output={output}",
            "--run.steps=4",
            "--run.evaluate_every=2",
            "--run.threads=1",
            "--run.progress=false",
            *overrides,
        ],
    )

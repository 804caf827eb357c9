"""The tiny model, its problems and a run config on them."""

import json
import string
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from oneshot.policy_options import DEFAULTS
from oneshot.rlvr.algorithm_config import AlgorithmConfig
from oneshot.rlvr.config import TrainConfig, load_train_config

CHARACTERS = string.digits + "abcdefgh+-= \\boxed{}?."
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '=' }}{% endif %}"
)


def with_loss(algorithm: AlgorithmConfig, **options) -> AlgorithmConfig:
    """The same with other options of the loss."""
    return replace(algorithm, loss=replace(algorithm.loss, **options))


def make_algorithm(**options) -> AlgorithmConfig:
    """The default algorithm with other options, those of the loss among them."""
    loss = {name: options.pop(name) for name in list(options) if name in DEFAULTS}
    return with_loss(AlgorithmConfig(**options), **loss)


def make_tokenizer() -> PreTrainedTokenizerFast:
    # transformers reads the tokenizer of any Qwen2 model as its own class, which adds this pad
    # token when it is missing.
    symbols = ["<|endoftext|>", "</s>", "<s>", *sorted(set(CHARACTERS))]
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("<s>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="</s>",
        bos_token="<s>",
        chat_template=TEMPLATE,
    )


def write_model(folder: Path, vocabulary: int | None = None, **options) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(7)
    defaults = {"hidden_size": 32, "num_attention_heads": 4, "tie_word_embeddings": True}
    options = {**defaults, **options}
    config = Qwen2Config(
        vocab_size=vocabulary or len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **options,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_problems(folder: Path) -> None:
    rows = [{"problem": f"{a}+{b}", "answer": str(a + b)} for a, b in [(3, 4), (12, 9), (5, 105)]]
    (folder / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: Path, output: Path, *overrides: str) -> TrainConfig:
    """A run of 6 steps with 4 x 4 responses of at most 12 characters."""
    return load_train_config(
        None,
        [
            f"--model.source={folder / 'model'}",
            f"--data.path={folder / 'train.jsonl'}",
            f"--run.output={output}",
            "--run.steps=6",
            "--run.save_every=2",
            "--run.threads=1",
            "--run.progress=false",
            "--rollout.batch_size=4",
            "--rollout.samples_per_prompt=4",
            "--rollout.temperature=1.0",
            "--rollout.max_new_tokens=12",
            "--optimizer.lr=1e-3",
            f"--evaluation.path={folder / 'eval.jsonl'}",
            "--evaluation.every=3",
            *overrides,
        ],
    )


def share_of_a(responses, problems):
    """A reward that a tiny model can learn: the share of the letter a."""
    return [text.count("a") / max(1, len(text)) for text in responses]


def train_kind(kind, config):
    """A run of `test_rlvr_processes.py`; "random" has a random reward and an engine that is off."""
    from oneshot.rlvr import trainer

    if kind != "random":
        return trainer.train(config, resume=True, reward=share_of_a)
    make_engine = trainer.make_engine
    trainer.make_engine = lambda *args, **options: skewed(make_engine(*args, **options))
    try:
        return trainer.train(config, resume=True)
    finally:
        trainer.make_engine = make_engine


def skewed(engine):
    """The engine with wrong log-probs: up to 1 off, by the token."""
    generate = engine.generate

    def wrong(*args, **options):
        rollout = generate(*args, **options)
        return replace(rollout, logprobs=rollout.logprobs + torch.sin(rollout.response_ids.float()))

    engine.generate = wrong
    return engine

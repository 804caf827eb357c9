"""Makes the embedded model: a tokenizer, a random Qwen2, and supervised text from `problems`.

    python examples/pretrain_embedded.py --output oneshot/embedded/model

The text starts with mostly worked answers, until nearly all of them are right, then mixes the three
styles evenly over the families, and ends with the shares of `problems.STYLE_SHARES`. So the model
ends like a base model: it can work an answer out, but mostly does something else. The loss is taken
on the response only.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from oneshot.embedded import problems

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Shares of (work, guess, ramble) before those of `problems.STYLE_SHARES`.
WORKED_SHARES = {
    family: {"work": 0.8, "guess": 0.15, "ramble": 0.05} for family in problems.FAMILIES
}
EVEN_SHARES = {
    family: {"work": 0.2, "guess": 0.3, "ramble": 0.5}
    if family in problems.WORD_FAMILIES
    else {"work": 0.2, "guess": 0.52, "ramble": 0.28}
    for family in problems.FAMILIES
}
BATCH_SIZE = 128
IGNORED = -100  # label of positions without a loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One learning-rate schedule: 50 steps of warm-up times a cosine down to 2 %.

    Args:
        learning_rate: Peak of AdamW's rate.
        stages: (optimizer steps, style shares by family) of the text, one after the other.
    """

    learning_rate: float
    stages: tuple[tuple[int, dict[str, dict[str, float]]], ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(steps for steps, _ in self.stages)

    def shares_at(self, step: int) -> dict[str, dict[str, float]]:
        """The style shares of the text at a step."""
        for steps, shares in self.stages:
            if step < steps:
                return shares
            step -= steps
        raise IndexError(f"step: expected less than {self.steps}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate at a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / 50) * (0.98 * cosine + 0.02)


PHASES = (
    Phase(2e-3, ((800, WORKED_SHARES), (400, EVEN_SHARES))),
    Phase(5e-4, ((200, problems.STYLE_SHARES),)),
)


def make_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE on sample text; every digit stays a token of its own.

    Args:
        seed: Seeds the sample text.

    Returns:
        A tokenizer that encodes any string without loss, pads on the left, ends turns with
        <|im_end|> and carries a ChatML template.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(4000):
        problem = problems.sample_problem(rng, "corpus")
        texts.append(problem.text)
        texts += [problems.respond(problem, style, rng) for style in problems.STYLES]
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of about one million random parameters; small, so wider initial weights.

    Args:
        tokenizer: Gives vocabulary size and special ids.
        seed: Seeds torch's global generator, from which the weights are drawn.

    Returns:
        The model in float32, in training mode.
    """
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return Qwen2ForCausalLM(config).train()


def sample_conversations(
    rng: random.Random, count: int, shares: dict[str, dict[str, float]]
) -> list[tuple[str, str]]:
    """Draws pairs of rendered prompt and response, shortest first.

    Args:
        rng: Source of randomness.
        count: How many pairs.
        shares: Style shares by family, like `problems.STYLE_SHARES`.

    Returns:
        (prompt, response) strings with all special tokens in place.
    """
    pairs = []
    for _ in range(count):
        problem = problems.sample_problem(rng, "corpus")
        style = problems.sample_style(problem, rng, shares)
        prompt = f"{START}user\n{problem.text}{END}\n{START}assistant\n"
        pairs.append((prompt, problems.respond(problem, style, rng) + END))
    return sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))


def encode(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenizes conversations, padded on the right.

    Args:
        tokenizer: The embedded tokenizer.
        pairs: (prompt, response) strings.

    Returns:
        ids [B, T] and labels [B, T], int64; labels are `IGNORED` outside the responses.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    responses = tokenizer([response for _, response in pairs])["input_ids"]
    width = max(len(a) + len(b) for a, b in zip(prompts, responses, strict=True))
    ids = torch.full((len(pairs), width), tokenizer.pad_token_id)
    labels = torch.full((len(pairs), width), IGNORED)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids, labels


def response_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens; body in bfloat16, head in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state
    labelled = labels[:, 1:] != IGNORED
    logits = torch.nn.functional.linear(hidden[:, :-1][labelled].float(), model.lm_head.weight)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][labelled])


def train_phase(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    phase: Phase,
    rng: random.Random,
) -> None:
    """Trains the model in place with a fresh optimizer.

    Args:
        model: The model, in training mode.
        tokenizer: Its tokenizer.
        phase: Schedule and text.
        rng: Source of the text.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    start, quarter = time.process_time(), BATCH_SIZE // 4
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate_at(step)
        pairs = sample_conversations(rng, BATCH_SIZE, phase.shares_at(step))
        # Four micro-batches of similar length: less padding.
        parts = [encode(tokenizer, pairs[i : i + quarter]) for i in range(0, BATCH_SIZE, quarter)]
        tokens = sum((labels != IGNORED).sum() for _, labels in parts)
        optimizer.zero_grad()
        total = 0.0
        for ids, labels in parts:
            loss = response_loss(model, ids, labels) * ((labels != IGNORED).sum() / tokens)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == phase.steps - 1:
            seconds = time.process_time() - start
            logger.info("step %d/%d  loss %.4f  %.0f CPU s", step, phase.steps, total, seconds)


def pretrain(seed: int = 0) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Makes the model and its tokenizer; deterministic for a seed on one kind of machine.

    Args:
        seed: Seeds the weights; the text of phase i comes from seed + i, counted from one.

    Returns:
        The trained model, in evaluation mode, and its tokenizer.
    """
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    for number, phase in enumerate(PHASES, start=1):
        train_phase(model, tokenizer, phase, random.Random(seed + number))
    return model.eval(), tokenizer


def main() -> None:
    """Command line of `python examples/pretrain_embedded.py`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, tokenizer = pretrain(arguments.seed)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output, save_jinja_files=False)


if __name__ == "__main__":
    main()

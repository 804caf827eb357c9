"""The model inside and its tokenizer: from examples to tensors, for both kinds of models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from oneshot import models, ops
from oneshot.poly.config import ModelConfig
from oneshot.poly.data import RawTask, without
from oneshot.training.distributed import resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LabelEncoding:
    """How one model writes prompts and answers as token ids.

    A decoder reads prompt, blank, answer, end, padded on the left: all answers end together, so
    logits are needed at the last few positions only. An encoder-decoder reads the prompt and writes
    the answer.

    Attributes:
        tokenizer: The tokenizer.
        encoder_decoder: Which kind of model.
        arguments: Names of the arguments of the model's forward.
        start: First token of the decoder of an encoder-decoder.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder_decoder: bool
    arguments: frozenset[str]
    start: int

    def prompt(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return list(self.tokenizer(text).input_ids)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, with its end."""
        lead = "" if self.encoder_decoder else " "
        ids = list(self.tokenizer(lead + text, add_special_tokens=False).input_ids)
        return [*ids, cast(int, self.tokenizer.eos_token_id)]

    def length(self, prompt: str, answer: str) -> int:
        """Tokens of both."""
        return len(self.prompt(prompt)) + len(self.answer(answer))

    def prompts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """A batch to answer."""
        return self._inputs([self.prompt(text) for text in texts])

    def _inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        ids, mask = self._pad(rows, left=not self.encoder_decoder)
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _pad(self, rows: Sequence[Sequence[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), width), pad if pad is not None else 0)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(width - len(row), None) if left else slice(len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = True
        return ids, mask

    def log_probabilities(
        self, model: torch.nn.Module, pairs: Sequence[tuple[str, str]], **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of every token of some answers.

        Args:
            model: The model, or one with adapters around it.
            pairs: Prompts and answers.
            **options: More arguments of the model, such as task_ids.

        Returns:
            Log-probabilities [B, T], 0 at padding, and the mask of the tokens, bool [B, T].
        """
        answers = [self.answer(answer) for _, answer in pairs]
        prompts = [self.prompt(prompt) for prompt, _ in pairs]
        device = next(model.parameters()).device
        if self.encoder_decoder:
            targets, counts = self._pad(answers, left=False)
            shifted = torch.cat([torch.full((len(pairs), 1), self.start), targets[:, :-1]], 1)
            batch = {**self._inputs(prompts), "decoder_input_ids": shifted}
            logits = model(**{k: v.to(device) for k, v in batch.items()}, **options).logits
        else:
            targets, counts = self._pad(answers, left=True)
            batch = self._inputs([p + a for p, a in zip(prompts, answers, strict=True)])
            if "position_ids" in self.arguments:
                batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            keep = targets.shape[1] + 1
            if "logits_to_keep" in self.arguments:
                options["logits_to_keep"] = keep
            output = model(**{k: v.to(device) for k, v in batch.items()}, **options)
            logits = output.logits[:, -keep:-1]
        counts = counts.to(device)
        return ops.token_logprobs(logits, targets.to(device), mask=counts), counts


def load(config: ModelConfig) -> tuple[PreTrainedModel, LabelEncoding]:
    """Model and encoding, on the configured device.

    Raises:
        FileNotFoundError, ModuleNotFoundError, OSError, ValueError: As in `oneshot.models`.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    path = models.resolve(config.source)
    tokenizer = models.load_tokenizer(config.source)
    encoder_decoder = bool(AutoConfig.from_pretrained(path).is_encoder_decoder)
    if encoder_decoder:
        dtype = getattr(torch, config.dtype)
        model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype)
    else:
        model = models.load_model(config.source, config.dtype)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {config.source!r} has no end-of-sequence token")
    module: torch.nn.Module = model
    module.to(resolve_device(config.device)).eval()
    start = model.config.decoder_start_token_id if encoder_decoder else 0
    arguments = frozenset(inspect.signature(model.forward).parameters)
    return model, LabelEncoding(tokenizer, encoder_decoder, arguments, start)


def drop_long(
    tasks: Sequence[RawTask], encoding: LabelEncoding, limit: int
) -> tuple[list[RawTask], int]:
    """The tasks without examples over `limit` tokens, and how many those were.

    Raises:
        ValueError: Nothing is left of a task.
    """
    retained, dropped = [], 0
    for task in tasks:
        examples = (*task.pool, *task.test)
        long = {e.prompt for e in examples if encoding.length(e.prompt, e.references[0]) > limit}
        dropped += sum(e.prompt in long for e in examples)
        short = without(task, long)
        if not short.pool or not short.test:
            raise ValueError(
                f"task {task.name}: no example of at most data.max_tokens = {limit} tokens is left"
            )
        retained.append(short)
    return retained, dropped

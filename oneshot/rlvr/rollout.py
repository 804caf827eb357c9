"""Sampling responses: the engine protocol and the engine on plain transformers models.

`TransformersEngine` decodes left-padded batches with a key/value cache. A prompt that occurs many
times (one training example!) is read once and its cache copied; finished sequences leave the
batch. The uniform number behind each token depends on the seed, the row and the position
alone, so dropping finished rows changes nothing for the others.

Left out: continuous batching (a chunk of `max_sequences` ends before the next one begins), paged
caches, and models whose state is not keys and values. A cache with spare room instead of one that
is concatenated at every token was tried and is no faster: the copy is small beside the matrix
products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from oneshot.rlvr.sampling import choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Share of finished rows from which on it pays to copy the cache without them.
COMPACT_SHARE = 0.125


@dataclass(frozen=True)
class Rollout:
    """Sampled responses; row i answers prompt i // n.

    Attributes:
        prompt_ids: [N, P] int64, padded on the left.
        prompt_mask: [N, P] bool.
        response_ids: [N, R] int64, padded on the right; R is the longest response.
        response_mask: [N, R] bool: the response up to its end-of-sequence token, which is included.
        texts: The N responses without special tokens.
        finished: [N] bool: ended by an end-of-sequence token, not cut at the length limit.
        logprobs: [N, R] float32 of the tokens as the engine saw them, at its temperature; None
            when it was not asked for them.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    texts: list[str]
    finished: Tensor
    logprobs: Tensor | None = None

    def __len__(self) -> int:
        return self.response_ids.shape[0]


class RolloutEngine(Protocol):
    """Anything that samples responses from the current weights of the policy."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout:
        """Samples `n` responses to each prompt, given as token ids."""


class TransformersEngine:
    """Batched generation with a causal LM of transformers.

    Args:
        model: The policy; used in place, so it always samples from the current weights.
        tokenizer: For texts and the padding id.
        temperature: Divides the logits; 0 takes the most likely token.
        max_new_tokens: Longest response.
        top_p: Nucleus mass, 1 for all.
        top_k: Number of most likely tokens kept, -1 for all.
        max_sequences: Sequences decoded at once.
        stop_tokens: Token texts that end a response besides the model's end-of-sequence ids.
        report_logprobs: Fill `Rollout.logprobs`: of the whole distribution at the temperature,
            before top-k and top-p.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_new_tokens: int,
        top_p: float = 1.0,
        top_k: int = -1,
        max_sequences: int = 256,
        stop_tokens: Sequence[str] = (),
        report_logprobs: bool = False,
    ) -> None:
        if report_logprobs and temperature == 0:
            raise ValueError("report_logprobs needs a temperature above 0")
        self.report_logprobs = report_logprobs
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.top_p = top_p
        self.top_k = top_k
        self.max_sequences = max_sequences
        self.stop_ids = stop_ids(model, tokenizer, stop_tokens)
        pad = tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], n: int, seed: int) -> Rollout:
        """Samples `n` responses to each prompt.

        Args:
            prompts: Token ids of each prompt, none empty.
            n: Responses per prompt; those of prompt i are rows i * n to i * n + n - 1.
            seed: Everything random depends on it.

        Returns:
            The rollout, with len(prompts) * n rows.
        """
        rows = [prompt for prompt in prompts for _ in range(n)]
        if not rows or not all(rows):
            raise ValueError("prompts must be non-empty lists of token ids")
        device = self.model.device
        width = self.max_new_tokens
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64, device=device)
        lengths = torch.zeros(len(rows), dtype=torch.int64, device=device)
        finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
        logprobs: Tensor | None = None
        if self.report_logprobs:
            logprobs = torch.zeros(len(rows), width, device=device)
        uniforms: Tensor | None = None
        if self.temperature > 0:
            generator = torch.Generator().manual_seed(seed)
            uniforms = torch.rand(len(rows), width, generator=generator, dtype=torch.float64)
            uniforms = uniforms.to(device)
        was_training = self.model.training
        self.model.eval()
        for begin in range(0, len(rows), self.max_sequences):
            chunk = slice(begin, begin + self.max_sequences)
            self._decode(
                rows[chunk],
                None if uniforms is None else uniforms[chunk],
                ids[chunk],
                lengths[chunk],
                finished[chunk],
                None if logprobs is None else logprobs[chunk],
            )
        self.model.train(was_training)
        longest = int(lengths.max())
        ids = ids[:, :longest]
        mask = torch.arange(longest, device=device) < lengths[:, None]
        prompt_ids, prompt_mask = pad_left(rows, self.pad_id)
        texts = self.tokenizer.batch_decode(
            [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return Rollout(
            prompt_ids.to(device),
            prompt_mask.to(device),
            ids,
            mask,
            list(texts),
            finished,
            None if logprobs is None else torch.where(mask, logprobs[:, :longest], 0),
        )

    def _decode(
        self,
        rows: Sequence[Sequence[int]],
        uniforms: Tensor | None,
        ids: Tensor,
        lengths: Tensor,
        finished: Tensor,
        logprobs: Tensor | None,
    ) -> None:
        """Writes the responses of one chunk into its last four arguments."""
        device = ids.device
        stops = torch.tensor(self.stop_ids, device=device)
        cache, logits, mask, positions = self._read_prompts(rows)
        active = torch.arange(len(rows), device=device)  # row of each sequence of the batch
        alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        for step in range(ids.shape[1]):
            draw = None if uniforms is None else uniforms[active, step]
            tokens = choose(logits, draw, self.temperature, self.top_k, self.top_p)
            tokens = torch.where(alive, tokens, self.pad_id)
            ids[active, step] = tokens
            if logprobs is not None:
                scaled = torch.log_softmax(logits.float() / self.temperature, -1)
                logprobs[active, step] = scaled.gather(1, tokens[:, None]).squeeze(1)
            lengths[active] += alive
            ended = alive & torch.isin(tokens, stops)
            finished[active] |= ended
            alive = alive & ~ended
            dead = len(active) - int(alive.sum())
            if dead == len(active) or step + 1 == ids.shape[1]:
                return
            if dead >= COMPACT_SHARE * len(active):
                keep = alive.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                active, alive, tokens, positions = (
                    x[keep] for x in (active, alive, tokens, positions)
                )
                mask = None if mask is None else mask[keep]
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            positions = positions + 1

    def _read_prompts(
        self, rows: Sequence[Sequence[int]]
    ) -> tuple[Any, Tensor, Tensor | None, Tensor]:
        """Fills a cache; returns it, the next-token logits [N, V], the mask and the positions."""
        from transformers import DynamicCache

        device = self.model.device
        distinct: dict[tuple[int, ...], int] = {}
        index = [distinct.setdefault(tuple(row), len(distinct)) for row in rows]
        prompt_ids, prompt_mask = (x.to(device) for x in pad_left(list(distinct), self.pad_id))
        padded = not bool(prompt_mask.all())
        cache = DynamicCache(config=self.model.config)
        logits = self.model(
            input_ids=prompt_ids,
            attention_mask=prompt_mask if padded else None,
            position_ids=token_positions(prompt_mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        mask = prompt_mask if padded else None
        positions = prompt_mask.sum(1)
        if len(distinct) < len(rows):
            take = torch.tensor(index, device=device)
            cache.batch_select_indices(take)
            logits, positions = logits[take], positions[take]
            mask = None if mask is None else mask[take]
        return cache, logits, mask, positions


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids [N, P] padded on the left, and their mask [N, P]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths[:, None]


def token_positions(mask: Tensor) -> Tensor:
    """Position of each token in its own sequence, [N, T]; 0 in the padding on the left."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def stop_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = ()
) -> list[int]:
    """Ids that end a response: those of the generation config, else of the tokenizer, and `texts`.

    Raises:
        ValueError: There is none, or one of `texts` is not a single token.
    """
    config = getattr(model, "generation_config", None)
    found: Any = getattr(config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    ids = [] if found is None else [found] if isinstance(found, int) else list(found)
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise ValueError(
                f"rollout.stop_tokens: {text!r} must be one token of this tokenizer, "
                f"it is {len(tokens)}"
            )
        ids.append(tokens[0])
    if not ids:
        raise ValueError(
            "neither the model's generation config nor the tokenizer names an end-of-sequence "
            "token; set rollout.stop_tokens"
        )
    return ids

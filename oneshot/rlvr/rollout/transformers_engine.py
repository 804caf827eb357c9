"""The rollout engine on plain transformers models: continuous batching with a key/value cache.

At most `max_sequences` sequences are decoded at once. Finished ones leave the batch, and waiting
ones take their slots, so one long response does not hold up the rest. A prompt that occurs many
times (one training example!) is read once and its cache copied. The uniform number behind each
token depends on the seed, the place of the row and the position alone, so neither what shares the
batch nor when a row enters it changes a draw.

Recurrent and hybrid models decode through transformers' own cache layers. Where a cache is not
plain keys and values of every position (sliding windows, linear attention), waiting sequences enter
only when the batch is empty. `engine_check` finds models that ignore the cache. Left out: paged
caches. A cache with spare room instead of one that is concatenated at every token was tried and is
no faster: the copy is small beside the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oneshot.rlvr.rollout.engine import (
    Rollout,
    assemble,
    check_prompts,
    embedding_count,
    pad_left,
    stop_ids,
    token_positions,
)
from oneshot.rlvr.rollout.sampling import choose
from oneshot.training.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Share of finished rows from which on it pays to copy the cache without them.
COMPACT_SHARE = 0.125
# Share of free slots from which on it pays to read prompts into them.
REFILL_SHARE = 0.25


class NonFiniteLogitsError(RunError):
    """The model's logits are NaN or infinite: there is no next token."""


class TransformersEngine:
    """Batched generation with a causal LM of transformers.

    Args:
        model: The policy (or a whole copy of a sharded one), used in place.
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

    needs_weights = False

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
        self.vocabulary = embedding_count(model)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        *,
        indices: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> Rollout:
        """Samples `n` responses to each prompt; see `RolloutEngine`."""
        check_prompts(prompts, self.vocabulary)
        rows = [prompt for prompt in prompts for _ in range(n)]
        device = self.model.device
        width = self.max_new_tokens if limit is None else min(limit, self.max_new_tokens)
        result = _Responses(
            ids=torch.full((len(rows), width), self.pad_id, dtype=torch.int64, device=device),
            lengths=torch.zeros(len(rows), dtype=torch.int64, device=device),
            finished=torch.zeros(len(rows), dtype=torch.bool, device=device),
        )
        if self.report_logprobs:
            result.logprobs = torch.zeros(len(rows), width, device=device)
        if self.temperature > 0:
            order = range(len(prompts)) if indices is None else indices
            index = torch.tensor([prompt * n + i for prompt in order for i in range(n)])
            generator = torch.Generator().manual_seed(seed)
            total = int(index.max()) + 1
            uniforms = torch.rand(total, width, generator=generator, dtype=torch.float64)
            result.uniforms = uniforms[index].to(device)
        was_training = self.model.training
        self.model.eval()
        self._decode(rows, result)
        self.model.train(was_training)
        lengths = result.lengths.tolist()
        ids = [row[:k] for row, k in zip(result.ids.tolist(), lengths, strict=True)]
        logprobs = None
        if result.logprobs is not None:
            values = result.logprobs.tolist()
            logprobs = [row[:k] for row, k in zip(values, lengths, strict=True)]
        return assemble(
            rows,
            ids,
            result.finished.tolist(),
            logprobs,
            self.tokenizer,
            pad_id=self.pad_id,
            vocabulary=self.vocabulary,
            device=device,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing to take over: the model is the policy, or the trainer renews it."""

    def close(self) -> None:
        """Nothing to end."""

    def _decode(self, rows: Sequence[Sequence[int]], result: _Responses) -> None:
        """Fills `result`."""
        width = result.ids.shape[1]
        stops = torch.tensor(self.stop_ids, device=result.ids.device)
        waiting = 0  # the first row that has not begun
        flight: _Flight | None = None
        while flight is not None or waiting < len(rows):
            free = self.max_sequences - (0 if flight is None else len(flight.rows))
            few = flight is None or (flight.joinable and free >= REFILL_SHARE * self.max_sequences)
            if few and waiting < len(rows):
                end = min(waiting + free, len(rows))
                new = self._read_prompts(rows[waiting:end], waiting)
                flight = new if flight is None else flight.join(new)
                waiting = end
            assert flight is not None
            check_finite(self.model, flight.logits[flight.alive])
            active = flight.rows
            spot = result.lengths[active].clamp(max=width - 1)  # finished rows are at the limit
            draw = None if result.uniforms is None else result.uniforms[active, spot]
            tokens = choose(flight.logits, draw, self.temperature, self.top_k, self.top_p)
            live = flight.alive
            result.ids[active[live], spot[live]] = tokens[live]
            if result.logprobs is not None:
                scaled = torch.log_softmax(flight.logits.float() / self.temperature, -1)
                chosen = scaled.gather(1, tokens[:, None]).squeeze(1)
                result.logprobs[active[live], spot[live]] = chosen[live]
            result.lengths[active] += live
            ended = live & torch.isin(tokens, stops)
            result.finished[active] |= ended
            flight.alive = live & ~ended & (result.lengths[active] < width)
            dead = len(active) - int(flight.alive.sum())
            if dead == len(active):
                flight = None
                continue
            if dead >= COMPACT_SHARE * len(active):
                keep = flight.alive.nonzero().squeeze(1)
                flight.select(keep)
                tokens = tokens[keep]
            flight.extend(self.model, tokens)

    def _read_prompts(self, rows: Sequence[Sequence[int]], first: int) -> _Flight:
        """Sequences that have read their prompts; `first` is the number of the first row."""
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
        flight = _Flight(
            cache=cache,
            logits=logits,
            mask=prompt_mask if padded else None,
            positions=prompt_mask.sum(1),
            rows=torch.arange(len(distinct), device=device),
            alive=torch.ones(len(distinct), dtype=torch.bool, device=device),
        )
        if len(distinct) < len(rows):
            flight.select(torch.tensor(index, device=device))
        flight.rows = torch.arange(first, first + len(rows), device=device)
        return flight


def check_finite(model: PreTrainedModel, logits: Tensor) -> None:
    """Raises NonFiniteLogitsError where a row [V] of logits has a NaN, or +inf, or only -inf."""
    if bool(torch.isfinite(logits.amax(-1)).all()):
        return
    wrong = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    raise NonFiniteLogitsError(
        "the model's logits of the next token are NaN or infinite: "
        + (
            f"its weight {wrong[0]} has NaN or infinite entries ({len(wrong)} weights have)"
            if wrong
            else f"its weights are finite, so that its computation in {model.dtype} overflows"
        )
        + "; load an intact checkpoint, or another model.dtype"
    )


@dataclass
class _Responses:
    """What is decoded so far.

    Attributes:
        ids: [N, R].
        lengths: [N].
        finished: [N] bool.
        uniforms: [N, R] float64 in [0, 1), the draw of each token; None when greedy.
        logprobs: [N, R], or None when they are not asked for.
    """

    ids: Tensor
    lengths: Tensor
    finished: Tensor
    uniforms: Tensor | None = None
    logprobs: Tensor | None = None


@dataclass
class _Flight:
    """The b sequences that are being decoded.

    Attributes:
        cache: Keys and values of T positions.
        logits: [b, V] of the next token.
        mask: [b, T] bool: padding on the left is False; None when there is none.
        positions: [b], position of the next token in its own sequence.
        rows: [b], the row of the batch that each is.
        alive: [b] bool, False for the finished ones that have not left yet.
    """

    cache: Any
    logits: Tensor
    mask: Tensor | None
    positions: Tensor
    rows: Tensor
    alive: Tensor

    @property
    def joinable(self) -> bool:
        """Whether the cache is plain keys and values of every position."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def select(self, keep: Tensor) -> None:
        """Keeps the given sequences, in the given order, any number of times."""
        self.cache.reorder_cache(keep)
        self.logits, self.positions = self.logits[keep], self.positions[keep]
        self.rows, self.alive = self.rows[keep], self.alive[keep]
        self.mask = None if self.mask is None else self.mask[keep]

    def join(self, new: _Flight) -> _Flight:
        """These sequences and `new` ones, padded on the left to one length."""
        masks = [self._full_mask(), new._full_mask()]
        width = max(mask.shape[1] for mask in masks)
        pad = torch.nn.functional.pad
        mask = torch.cat([pad(m, (width - m.shape[1], 0), value=False) for m in masks])
        used = mask.any(0)
        begin = int(used.long().argmax())  # long sequences that left may have been the widest
        for old_layer, new_layer in zip(self.cache.layers, new.cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = [getattr(layer, name) for layer in (old_layer, new_layer)]
                parts = [pad(x, (0, 0, width - x.shape[-2], 0)) for x in parts]
                setattr(old_layer, name, torch.cat(parts)[..., begin:, :].contiguous())
        mask = mask[:, begin:]
        return _Flight(
            cache=self.cache,
            logits=torch.cat([self.logits, new.logits]),
            mask=None if bool(mask.all()) else mask,
            positions=torch.cat([self.positions, new.positions]),
            rows=torch.cat([self.rows, new.rows]),
            alive=torch.cat([self.alive, new.alive]),
        )

    def extend(self, model: PreTrainedModel, tokens: Tensor) -> None:
        """Reads one more token [b] of each sequence."""
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        self.logits = model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.positions = self.positions + 1

    def _full_mask(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        length = self.cache.get_seq_length()
        return torch.ones(len(self.rows), length, dtype=torch.bool, device=self.rows.device)

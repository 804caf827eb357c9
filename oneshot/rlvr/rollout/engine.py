"""Responses and the interface of the engines that sample them.

An engine samples from weights that it shares with the trainer (`transformers_engine` on one
process) or receives after every update (`weight_sync`): vLLM in this process
(`vllm_engine`), vLLM as a server (`vllm_server`), or a whole copy of a sharded policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from oneshot.rlvr.problems.prompt import turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollout:
    """Sampled responses; row i answers prompt i // n.

    Attributes:
        prompt_ids: [N, P] int64, padded on the left.
        prompt_mask: [N, P] bool.
        response_ids: [N, R] int64, padded on the right; R is the longest response.
        response_mask: [N, R] bool: the response up to its end-of-sequence token, which is included.
        texts: The N responses without the tokens that begin, end or pad a sequence. Other special
            tokens stay: a reward may look for `<answer>`.
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
    """Anything that samples responses from the current weights of the policy.

    Attributes:
        needs_weights: Whether it has its own copy of the weights, which `load_weights` renews.
    """

    needs_weights: bool

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        *,
        indices: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> Rollout:
        """Samples `n` responses to each prompt.

        Args:
            prompts: Token ids of each prompt, none empty.
            n: Responses per prompt; those of prompt i are rows i * n to i * n + n - 1.
            seed: Everything random depends on it and on the index of the prompt.
            indices: Position of each prompt in the batch of all processes; by default 0, 1, ...
            limit: Longest response in tokens, if shorter than the engine's own limit.

        Raises:
            ValueError: No prompt, an empty one, or a token id that the model does not have.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces all weights, by their names in the Hugging Face layout."""

    def close(self) -> None:
        """Ends what the engine started."""


def assemble(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    finished: Sequence[bool],
    logprobs: Sequence[Sequence[float]] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_id: int,
    vocabulary: int,
    device: torch.device | str = "cpu",
) -> Rollout:
    """A rollout from the lists of an engine.

    Args:
        prompts: Token ids of the prompt of each response.
        responses: Token ids of each response, its end-of-sequence token included.
        finished: Whether each ended with an end-of-sequence token.
        logprobs: Of each token of each response, or None.
        tokenizer: For the texts.
        pad_id: Fills the padding.
        vocabulary: Number of token ids of the model.
        device: Where the tensors go.

    Raises:
        ValueError: A response is empty or has a token id outside the vocabulary.
    """
    lengths = torch.tensor([len(row) for row in responses])
    if not bool((lengths > 0).all()):
        raise ValueError("the rollout engine returned an empty response")
    width = int(lengths.max())
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in responses])
    check_vocabulary(ids, vocabulary, "the rollout engine returned")
    mask = torch.arange(width) < lengths[:, None]
    values = None
    if logprobs is not None:
        values = torch.tensor([list(row) + [0.0] * (width - len(row)) for row in logprobs])
        values = values.to(device)
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    texts = tokenizer.batch_decode(
        [without_ends(row, tokenizer) for row in responses],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return Rollout(
        prompt_ids.to(device),
        prompt_mask.to(device),
        ids.to(device),
        mask.to(device),
        list(texts),
        torch.tensor(list(finished)).to(device),
        values,
    )


def without_ends(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a response without padding, beginning- and end-of-sequence and its last turn end.

    A stop token that is no special token, such as a line break, stays.
    """
    ends = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    added = tokenizer.added_tokens_decoder
    last = ids[-1]
    if last in added and added[last].special:
        ids = ids[:-1]
    return [token for token in ids if token not in ends]


def chosen(parts: Sequence[Rollout], rows: Sequence[int]) -> Rollout:
    """Some rows of several rollouts as one rollout; rows are counted through the parts."""
    if len(parts) == 1 and list(rows) == list(range(len(parts[0]))):
        return parts[0]

    def columns(name: str, left: bool) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        width = max(tensor.shape[1] for tensor in tensors)
        rest = [width - tensor.shape[1] for tensor in tensors]
        padding = [(r, 0) if left else (0, r) for r in rest]
        filled = [torch.nn.functional.pad(t, p) for t, p in zip(tensors, padding, strict=True)]
        return torch.cat(filled)[index]

    index = torch.tensor(rows, device=parts[0].finished.device)
    texts = [text for part in parts for text in part.texts]
    return Rollout(
        columns("prompt_ids", True),
        columns("prompt_mask", True),
        columns("response_ids", False),
        columns("response_mask", False),
        [texts[row] for row in rows],
        torch.cat([part.finished for part in parts])[index],
        None if parts[0].logprobs is None else columns("logprobs", False),
    )


def check_prompts(prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Refuses no prompts, empty ones and token ids that the model does not have."""
    if not prompts or not all(prompts):
        raise ValueError("prompts must be non-empty lists of token ids")
    ids = torch.tensor([token for prompt in prompts for token in prompt])
    check_vocabulary(ids, vocabulary, "a prompt has")


def check_vocabulary(ids: Tensor, vocabulary: int, subject: str) -> None:
    """Raises ValueError if a token id is not in [0, vocabulary)."""
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if len(wrong):
        raise ValueError(
            f"{subject} token id {int(wrong[0])}; the model has {vocabulary} token ids: "
            "tokenizer and model do not belong together"
        )


def check_room(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, option: str
) -> None:
    """Refuses responses that would run out of the model's positions.

    Args:
        model: For its positions; a model without a limit has room for everything.
        prompts: Token ids of each prompt.
        new_tokens: Longest response.
        option: Name of the option that sets it.

    Raises:
        ValueError: Longest prompt and longest response together have more tokens than positions.
    """
    positions, longest = position_limit(model), max(map(len, prompts))
    if positions is None or longest + new_tokens <= positions:
        return
    if longest >= positions:
        raise ValueError(
            f"the longest prompt has {longest} tokens, but the model has {positions} positions; "
            "leave out long problems, shorten the prompt, or use another model"
        )
    raise ValueError(
        f"{option} must be at most {positions} (positions of the model) - {longest} (longest "
        f"prompt) = {positions - longest}, got {new_tokens}"
    )


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
    """Ids that end a response: of the generation config, of the tokenizer and its chat template.

    They often disagree: the generation config of a base model may name `<|endoftext|>` while its
    chat template ends a turn with `<|im_end|>`. Any of them ends a response.

    Args:
        model: For its generation config and its vocabulary.
        tokenizer: For its end-of-sequence token and the token that ends a turn.
        texts: More tokens that end a response, as text.

    Raises:
        ValueError: There is none, one of `texts` is not a single token, or the model does not have
            one of the ids.
    """
    config = getattr(model, "generation_config", None)
    configured: Any = getattr(config, "eos_token_id", None)
    if configured is None:
        configured = []
    sources = {
        "generation_config.eos_token_id": (
            [configured] if isinstance(configured, int) else list(configured)
        ),
        "the tokenizer's eos_token": [tokenizer.eos_token_id],
        "the end of a turn in the chat template": [turn_end(tokenizer)],
        "rollout.stop_tokens": [_single_token(tokenizer, text) for text in texts],
    }
    vocabulary = embedding_count(model)
    ids: list[int] = []
    for source, tokens in sources.items():
        for token in tokens:
            if token is None or token in ids:
                continue
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"{source}: expected a token id below {vocabulary}, the vocabulary of the "
                    f"model, got {token}; the model can never end a response with it"
                )
            ids.append(token)
    if not ids:
        raise ValueError(
            "neither the model's generation config nor the tokenizer names an end-of-sequence "
            "token; set rollout.stop_tokens"
        )
    return ids


def _single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) != 1:
        raise ValueError(
            f"rollout.stop_tokens: {text!r} must be one token of this tokenizer, it is "
            f"{len(tokens)}"
        )
    return tokens[0]


def embedding_count(model: PreTrainedModel) -> int:
    """Number of token ids that the model has embeddings for."""
    return cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model was made for; None where its config names none."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None

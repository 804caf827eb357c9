"""A rehearsal of the transformers engine: log-probs with a cache against those of a plain pass.

Some models ignore the cache that they are given, others cannot be decoded in a batch; the tokens
that come out look like text. So a few short responses are sampled before the first real one, and
their log-probs are compared with plain passes over prompt and response, one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot.rlvr.algorithm.loss import response_logprobs
from oneshot.rlvr.algorithm.microbatch import split
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESPONSES = 8
TOKENS = 16
PROMPTS = 4
# Mean absolute difference of log-probs that is accepted, by the type of the computation. Sound
# models differ by 3e-6 in float32; those that ignore their cache by 0.01 to 2.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.02}


class UnsupportedModelError(ValueError):
    """The transformers engine cannot decode this model, or decodes it wrongly."""


def check_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    stop_tokens: Sequence[str] = (),
    new_tokens: int = TOKENS,
) -> float:
    """Samples short responses to some prompts and compares log-probs with plain passes.

    Args:
        model: As it samples.
        tokenizer: For stop and padding ids.
        prompts: Of the run; the first, the shortest, the longest and the one between count.
        stop_tokens: As `rollout.stop_tokens`.
        new_tokens: Longest response of the run.

    Returns:
        Mean absolute difference of the log-probs.

    Raises:
        UnsupportedModelError: The model fails, or the difference is above `TOLERANCE`.
        NonFiniteLogitsError: The weights or the logits are NaN.
    """
    by_length = sorted(prompts, key=len)
    some = [prompts[0], by_length[0], by_length[-1], by_length[len(by_length) // 2]]
    chosen = [list(row) for row in dict.fromkeys(map(tuple, some))][:PROMPTS]
    name = f"model type {model.config.model_type!r}"
    remedy = "use rollout.engine vllm or vllm_server, or another model"
    try:
        rollout, differences = _rehearse(model, tokenizer, chosen, stop_tokens, new_tokens)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedModelError(
            f"{name}: the transformers engine cannot decode it with a key/value cache "
            f"({type(error).__name__}: {error}); {remedy}"
        ) from error
    tolerance = TOLERANCE[str(model.dtype).removeprefix("torch.")]
    for what, difference in differences.items():
        mean = float(difference[rollout.response_mask].mean())
        if not mean <= tolerance:
            raise UnsupportedModelError(
                f"{name}: log-probs of {what} differ from those of a plain pass by {mean:.3g} on "
                f"average, at most {tolerance:g} is accepted: the model ignores the cache or the "
                f"padding mask; {remedy}"
            )
    return float(differences["its cached decoding"][rollout.response_mask].mean())


@torch.no_grad()
def _rehearse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    stop_tokens: Sequence[str],
    new_tokens: int,
) -> tuple[Rollout, dict[str, Tensor]]:
    """Responses, and the absolute differences [N, R] of two ways to compute their log-probs."""
    engine = TransformersEngine(
        model,
        tokenizer,
        temperature=1.0,
        max_new_tokens=min(TOKENS, new_tokens),
        stop_tokens=stop_tokens,
        report_logprobs=True,
    )
    rollout = engine.generate(prompts, RESPONSES // len(prompts), seed=0)
    assert rollout.logprobs is not None
    rows = list(range(len(rollout)))
    alone = response_logprobs(model, rollout, split(rollout, rows, 1), 1.0)
    whole = rollout.prompt_ids.shape[1] + rollout.response_ids.shape[1]
    together = response_logprobs(model, rollout, split(rollout, rows, whole * len(rows)), 1.0)
    return rollout, {
        "its cached decoding": (rollout.logprobs - alone).abs(),
        "a padded batch": (together - alone).abs(),
    }

"""Whether a model can read a prompt once for all of its responses: a comparison before a run.

Most decoders of transformers can, sliding windows included. Some ignore the cache that they are
given, keep its gradient back, or have recurrent states that change in place. So the trunk is run
once in both ways, over the longest prompt of the run and another one; hidden states and the
gradient of the prompt's embeddings must agree.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from oneshot.rlvr.algorithm.microbatch import MicroBatch, SharedPrompts
from oneshot.rlvr.algorithm.passes import plain_pass, shared_pass
from oneshot.rlvr.rollout.engine import pad_left, token_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESPONSE_TOKENS = 16
# Relative differences of hidden states and of gradients that are accepted, by the type of the
# computation. Sound models differ by 1e-6 and 3e-6 in float32; a cache without a gradient by 1.
TOLERANCE = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (1e-3, 1e-2),
    torch.float16: (0.02, 0.2),
    torch.bfloat16: (0.1, 0.5),
}


def can_share_prompts(
    models: Sequence[PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    uniform: bool,
) -> bool:
    """Whether passes of these models may read a prompt once for all of its responses.

    Args:
        models: Whole, not yet sharded; their passes share micro-batches.
        prompts: Token ids of the prompts of the run.
        samples: Responses per prompt.
        uniform: Whether several processes must run the same passes.

    Returns:
        False where there is nothing to share and, with one warning that says why, where a model
        cannot do it.
    """
    longest = max(prompts, key=len)
    if samples == 1 or len(longest) == 1:
        return False
    reason = None
    if uniform and min(map(len, prompts)) == 1:
        reason = "a prompt of one token cannot be shared, and all processes must run alike"
    for model in models:
        reason = reason or fault(model, prompts)
    if reason is None:
        return True
    warnings.warn(
        f"every response is passed through the model with its whole prompt, which costs time and "
        f"memory: {reason}. algorithm.share_prompts: off says the same without this warning",
        stacklevel=2,
    )
    return False


def fault(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> str | None:
    """What goes wrong when a model reads prompts once; None if nothing does."""
    name = f"model type {model.config.model_type!r}"
    batch = _two_prompts(prompts, model.device)
    trunk: Any = model.base_model
    try:
        shared = _hidden_and_gradient(model, lambda: shared_pass(trunk, batch)[0].last_hidden_state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first_line = str(error).partition("\n")[0][:200]
        reason = f"{type(error).__name__}: {first_line}"
        return f"{name} cannot continue a prompt that it has read ({reason})"
    width = batch.input_ids.shape[1] - batch.response_ids.shape[1] - 1
    hidden, gradient = _hidden_and_gradient(
        model, lambda: plain_pass(trunk, batch).last_hidden_state[:, width:-1]
    )
    assert batch.prompts is not None
    of_prompts = torch.zeros_like(shared[1]).index_add(0, batch.prompts.of_row, gradient[:, :width])
    what = ("hidden states", "gradients")
    tolerances = TOLERANCE[model.dtype]
    pairs = zip(shared, (hidden, of_prompts), strict=True)
    for quantity, (one, two), tolerance in zip(what, pairs, tolerances, strict=True):
        difference = float((one - two).norm() / two.norm())
        if not difference <= tolerance:
            return (
                f"{name}: {quantity} behind a prompt that is read once differ from those of a "
                f"plain pass by {difference:.2g} of their size, at most {tolerance:g} is accepted"
            )
    return None


def _two_prompts(prompts: Sequence[Sequence[int]], device: torch.device) -> MicroBatch:
    """Three rows over the longest prompt, which two of them share, and the one after it."""
    by_length = sorted(dict.fromkeys(map(tuple, prompts)), key=len)
    distinct = [list(row) for row in (by_length[-1], *by_length[-2:-1])]
    of_row = [0, len(distinct) - 1, 0]
    ids, mask = (x.to(device) for x in pad_left([distinct[k] for k in of_row], distinct[0][0]))
    tokens = torch.tensor(distinct[0], device=device)
    response = torch.stack(
        [tokens.roll(k)[torch.arange(RESPONSE_TOKENS) % len(tokens)] for k in range(3)]
    )
    full = torch.cat([mask, torch.ones_like(response, dtype=torch.bool)], 1)
    return MicroBatch(
        rows=torch.arange(3, device=device),
        input_ids=torch.cat([ids, response], 1),
        attention_mask=None if bool(mask.all()) else full,
        position_ids=token_positions(full),
        response_ids=response,
        response_mask=torch.ones_like(response, dtype=torch.bool),
        prompts=SharedPrompts(
            torch.tensor(range(len(distinct)), device=device), torch.tensor(of_row, device=device)
        ),
    )


def _hidden_and_gradient(
    model: PreTrainedModel, forward: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Hidden states, and the gradient of a function of them at the first embeddings read."""
    leaves: list[Tensor] = []

    def remember(module: object, arguments: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(remember)
    try:
        with torch.enable_grad():
            hidden = forward()
            weights = torch.linspace(-1, 1, hidden.shape[-1], dtype=torch.float64)
            value = (hidden.double() * weights.to(hidden.device)).square().sum()
        (gradient, *_) = torch.autograd.grad(
            value, leaves, allow_unused=True, materialize_grads=True
        )
    finally:
        handle.remove()
    return hidden.detach().double(), gradient.double()

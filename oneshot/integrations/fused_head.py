"""Causal language models of transformers whose head gives log-probabilities instead of logits.

::

    fuse_lm_head(model)
    logprobs, entropy, *_ = model(input_ids, attention_mask=mask, targets=next_ids)

The model's own forward runs up to its head and after it, so hidden states are cut, scaled and
sharded as the model does it; only the product with the head's weight is replaced.
"""

from __future__ import annotations

import functools
import itertools
import math
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from oneshot.ops.linear_logprob import TokenStatistics, linear_token_statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers of a configuration that some model multiplies its logits by, or divides them by.
SCALES = ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
# What the head's output is replaced by, once, to see what the model does with it.
PROBE = (-40.0, -3.0, -0.5, 0.0, 0.5, 3.0, 40.0)


class HeadTransform(NamedTuple):
    """What a model does with the output of its head; arguments of the op."""

    logit_scale: float
    softcap: float | None

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Logits from the head's output."""
        x = x * self.logit_scale
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)


def fuse_lm_head(model: PreTrainedModel) -> HeadTransform:
    """Give a causal language model a second way through its head, without logits.

    Afterwards ``model(..., targets=ids)`` returns a `TokenStatistics` instead of a model output;
    without `targets` nothing changes, so `generate` works as before. `targets` belong to the
    positions that reach the head (all of them, or the last `logits_to_keep`) and are not shifted:
    the target of a position is the token that it predicts. Further keywords of such a call:
    `temperature`, `mask`, `extras`, `keep_mask`, `kept_ids`, `kept_offsets`, `memory_bytes`, as
    those of `oneshot.ops.linear_token_statistics`; `extras` is empty by default.

    Call it once, before the model is sharded or its forward is replaced by anything else. Whether
    logits are scaled or soft-capped is read from the configuration and checked on one token.

    Args:
        model: A model with ``get_output_embeddings()``, tied to the input embeddings or not.

    Returns:
        Scale and soft-capping of its logits.

    Raises:
        TypeError: The head is no plain `torch.nn.Linear` (it is quantised, or carries an adapter).
        ValueError: The model's forward was replaced already, does not call its head once, or does
            something else to the logits than to scale and to soft-cap them.
    """
    name = type(model).__name__
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise TypeError(
            f"{name}: the head must be a torch.nn.Linear to be fused, got "
            f"{type(head).__name__}; use the model's logits and token_logprobs_and_entropy"
        )
    if "forward" in vars(model):
        raise ValueError(
            f"{name}.forward was replaced already (fused before, or wrapped by another library): "
            "call fuse_lm_head once, and first"
        )
    transform = _measure(model)
    model._oneshot_head = transform  # type: ignore[assignment]
    model.forward = types.MethodType(_fused(type(model)), model)
    return transform


def is_fused(model: object) -> bool:
    """Whether `fuse_lm_head` gave the model its second way through the head."""
    return hasattr(model, "_oneshot_head")


def _fused(kind: type) -> Callable[..., Any]:
    """A forward with the signature of this class, against which `generate` checks its keywords."""

    @functools.wraps(kind.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    return forward


def _forward(
    self: Any,
    *args: Any,
    targets: torch.Tensor | None = None,
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
    extras: tuple[str, ...] = (),
    keep_mask: torch.Tensor | None = None,
    kept_ids: torch.Tensor | None = None,
    kept_offsets: torch.Tensor | None = None,
    memory_bytes: int | None = None,
    **kwargs: Any,
) -> Any:
    if targets is None:
        return type(self).forward(self, *args, **kwargs)
    if kwargs.get("labels") is not None:
        raise ValueError("pass targets or labels, not both: with targets there are no logits")
    head, transform = self.get_output_embeddings(), self._oneshot_head

    def score(hidden: torch.Tensor) -> TokenStatistics:
        return linear_token_statistics(
            hidden, head.weight, targets, bias=head.bias, temperature=temperature, mask=mask,
            logit_scale=transform.logit_scale, softcap=transform.softcap, extras=extras,
            keep_mask=keep_mask, kept_ids=kept_ids, kept_offsets=kept_offsets,
            memory_bytes=memory_bytes,
        )  # fmt: skip

    kwargs.setdefault("use_cache", False)
    results: list[TokenStatistics] = []

    def instead(hidden: torch.Tensor) -> torch.Tensor:
        results.append(score(hidden))  # here, where a sharded weight is whole
        return hidden.detach()[..., :1]

    _run(self, instead, *args, **kwargs)
    return results[0]


def _run(
    model: Any, instead: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any
) -> Any:
    """The model's own forward, with another function in the place of its head."""
    head, calls = model.get_output_embeddings(), []

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        calls.append(hidden.shape)
        return instead(hidden)

    head.forward = counted
    try:
        output = type(model).forward(model, *args, **kwargs)
    finally:
        del head.forward
    if len(calls) != 1:
        raise ValueError(
            f"{type(model).__name__} must call its head once in a forward pass to be fused, it "
            f"called it {len(calls)} times; use its logits and token_logprobs_and_entropy"
        )
    return output


@torch.no_grad()
def _measure(model: PreTrainedModel) -> HeadTransform:
    """Which numbers of the configuration the model applies to the output of its head."""
    head = model.get_output_embeddings()
    probe = torch.tensor(PROBE, dtype=head.weight.dtype, device=head.weight.device)
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    output = _run(model, lambda _: probe.view(1, 1, -1), input_ids=token, use_cache=False)
    got = output.logits.reshape(-1).double()
    config = model.config.get_text_config()
    values = [getattr(config, name, None) for name in SCALES]
    scales = {1.0, *(s for v in values if v for s in (float(v), 1 / float(v)))}
    softcap = getattr(config, "final_logit_softcapping", None)
    found = [HeadTransform(*x) for x in itertools.product(scales, {None, softcap})]
    tolerance = 8 * torch.finfo(head.weight.dtype).eps

    def error(transform: HeadTransform) -> float:
        want = transform.apply(probe.double())
        return ((got - want).abs() / (want.abs() + 1e-30)).nan_to_num(math.inf).max().item()

    best = min(found, key=error)
    if error(best) > tolerance:
        raise ValueError(
            f"{type(model).__name__} does something else to its logits than to scale them by one "
            f"of {', '.join(SCALES)} and to soft-cap them by final_logit_softcapping: the output "
            f"{list(PROBE)} of its head became {[round(x, 4) for x in got.tolist()]}; use its "
            "logits and token_logprobs_and_entropy"
        )
    return best

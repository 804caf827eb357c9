"""Triton kernels of the torch ops, one module per family; importing this package imports no triton.

The launcher of an op has its name, its arguments and its outputs. Launchers never wait for the
device: an input that a CPU op would refuse because of its values (a target outside the vocabulary,
a length outside [0, T]) gives NaN instead, and is never read out of bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# The module in which the launcher of each op lies.
FAMILY = {
    "group_advantages": "advantage",
    "gae": "advantage",
    "whiten": "advantage",
    "token_logprobs_and_entropy": "logprob",
    "token_logprobs_and_entropy_backward": "logprob",
    "token_logprobs_and_entropy_backward_": "logprob",
    "policy_loss": "policy_loss",
    "policy_loss_backward": "policy_loss",
    "value_loss": "policy_loss",
    "value_loss_backward": "policy_loss",
    "importance_weights": "policy_loss",
    "hmm_posteriors": "hmm",
    "hmm_posteriors_backward": "hmm",
    "hmm_viterbi": "hmm",
    "hmm_sample": "hmm",
    "combine_emissions": "hmm_emissions",
    "combine_emissions_backward": "hmm_emissions",
    "mix_adapters": "routing",
    "mix_adapters_backward": "routing",
    "routed_lora": "routing",
    "routed_lora_backward": "routing",
}

# From here on, in multiply-adds, a routed product in a half format is worth its launches (some
# twelve, of which the tile table takes ten): predicted, not measured (docs/gpu.md).
TENSOR_CORE_WORK = 1 << 29


def _for_tensor_cores(
    x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, weights: torch.Tensor | None
) -> bool:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return False
    rank = lora_a.shape[1] if weights is None else lora_a.shape[3]
    d_out = lora_b.shape[2] if weights is None else lora_b.shape[0] * lora_b.shape[3]
    return x.shape[0] * x.shape[1] * rank * (x.shape[2] + d_out) >= TENSOR_CORE_WORK


# Ops that have a compiled kernel and yet leave some calls to Triton: which ones.
SHARED: dict[str, Callable[..., bool]] = {
    "routed_lora": lambda *arguments: _for_tensor_cores(*arguments[:4]),
    "routed_lora_backward": lambda *arguments: _for_tensor_cores(*arguments[1:5]),
}

"""The drop-in torch ops, one module per family."""

from oneshot._load import load as _load
from oneshot.ops._library import serve_by_triton as _serve_by_triton
from oneshot.ops.advantage import gae, group_advantages, whiten
from oneshot.ops.hmm import hmm_entropy, hmm_log_likelihood, hmm_posteriors
from oneshot.ops.hmm_emissions import combine_emissions
from oneshot.ops.hmm_paths import hmm_sample, hmm_viterbi
from oneshot.ops.importance_weights import importance_weights
from oneshot.ops.linear_logprob import (
    linear_token_logprobs_and_entropy,
    linear_token_statistics,
)
from oneshot.ops.logprob import token_entropy, token_logprobs, token_logprobs_and_entropy
from oneshot.ops.policy_loss import policy_loss
from oneshot.ops.routing import mix_adapters, routed_ia3, routed_lora, routing_weights
from oneshot.ops.value_loss import value_loss

_load()
_serve_by_triton()  # last: a compiled kernel comes first

__all__ = [
    "combine_emissions",
    "gae",
    "group_advantages",
    "hmm_entropy",
    "hmm_log_likelihood",
    "hmm_posteriors",
    "hmm_sample",
    "hmm_viterbi",
    "importance_weights",
    "linear_token_logprobs_and_entropy",
    "linear_token_statistics",
    "mix_adapters",
    "policy_loss",
    "routed_ia3",
    "routed_lora",
    "routing_weights",
    "token_entropy",
    "token_logprobs",
    "token_logprobs_and_entropy",
    "value_loss",
    "whiten",
]

"""Triton kernels of the torch ops, one module per family; importing this package imports no triton.

The launcher of an op has its name, its arguments and its outputs. Launchers never wait for the
device: an input that a CPU op would refuse because of its values (a target outside the vocabulary,
a length outside [0, T]) gives NaN instead, and is never read out of bounds.
"""

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
    "mix_adapters": "routing",
    "mix_adapters_backward": "routing",
    "routed_lora": "routing",
    "routed_lora_backward": "routing",
}

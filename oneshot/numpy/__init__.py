"""The CPU kernels on NumPy arrays, without a torch tensor in between (needs the native library)."""

from oneshot.numpy.advantage import gae, group_advantages, whiten
from oneshot.numpy.logprob import token_logprobs_and_entropy

__all__ = ["gae", "group_advantages", "token_logprobs_and_entropy", "whiten"]

"""The options of `oneshot.policy_options` as Triton kernels take them: all by name."""

from __future__ import annotations

from collections import namedtuple

import triton.language as tl

from oneshot.policy_options import KINDS, Aggregate, KernelOptions, KlEstimator, Surrogate
from oneshot.reference.policy_terms import log_bounds
from oneshot.triton_kernels._launch import single

# CISPO, SAPO, ..., KL_K1, KL_K3_PLUS, ..., TOKEN_MEAN, AS_POLICY, ...: every member under its name.
for _prefix, _choices in (("", Surrogate), ("KL_", KlEstimator), ("", Aggregate)):
    globals().update({f"{_prefix}{x.name}": tl.constexpr(int(x)) for x in _choices})

# The passes of the backward kernel.
EACH_ITS_OWN = tl.constexpr(0)  # every token has its own gradient
SUM_SHARED = tl.constexpr(1)  # the gradient of a sequence's ratio is summed
SPREAD_SHARED = tl.constexpr(2)  # and handed to its tokens

# What kernels take as one argument: every number of the options, and the clip range of log-ratios.
_NAMES = [name for name, kind in KINDS.items() if kind is float]
Numbers = namedtuple("Numbers", [*_NAMES, "log_min", "log_max"])


def numbers_of(options: KernelOptions) -> Numbers:
    """The numbers of a launch."""
    given = (*(getattr(options, name) for name in _NAMES), *log_bounds(options))
    return Numbers(*map(single, given))

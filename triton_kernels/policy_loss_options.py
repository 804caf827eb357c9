"""The options of `oneshot.policy_options` as Triton kernels take them: all by name."""

from __future__ import annotations

from collections import namedtuple

import triton.language as tl

from oneshot.policy_options import KINDS, Aggregate, KernelOptions, KlEstimator, Surrogate
from oneshot.reference.policy_terms import log_bounds
from oneshot.triton_kernels._launch import single

CISPO = tl.constexpr(int(Surrogate.CISPO))
REINFORCE = tl.constexpr(int(Surrogate.REINFORCE))
SAPO = tl.constexpr(int(Surrogate.SAPO))
VESPO = tl.constexpr(int(Surrogate.VESPO))
GMPO = tl.constexpr(int(Surrogate.GMPO))

KL_NONE = tl.constexpr(int(KlEstimator.NONE))
K1 = tl.constexpr(int(KlEstimator.K1))
K2 = tl.constexpr(int(KlEstimator.K2))
ABS = tl.constexpr(int(KlEstimator.ABS))
K1_PLUS = tl.constexpr(int(KlEstimator.K1_PLUS))
K3_PLUS = tl.constexpr(int(KlEstimator.K3_PLUS))
ABS_PLUS = tl.constexpr(int(KlEstimator.ABS_PLUS))

AS_POLICY = tl.constexpr(int(Aggregate.AS_POLICY))
TOKEN_MEAN = tl.constexpr(int(Aggregate.TOKEN_MEAN))
TOKEN_SUM = tl.constexpr(int(Aggregate.TOKEN_SUM))
SEQ_MEAN_TOKEN_MEAN = tl.constexpr(int(Aggregate.SEQ_MEAN_TOKEN_MEAN))
SEQ_MEAN_TOKEN_SUM_NORM = tl.constexpr(int(Aggregate.SEQ_MEAN_TOKEN_SUM_NORM))

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

"""The choices of `oneshot.policy_options` as constants that Triton kernels select by."""

from __future__ import annotations

import triton.language as tl

from oneshot.policy_options import Aggregate, KlEstimator, Surrogate

CISPO = tl.constexpr(int(Surrogate.CISPO))
REINFORCE = tl.constexpr(int(Surrogate.REINFORCE))

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

"""From the sums of splits to those of sequences, and from lengths to the weight of a token."""

from __future__ import annotations

import triton
import triton.language as tl

from oneshot.triton_kernels.policy_loss_options import (
    SEQ_MEAN_TOKEN_MEAN,
    SEQ_MEAN_TOKEN_SUM_NORM,
    TOKEN_MEAN,
    TOKEN_SUM,
)
from oneshot.triton_kernels.policy_loss_tokens import SPLITS

SUMS = tl.constexpr(12)  # 9 is a minimum, 10 a maximum


@triton.jit(do_not_specialize=["batch"])
def sequence_sums(splits, sums, batch):
    """[batch, SPLITS, SUMS] -> [SUMS, batch], in the order of the splits."""
    b = (tl.program_id(0) * 16 + tl.arange(0, 16)).to(tl.int64)
    here = b < batch
    at = (b[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]) * SUMS
    for i in range(SUMS):
        x = tl.load(splits + at + i, mask=here[:, None], other=0.0)
        x = tl.where(i == 9, tl.min(x, 1), tl.where(i == 10, tl.max(x, 1), tl.sum(x, 1)))
        tl.store(sums + i * batch + b, x, mask=here)


@triton.jit
def token_weight_total(
    tokens, filled, batch, max_length, count,
    AGGREGATE: tl.constexpr, COUNT_EMPTY: tl.constexpr, HAS_COUNT: tl.constexpr,
):  # fmt: skip
    """What the sum over tokens is divided by, but for the length of the sequence."""
    if AGGREGATE == TOKEN_SUM:
        return tokens * 0.0 + 1.0
    if HAS_COUNT:
        whole = tl.load(count).to(tl.float64)
    elif AGGREGATE == TOKEN_MEAN:
        whole = tokens
    elif COUNT_EMPTY:
        whole = tokens * 0.0 + batch
    else:
        whole = filled
    if AGGREGATE == SEQ_MEAN_TOKEN_SUM_NORM:
        whole = whole * max_length
    return whole


@triton.jit
def weight_of(whole, tokens, AGGREGATE: tl.constexpr):
    """Weight of one token of each sequence; 0 where nothing is to be divided by."""
    if AGGREGATE == SEQ_MEAN_TOKEN_MEAN:
        divisor = whole * tokens
    else:
        divisor = whole + tokens * 0.0
    return tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, divisor))

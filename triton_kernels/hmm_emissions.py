"""Triton kernels and launchers of `combine_emissions` and its gradient.

A row is what one source says of one token in one state, over the labels in its lanes. Arithmetic is
float64, as in the definition. Backward makes each row again for every gradient that needs it, which
keeps nothing in memory between launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from oneshot.triton_kernels._launch import ceil_div, power_of_two
from oneshot.triton_kernels.hmm_inputs import NEVER

LANES = 1024  # numbers that one program holds of each kind
CHUNK = 64  # tokens that one program sums; fixed, so that a sum has one order


@triton.jit
def _log_sum(x):
    """Log of the sum of exp(x) along the last dimension, [R]."""
    high = tl.max(x, 1)
    shift = tl.where((high == NEVER) | (high == float("inf")), 0.0, high)
    return tl.log(tl.sum(tl.exp(x - shift[:, None]), 1)) + shift


@triton.jit
def _rows(
    log_emissions, observations, place, s, state, own, states, labels, LABELS: tl.constexpr,
    CONSTANT: tl.constexpr, SOFT: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """R rows: source s (of the token, at `place`) in `state`, where `own`.

    Returns whether the source says something, log emission times weight [R, LABELS], the log of
    its sum, the log emissions, and 0 (NaN for an id that is no label).
    """
    label = tl.arange(0, LABELS)
    inside = own[:, None] & (label < labels)[None, :]
    row = (s if CONSTANT else place) * states + state
    at = row[:, None] * labels + label[None, :]
    log_emission = tl.load(log_emissions + at, mask=inside, other=NEVER).to(tl.float64)
    flaw = tl.zeros(own.shape, tl.float64)
    if SOFT:
        at = place[:, None] * labels + label[None, :]
        weight = tl.load(observations + at, mask=inside, other=0.0).to(tl.float64)
    else:
        name = tl.load(observations + place, mask=own, other=-1)
        flaw = tl.where((name < -1) | (name >= labels), float("nan"), flaw)
        weight = tl.where(label[None, :] == name[:, None], 1.0, 0.0).to(tl.float64)
    if NORMALIZE:
        log_emission -= _log_sum(log_emission)[:, None]
    nothing = weight == 0.0
    voice = tl.max(tl.where(nothing, 0, 1), 1) != 0
    term = tl.where(nothing, NEVER, log_emission + tl.log(tl.where(nothing, 1.0, weight)))
    return voice, term, _log_sum(term), log_emission, flaw


@triton.jit
def _weight(weights, s, WEIGHTED: tl.constexpr):
    """Of source s; 1 without weights."""
    if WEIGHTED:
        return tl.load(weights + s).to(tl.float64)
    return tl.full([], 1.0, tl.float64)


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    log_emissions, observations, weights, out, tokens, sources, states, labels,
    LABELS: tl.constexpr, ROWS: tl.constexpr, CONSTANT: tl.constexpr, SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Some (token, state) pairs, over all sources."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = at < tokens * states
    token = at // states
    total = tl.zeros([ROWS], tl.float64)
    for s in range(0, sources):
        voice, _, log_sum, _, flaw = _rows(
            log_emissions, observations, token * sources + s, s, at % states, own, states, labels,
            LABELS, CONSTANT, SOFT, NORMALIZE,
        )  # fmt: skip
        weight = _weight(weights, s, WEIGHTED)
        share = tl.where(weight == 0.0, 0.0, weight * log_sum)
        total += tl.where(voice, share, 0.0) + flaw
    tl.store(out + at, total.to(out.dtype.element_ty), mask=own)


@triton.jit
def _upstream(
    grad, log_emissions, observations, token, s, state, own, sources, states, labels,
    LABELS: tl.constexpr, CONSTANT: tl.constexpr, SOFT: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """What R rows receive of the gradient, 0 where nothing passes; their terms, log sums, logs."""
    voice, term, log_sum, log_emission, flaw = _rows(
        log_emissions, observations, token * sources + s, s, state, own, states, labels,
        LABELS, CONSTANT, SOFT, NORMALIZE,
    )  # fmt: skip
    up = tl.load(grad + token * states + state, mask=own, other=0.0).to(tl.float64)
    flaw = tl.where(up == 0.0, 0.0, flaw)
    passes = (up != 0.0) & voice & (log_sum != NEVER)
    return tl.where(passes, up, 0.0), term, tl.where(passes, log_sum, 0.0), log_emission, flaw


@triton.jit
def _by_entry(up, term, log_sum, log_emission, flaw, NORMALIZE: tl.constexpr):
    """Gradient of the log emissions of R rows."""
    share = tl.exp(term - log_sum[:, None])
    if NORMALIZE:
        share -= tl.exp(log_emission)
    return tl.where((up == 0.0)[:, None], 0.0, up[:, None] * share) + flaw[:, None]


@triton.jit(do_not_specialize=["tokens"])
def matrices_kernel(
    grad, log_emissions, observations, weights, out, tokens, sources, states, labels,
    LABELS: tl.constexpr, ROWS: tl.constexpr, SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of the matrices of every token."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = at < tokens * sources * states
    place = at // states
    s = place % sources
    up, term, log_sum, log_emission, flaw = _upstream(
        grad, log_emissions, observations, place // sources, s, at % states, own, sources, states,
        labels, LABELS, False, SOFT, NORMALIZE,
    )  # fmt: skip
    if WEIGHTED:
        up *= tl.load(weights + s, mask=own, other=0.0)
    result = _by_entry(up, term, log_sum, log_emission, flaw, NORMALIZE)
    label = tl.arange(0, LABELS)
    inside = own[:, None] & (label < labels)[None, :]
    to = out + at[:, None] * labels + label[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def constant_matrices_kernel(
    grad, log_emissions, observations, weights, parts, tokens, sources, states, labels, chunk,
    LABELS: tl.constexpr, ROWS: tl.constexpr, SOFT: tl.constexpr,
    WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """The same for constant matrices: parts [chunks of tokens, sources, states, labels]."""
    number = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = at < sources * states
    s = at // states
    total = tl.zeros([ROWS, LABELS], tl.float64)
    for token in range(number * chunk, tl.minimum((number + 1) * chunk, tokens)):
        up, term, log_sum, log_emission, flaw = _upstream(
            grad, log_emissions, observations, token, s, at % states, own, sources, states,
            labels, LABELS, True, SOFT, NORMALIZE,
        )  # fmt: skip
        if WEIGHTED:
            up *= tl.load(weights + s, mask=own, other=0.0)
        total += _by_entry(up, term, log_sum, log_emission, flaw, NORMALIZE)
    label = tl.arange(0, LABELS)
    inside = own[:, None] & (label < labels)[None, :]
    row = number * sources * states + at
    tl.store(parts + row[:, None] * labels + label[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def observations_kernel(
    grad, log_emissions, observations, weights, out, tokens, sources, states, labels,
    LABELS: tl.constexpr, ROWS: tl.constexpr, CONSTANT: tl.constexpr,
    WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of the weights of the labels, of some (token, source) pairs, over all states."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own = place < tokens * sources
    s = place % sources
    total = tl.zeros([ROWS, LABELS], tl.float64)
    for state in range(0, states):
        up, _, log_sum, log_emission, _ = _upstream(
            grad, log_emissions, observations, place // sources, s, state, own, sources, states,
            labels, LABELS, CONSTANT, True, NORMALIZE,
        )  # fmt: skip
        if WEIGHTED:
            up *= tl.load(weights + s, mask=own, other=0.0)
        slope = up[:, None] * tl.exp(log_emission - log_sum[:, None])
        total += tl.where((up == 0.0)[:, None], 0.0, slope)
    label = tl.arange(0, LABELS)
    inside = own[:, None] & (label < labels)[None, :]
    to = out + place[:, None] * labels + label[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def weights_kernel(
    grad, log_emissions, observations, parts, tokens, sources, states, labels, chunk,
    LABELS: tl.constexpr, ROWS: tl.constexpr, CONSTANT: tl.constexpr, SOFT: tl.constexpr,
    NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of the weights of the sources: parts [chunks of tokens, sources]."""
    s = tl.program_id(0)
    number = tl.program_id(1).to(tl.int64)
    last = tl.minimum((number + 1) * chunk, tokens) * states
    total = tl.zeros([ROWS], tl.float64)
    for begin in range(number * chunk * states, last, ROWS):
        at = begin + tl.arange(0, ROWS)
        up, _, log_sum, _, flaw = _upstream(
            grad, log_emissions, observations, at // states, s, at % states, at < last, sources,
            states, labels, LABELS, CONSTANT, SOFT, NORMALIZE,
        )  # fmt: skip
        total += up * log_sum + flaw
    tl.store(parts + number * sources + s, tl.sum(total, 0))


class _Inputs:
    """Dense inputs of the op, sizes and switches."""

    def __init__(self, log_emissions, observations, weights, normalize):
        self.tensors = (log_emissions.contiguous(), observations.contiguous(), weights)
        sources, states, labels = log_emissions.shape[-3:]
        self.tokens = observations.shape[0] * observations.shape[1]
        self.sizes = (self.tokens, sources, states, labels)
        lanes = power_of_two(labels)
        self.lanes = {"LABELS": lanes, "ROWS": max(LANES // lanes, 1)}
        self.constant = {"CONSTANT": log_emissions.dim() == 3}
        self.soft = {"SOFT": observations.is_floating_point()}
        self.weighted = {"WEIGHTED": weights is not None}
        self.normalize = {"NORMALIZE": normalize}

    def arguments(self):
        """Pointers; a missing tensor is any tensor."""
        return tuple(self.tensors[0] if x is None else x for x in self.tensors)

    def programs(self, rows):
        return ceil_div(rows, self.lanes["ROWS"])


def combine_emissions(log_emissions, observations, weights, normalize):
    """Launcher of the op; an id outside [-1, L) gives NaN."""
    c = _Inputs(log_emissions, observations, weights, normalize)
    tokens, _, states, _ = c.sizes
    out = log_emissions.new_empty((*observations.shape[:2], states))
    if tokens:
        forward_kernel[(c.programs(tokens * states),)](
            *c.arguments(), out, *c.sizes, **c.lanes, **c.constant, **c.soft, **c.weighted,
            **c.normalize,
        )  # fmt: skip
    return out


def combine_emissions_backward(grad, log_emissions, observations, weights, normalize):
    """Launcher of the op."""
    c = _Inputs(log_emissions, observations, weights, normalize)
    tokens, sources, states, labels = c.sizes
    grad = grad.contiguous()
    chunks = ceil_div(tokens, CHUNK)
    inputs = c.arguments()
    if c.constant["CONSTANT"]:
        parts = grad.new_empty((chunks, sources, states, labels), dtype=torch.float64)
        if parts.numel():
            constant_matrices_kernel[(c.programs(sources * states), chunks)](
                grad, *inputs, parts, *c.sizes, CHUNK, **c.lanes, **c.soft, **c.weighted,
                **c.normalize,
            )  # fmt: skip
        by_log_emissions = parts.sum(0).to(grad.dtype)
    else:
        by_log_emissions = grad.new_empty(log_emissions.shape)
        if by_log_emissions.numel():
            matrices_kernel[(c.programs(tokens * sources * states),)](
                grad, *inputs, by_log_emissions, *c.sizes, **c.lanes, **c.soft, **c.weighted,
                **c.normalize,
            )  # fmt: skip
    by_observations = grad.new_empty(observations.shape if c.soft["SOFT"] else (0,))
    if by_observations.numel():
        observations_kernel[(c.programs(tokens * sources),)](
            grad, *inputs, by_observations, *c.sizes, **c.lanes, **c.constant, **c.weighted,
            **c.normalize,
        )  # fmt: skip
    if weights is None:
        return by_log_emissions, by_observations, grad.new_empty(0)
    parts = grad.new_empty((chunks, sources), dtype=torch.float64)
    if parts.numel():
        weights_kernel[(sources, chunks)](
            grad, *inputs[:2], parts, *c.sizes, CHUNK, **c.lanes, **c.constant, **c.soft,
            **c.normalize,
        )  # fmt: skip
    return by_log_emissions, by_observations, parts.sum(0).to(grad.dtype)

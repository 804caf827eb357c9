"""Benchmarks of `hmm_viterbi` and `hmm_sample`: paths, judged by their scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oneshot import ops
from oneshot.bench import hmm_loops as loops
from oneshot.bench import hmm_peers as peers
from oneshot.bench.hmm_inputs import (
    LARGE,
    LONG,
    LONGEST_FOR_LOOPS,
    MIDDLE,
    MOST_STATES_FOR_TORCH_STRUCT,
    SMALL,
    Shape,
    memory,
    model,
    name_of,
)
from oneshot.bench.registry import Inputs, Operation, Provider, plain
from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling


def _reference_arguments(inputs: Inputs) -> tuple[Tensor | None, ...]:
    log_trans = inputs["log_trans"]
    four = log_trans[None, None] if log_trans.dim() == 2 else log_trans
    return inputs["log_init"][None], four, inputs["log_emit"], None, None


def _score(inputs: Inputs, path: Tensor) -> Tensor:
    """Score of paths [..., B, T] in float64."""
    log_init, log_trans, log_emit = (
        inputs[key].double() for key in ("log_init", "log_trans", "log_emit")
    )
    batch, steps, _ = log_emit.shape
    row, step = torch.arange(batch).unsqueeze(1), torch.arange(steps)
    edges = (path[..., :-1], path[..., 1:])
    trans = log_trans[edges] if log_trans.dim() == 2 else log_trans[(row, step[:-1], *edges)]
    return log_init[path[..., 0]] + log_emit[row, step, path].sum(-1) + trans.sum(-1)


def _viterbi_ours(inputs: Inputs) -> tuple[Tensor]:
    return (ops.hmm_viterbi(inputs["log_init"], inputs["log_trans"], inputs["log_emit"]).path,)


def _viterbi(shape: Shape, *, shared: bool, quick: bool = False) -> Operation:
    steps, states = shape[1:]
    providers = [
        Provider("oneshot", "ours", plain(_viterbi_ours)),
        Provider("torch loop", "peer", plain(loops.viterbi)),
        Provider("dynamax", "peer", lambda: peers.dynamax("posterior_mode")),
    ]
    if shared:
        providers += [
            Provider("pytorch-crf", "peer", lambda: peers.pytorch_crf("decode")),
            Provider("hmmlearn", "peer", lambda: peers.hmmlearn("viterbi")),
        ]
    elif steps <= LONGEST_FOR_LOOPS and states <= MOST_STATES_FOR_TORCH_STRUCT:
        providers.append(Provider("torch-struct", "peer", lambda: peers.torch_struct("argmax")))
    providers.append(memory(shared, write=False))
    return Operation(
        family="hmm",
        kernel="hmm_viterbi",
        variant="shared" if shared else "per-token",
        shape=name_of(shape),
        dtype="float32",
        mode="forward",
        make=lambda: model(shape, shared),
        oracle=lambda x: reference.hmm_viterbi(*_reference_arguments(x))[:1],
        providers=tuple(providers),
        # In float32, as the peers compute it: near-ties are decided by their rounding.
        judge=lambda inputs, outputs: (_score(inputs, outputs[0]).float(),),
        quick=quick,
    )


def _plausible(inputs: Inputs, outputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """1 if the mean score of the drawn paths is within 6 standard errors of its expectation."""
    exact = {
        key: value.double() if isinstance(value, Tensor) else value for key, value in inputs.items()
    }
    _, gamma, xi = loops.scaled(exact)
    mean = (gamma[:, 0] * exact["log_init"]).sum(-1) + (xi * exact["log_trans"]).sum((1, 2, 3))
    mean += (gamma * exact["log_emit"]).sum((1, 2))
    difference = _score(inputs, outputs[0]) - mean
    error = difference.std() / math.sqrt(difference.numel())
    return ((difference.mean().abs() < 6 * error).double(),)


def _sample(shape: Shape, draws: int, *, quick: bool = False) -> Operation:
    def ours(inputs: Inputs) -> tuple[Tensor]:
        arguments = (inputs["log_init"], inputs["log_trans"], inputs["log_emit"])
        return (ops.hmm_sample(*arguments, seed=0, num_samples=draws),)

    def definition(inputs: Inputs) -> tuple[Tensor]:
        return (hmm_sampling.hmm_sample(*_reference_arguments(inputs), None, draws, 0),)

    providers = [
        Provider("oneshot", "ours", plain(ours)),
        Provider("torch loop", "peer", plain(loops.sample)),
        Provider("dynamax", "peer", lambda: peers.dynamax("posterior_sample")),
    ]
    if draws == 10:  # it draws ten at a time, in 1.1 s at the small shape
        providers.append(Provider("torch-struct", "peer", lambda: peers.torch_struct("sample")))
    providers.append(memory(False, write=False))
    return Operation(
        family="hmm",
        kernel="hmm_sample",
        variant=f"{draws}-draws" if draws > 1 else "1-draw",
        shape=name_of(shape),
        dtype="float32",
        mode="forward",
        make=lambda: model(shape, False, num_samples=draws),
        oracle=definition,
        providers=tuple(providers),
        judge=_plausible,
        quick=quick,
    )


OPERATIONS = [
    _viterbi(SMALL, shared=False, quick=True),
    *(_viterbi(shape, shared=False) for shape in (MIDDLE, LARGE, LONG)),
    *(_viterbi(shape, shared=True) for shape in (SMALL, MIDDLE)),
    _sample(SMALL, 1, quick=True),
    _sample(SMALL, 10),
    _sample(MIDDLE, 1),
    _sample(LARGE, 8),
]

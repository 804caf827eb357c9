"""Benchmarks of the `hmm` family. Shapes are BxTxK; "per-token" has a matrix for every step.

Paths and emissions are in ``hmm_paths.py`` and ``hmm_emissions.py``, the peers in ``hmm_loops.py``
and ``hmm_peers.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot import ops
from oneshot.bench import hmm_emissions, hmm_paths
from oneshot.bench import hmm_loops as loops
from oneshot.bench import hmm_peers as peers
from oneshot.bench.hmm_inputs import (
    GEMM,
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
from oneshot.bench.registry import Call, Inputs, Operation, Provider, plain
from oneshot.reference import hmm as reference

# The reference takes T steps of float64 log sums; beyond this the scaled loop, in float64, which is
# itself held to the reference at the smaller shapes, is the oracle.
MOST_NUMBERS_FOR_REFERENCE = 2**25


def _products(inputs: Inputs) -> tuple[Tensor, ...]:
    """The matrix products of both recursions and of the sum over pairs, nothing around them."""
    matrix, states = inputs["log_trans"], inputs["log_emit"]
    vector = states[:, 0]
    for _ in range(2 * (states.shape[1] - 1)):
        product = vector @ matrix
    return product, states[:, :-1].mT @ states[:, 1:]


def _exponentials(inputs: Inputs) -> tuple[Tensor, ...]:
    """What is needed of potentials in any case, into fresh memory as posteriors are."""
    return inputs["log_trans"].exp(), inputs["log_emit"].exp()


# hmm_posteriors: log Z, gamma, and xi (per token) or its sum over the steps (shared)


def _posteriors_ours(inputs: Inputs) -> tuple[Tensor, ...]:
    shared = inputs["log_trans"].dim() == 2
    found = ops.hmm_posteriors(
        inputs["log_init"],
        inputs["log_trans"],
        inputs["log_emit"],
        xi=not shared,
        xi_sum=shared,
    )
    pairs = found.xi_sum if shared else found.xi
    assert pairs is not None
    return found.log_likelihood, found.gamma, pairs


def _posteriors_reference(inputs: Inputs) -> tuple[Tensor, ...]:
    log_init, log_trans = inputs["log_init"][None], inputs["log_trans"]
    shared = log_trans.dim() == 2
    four = log_trans[None, None] if shared else log_trans
    log_likelihood, gamma, xi, xi_sum = reference.hmm_posteriors(
        log_init, four, inputs["log_emit"], None, None, True, not shared, shared
    )
    return log_likelihood, gamma, xi_sum if shared else xi


def _definition(shape: Shape) -> Call:
    batch, steps, states = shape
    small = batch * steps * states**2 <= MOST_NUMBERS_FOR_REFERENCE
    return _posteriors_reference if small and steps <= LONGEST_FOR_LOOPS else loops.scaled


def posteriors_operation(shape: Shape, *, shared: bool, quick: bool = False) -> Operation:
    """hmm_posteriors with xi (a matrix a token) or its sum (one matrix)."""
    _, steps, states = shape
    providers = [Provider("oneshot", "ours", plain(_posteriors_ours))]
    if shape == SMALL:
        providers.append(Provider("reference", "reference", plain(_posteriors_reference)))
    providers.append(Provider("torch scaled loop", "peer", plain(loops.scaled)))
    if shape != GEMM:  # there it takes 7 s, and hmmlearn 11 s
        providers.append(Provider("dynamax", "peer", lambda: peers.dynamax("two_filter_smoother")))
    if steps <= LONGEST_FOR_LOOPS and shape != GEMM:
        providers.append(Provider("torch log-space loop", "peer", plain(loops.differentiated)))
    if not shared:
        providers.append(Provider("pyro tree", "peer", lambda: peers.pyro_tree("posteriors")))
        if steps <= LONGEST_FOR_LOOPS and states <= MOST_STATES_FOR_TORCH_STRUCT:
            providers.append(
                Provider("torch-struct", "peer", lambda: peers.torch_struct("marginals"))
            )
    if shared and shape != GEMM:
        providers.append(Provider("hmmlearn", "peer", lambda: peers.hmmlearn("posteriors")))
    if shape == GEMM:
        providers.append(Provider("matrix products alone", "floor", plain(_products)))
    providers.append(memory(shared, write=True))
    if not shared:
        providers.append(Provider("exponentials alone", "floor", plain(_exponentials)))
    return Operation(
        family="hmm",
        kernel="hmm_posteriors",
        variant="shared" if shared else "per-token",
        shape=name_of(shape),
        dtype="float32",
        mode="forward",
        make=lambda: model(shape, shared),
        oracle=_definition(shape),
        providers=tuple(providers),
        quick=quick,
    )


# hmm_log_likelihood and its gradient


def _log_likelihood_ours(inputs: Inputs) -> tuple[Tensor]:
    log_init, log_trans, log_emit = (inputs[k] for k in ("log_init", "log_trans", "log_emit"))
    return (ops.hmm_log_likelihood(log_init, log_trans, log_emit),)


def _log_likelihood_oracle(posteriors: Call) -> Call:
    """Log Z with the posteriors for its gradient."""

    def call(inputs: Inputs) -> tuple[Tensor]:
        log_trans, log_emit = inputs["log_trans"], inputs["log_emit"]
        with torch.no_grad():
            log_likelihood, gamma, pairs = posteriors(inputs)
        by_emit = (gamma * (log_emit - log_emit.detach())).flatten(1).sum(1)
        by_trans = (pairs * (log_trans - log_trans.detach())).flatten(1).sum(1)
        return (log_likelihood + by_emit + by_trans,)

    return call


def _log_likelihood(shape: Shape, *, shared: bool, quick: bool = False) -> Operation:
    providers = [Provider("oneshot", "ours", plain(_log_likelihood_ours))]
    if shape not in (LONG, GEMM):  # there they hold 8 GB
        providers.append(Provider("torch log-space loop", "peer", plain(loops.log_likelihood)))
        if shared:
            providers.append(Provider("pytorch-crf", "peer", lambda: peers.pytorch_crf("gradient")))
    if not shared:
        providers.append(Provider("pyro tree", "peer", lambda: peers.pyro_tree("gradient")))
    providers.append(Provider("jax scan + grad", "peer", peers.jax_scan))
    if shape == GEMM:
        providers.append(Provider("matrix products alone", "floor", plain(_products)))
    providers.append(memory(shared, write=True))
    return Operation(
        family="hmm",
        kernel="hmm_log_likelihood",
        variant="shared" if shared else "per-token",
        shape=name_of(shape),
        dtype="float32",
        mode="forward+backward",
        make=lambda: model(shape, shared, cotangents=(torch.randn(shape[0]),)),
        oracle=_log_likelihood_oracle(_definition(shape)),
        providers=tuple(providers),
        differentiate=("log_trans", "log_emit"),
        quick=quick,
    )


OPERATIONS = [
    posteriors_operation(SMALL, shared=False, quick=True),
    *(posteriors_operation(shape, shared=False) for shape in (MIDDLE, LARGE, LONG)),
    posteriors_operation(SMALL, shared=True, quick=True),
    *(posteriors_operation(shape, shared=True) for shape in (MIDDLE, LARGE, LONG, GEMM)),
    _log_likelihood(SMALL, shared=False, quick=True),
    *(_log_likelihood(shape, shared=False) for shape in (MIDDLE, LARGE, LONG)),
    _log_likelihood(SMALL, shared=True, quick=True),
    *(_log_likelihood(shape, shared=True) for shape in (MIDDLE, LARGE, GEMM)),
    *hmm_paths.OPERATIONS,
    *hmm_emissions.OPERATIONS,
]

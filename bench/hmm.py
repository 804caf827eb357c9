"""Benchmarks of the `hmm` family. Shapes are BxTxK; "per-token" has a matrix for every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from oneshot import ops
from oneshot.bench import hmm_loops as loops
from oneshot.bench import hmm_peers as peers
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain
from oneshot.reference import hmm as reference
from oneshot.reference import hmm_emissions, hmm_sampling

Shape = tuple[int, int, int]
SMALL, MIDDLE, LARGE, LONG = (32, 128, 9), (64, 256, 17), (8, 512, 64), (1, 100_000, 8)
GEMM = (32, 256, 512)
# The reference takes T steps of float64 log sums; beyond this the scaled loop, in float64, which is
# itself held to the reference at the smaller shapes, is the oracle.
MOST_NUMBERS_FOR_REFERENCE = 2**25
# Log-space loops and trees lose gamma (error 0.2 and 4e-3) at T = 1e5 in float32, and fail here.
LONGEST_FOR_LOG_SPACE = 1000
# torch-struct holds K^3 temporaries: 2 GB at the middle shape, more than 8 GB at the large one.
MOST_STATES_FOR_TORCH_STRUCT = 17


def _inputs(shape: Shape, shared: bool, **more: object) -> Inputs:
    """A random HMM: log-probabilities, emissions that keep log Z within some nats a step of 0."""
    batch, steps, states = shape
    matrices = (states, states) if shared else (batch, steps - 1, states, states)
    return {
        "log_emit": torch.randn(batch, steps, states) - 0.5,
        "log_init": torch.randn(states).log_softmax(-1),
        "log_trans": torch.randn(matrices).mul_(2).log_softmax(-1),
        **more,
    }


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _numbers(shape: Shape) -> int:
    batch, steps, states = shape
    return batch * steps * states**2


def _memory(shared: bool, *, write: bool) -> Provider:
    """Potentials read once; posteriors, of their size, written once."""
    if not write:
        read = ("log_emit",) if shared else ("log_trans", "log_emit")
        return floor("read potentials", read=read)
    copy = ("log_emit",) if shared else ("log_trans", "log_emit")
    return floor("read potentials, write posteriors", copy=copy)


def _products(inputs: Inputs) -> tuple[Tensor, ...]:
    """The matrix products of both recursions and of the sum over pairs, nothing around them."""
    matrix, states = inputs["log_trans"], inputs["log_emit"]
    vector = states[:, 0]
    for _ in range(2 * (states.shape[1] - 1)):
        product = vector @ matrix
    return product, states[:, :-1].mT @ states[:, 1:]


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
    small = _numbers(shape) <= MOST_NUMBERS_FOR_REFERENCE and shape[1] <= LONGEST_FOR_LOG_SPACE
    return _posteriors_reference if small else loops.scaled


def _posteriors(shape: Shape, *, shared: bool, quick: bool = False) -> Operation:
    _, steps, states = shape
    providers = [Provider("oneshot", "ours", plain(_posteriors_ours))]
    if shape == SMALL:
        providers.append(Provider("reference", "reference", plain(_posteriors_reference)))
    providers.append(Provider("torch scaled loop", "peer", plain(loops.scaled)))
    if shape != GEMM:  # there it takes 7 s, and hmmlearn 11 s
        providers.append(Provider("dynamax", "peer", lambda: peers.dynamax("two_filter_smoother")))
    if steps <= LONGEST_FOR_LOG_SPACE and shape != GEMM:
        providers.append(Provider("torch log-space loop", "peer", plain(loops.differentiated)))
    if not shared and steps <= LONGEST_FOR_LOG_SPACE:
        providers.append(Provider("pyro tree", "peer", peers.pyro_tree))
        if states <= MOST_STATES_FOR_TORCH_STRUCT:
            providers.append(
                Provider("torch-struct", "peer", lambda: peers.torch_struct("marginals"))
            )
    if shared and shape != GEMM:
        providers.append(Provider("hmmlearn", "peer", lambda: peers.hmmlearn("posteriors")))
    if shape == GEMM:
        providers.append(Provider("matrix products alone", "floor", plain(_products)))
    providers.append(_memory(shared, write=True))
    return Operation(
        family="hmm",
        kernel="hmm_posteriors",
        variant="shared" if shared else "per-token",
        shape=_name(shape),
        dtype="float32",
        mode="forward",
        make=lambda: _inputs(shape, shared),
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
    if shape != GEMM:  # there the log-space loops hold 8 GB
        providers.append(Provider("torch log-space loop", "peer", plain(loops.log_likelihood)))
        if shared:
            providers.append(Provider("pytorch-crf", "peer", lambda: peers.pytorch_crf("gradient")))
    providers.append(Provider("jax scan + grad", "peer", peers.jax_scan))
    if shape == GEMM:
        providers.append(Provider("matrix products alone", "floor", plain(_products)))
    providers.append(_memory(shared, write=True))
    return Operation(
        family="hmm",
        kernel="hmm_log_likelihood",
        variant="shared" if shared else "per-token",
        shape=_name(shape),
        dtype="float32",
        mode="forward+backward",
        make=lambda: _inputs(shape, shared, cotangents=(torch.randn(shape[0]),)),
        oracle=_log_likelihood_oracle(_definition(shape)),
        providers=tuple(providers),
        differentiate=("log_trans", "log_emit"),
        quick=quick,
    )


# hmm_viterbi and hmm_sample: paths, judged by their scores


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
    elif steps <= LONGEST_FOR_LOG_SPACE and states <= MOST_STATES_FOR_TORCH_STRUCT:
        providers.append(Provider("torch-struct", "peer", lambda: peers.torch_struct("argmax")))
    providers.append(_memory(shared, write=False))
    return Operation(
        family="hmm",
        kernel="hmm_viterbi",
        variant="shared" if shared else "per-token",
        shape=_name(shape),
        dtype="float32",
        mode="forward",
        make=lambda: _inputs(shape, shared),
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
    if shape == SMALL:
        providers.append(Provider("torch-struct", "peer", lambda: peers.torch_struct("sample")))
    providers.append(_memory(False, write=False))
    return Operation(
        family="hmm",
        kernel="hmm_sample",
        variant=f"{draws}-draws" if draws > 1 else "1-draw",
        shape=_name(shape),
        dtype="float32",
        mode="forward",
        make=lambda: _inputs(shape, False, num_samples=draws),
        oracle=definition,
        providers=tuple(providers),
        judge=_plausible,
        quick=quick,
    )


# combine_emissions, and a training step of the conditional HMM; shapes are BxTxSxL, K = L


def _chmm_inputs(batch: int, steps: int, sources: int, labels: int) -> Inputs:
    """Logits as the networks of a conditional HMM emit them, and soft observations.

    The observations of a token sum to 6, which keeps log Z near 0 and changes nothing else. With a
    sum of 1, log Z is -3500 at T = 400 and float32 loops in log space get gradients wrong by 1e-3.
    """
    return {
        "emission_logits": torch.randn(batch, steps, sources, labels, labels) * 2,
        "trans_logits": torch.randn(batch, steps - 1, labels, labels) * 2,
        "observations": torch.randn(batch, steps, sources, labels).mul(2).softmax(-1) * 6,
        "log_init": torch.randn(labels).log_softmax(-1),
        "cotangents": (torch.randn(batch),),
    }


def _combine_ours(inputs: Inputs) -> tuple[Tensor]:
    found = ops.combine_emissions(inputs["emission_logits"], inputs["observations"], normalize=True)
    return (found,)


def _combine_reference(inputs: Inputs) -> tuple[Tensor]:
    return (
        hmm_emissions.combine_emissions(
            inputs["emission_logits"], inputs["observations"], None, True
        ),
    )


def _combine_formula(inputs: Inputs) -> tuple[Tensor]:
    """In probability space, the cheapest in plain torch."""
    matrices = inputs["emission_logits"].softmax(-1)
    return ((matrices @ inputs["observations"].unsqueeze(-1)).squeeze(-1).log().sum(2),)


def _combine_log_space(inputs: Inputs) -> tuple[Tensor]:
    return loops.chmm_potentials(inputs)[1:]


def _combine(*sizes: int, quick: bool) -> Operation:
    batch, steps, _, labels = sizes

    def make() -> Inputs:
        inputs = _chmm_inputs(*sizes)
        inputs["cotangents"] = (torch.randn(batch, steps, labels),)
        # What does not matter here must not cost the log-space peer anything.
        inputs["trans_logits"] = torch.zeros(batch, 0, labels, labels)
        return inputs

    return Operation(
        family="hmm",
        kernel="combine_emissions",
        shape="x".join(map(str, sizes)),
        dtype="float32",
        mode="forward+backward",
        make=make,
        oracle=_combine_reference,
        providers=(
            Provider("oneshot", "ours", plain(_combine_ours)),
            Provider("torch", "peer", plain(_combine_formula)),
            Provider("torch log space", "peer", plain(_combine_log_space)),
            Provider("torch.compile", "peer", compiled(_combine_formula)),
            floor(
                "read + copy to fresh memory", read=("emission_logits",), copy=("emission_logits",)
            ),
        ),
        differentiate=("emission_logits",),
        quick=quick,
    )


def _step_likelihood(inputs: Inputs) -> tuple[Tensor]:
    log_trans = inputs["trans_logits"].log_softmax(-1)
    return (ops.hmm_log_likelihood(inputs["log_init"], log_trans, *_combine_ours(inputs)),)


def _step_expected(inputs: Inputs) -> tuple[Tensor]:
    """What the public code maximises, gradients through the posteriors included."""
    log_init, log_trans = inputs["log_init"], inputs["trans_logits"].log_softmax(-1)
    (log_emit,) = _combine_ours(inputs)
    found = ops.hmm_posteriors(log_init, log_trans, log_emit, xi=True)
    assert found.xi is not None
    return (
        (found.gamma[:, 0] * log_init).sum(-1)
        + (found.gamma * log_emit).sum((1, 2))
        + (found.xi * log_trans).sum((1, 2, 3)),
    )


def _step(
    variant: str,
    ours: Call,
    loop: Callable[[Inputs], tuple[Tensor]],
    in_place: Call,
    *sizes: int,
    quick: bool,
) -> Operation:
    """Logits of all matrices -> objective -> gradients, without the networks before them."""
    return Operation(
        family="hmm",
        kernel="hmm_posteriors" if "expected" in variant else "hmm_log_likelihood",
        variant=variant,
        shape="x".join(map(str, sizes)),
        dtype="float32",
        mode="forward+backward",
        make=lambda: _chmm_inputs(*sizes),
        oracle=loop,
        providers=(
            Provider("oneshot", "ours", plain(ours)),
            Provider("torch loop", "peer", plain(loop)),
            Provider("torch loop in place", "peer", plain(in_place)),
            floor("read + copy logits", copy=("emission_logits", "trans_logits")),
        ),
        differentiate=("trans_logits", "emission_logits"),
        quick=quick,
    )


def _steps(*sizes: int, quick: bool) -> list[Operation]:
    likelihood = (
        _step_likelihood, loops.chmm_log_likelihood, loops.chmm_log_likelihood_in_place,
    )  # fmt: skip
    expected = _step_expected, loops.chmm_expected, loops.chmm_expected_in_place
    return [
        _step("chmm-likelihood", *likelihood, *sizes, quick=quick),
        _step("chmm-expected-likelihood", *expected, *sizes, quick=quick),
    ]


OPERATIONS = [
    _posteriors(SMALL, shared=False, quick=True),
    *(_posteriors(shape, shared=False) for shape in (MIDDLE, LARGE, LONG)),
    _posteriors(SMALL, shared=True, quick=True),
    *(_posteriors(shape, shared=True) for shape in (MIDDLE, LARGE, LONG, GEMM)),
    _log_likelihood(SMALL, shared=False, quick=True),
    *(_log_likelihood(shape, shared=False) for shape in (MIDDLE, LARGE)),
    _log_likelihood(SMALL, shared=True, quick=True),
    *(_log_likelihood(shape, shared=True) for shape in (MIDDLE, LARGE, GEMM)),
    _viterbi(SMALL, shared=False, quick=True),
    *(_viterbi(shape, shared=False) for shape in (MIDDLE, LARGE, LONG)),
    *(_viterbi(shape, shared=True) for shape in (SMALL, MIDDLE)),
    _sample(SMALL, 1, quick=True),
    _sample(MIDDLE, 1),
    _sample(LARGE, 8),
    _combine(16, 400, 9, 5, quick=True),
    *_steps(16, 100, 5, 5, quick=True),
    *_steps(16, 400, 5, 5, quick=False),
]

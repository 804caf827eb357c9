"""The CUDA kernels of combine_emissions on the emulator, against the reference in float64."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from kernel_inputs import INF, NAN, wide
from launchers.hmm_emissions import combine_emissions, combine_emissions_backward

from oneshot.reference import hmm_emissions as reference


class Evidence(NamedTuple):
    log_emissions: torch.Tensor
    observations: torch.Tensor
    weights: torch.Tensor | None
    normalize: bool


def make(batch, steps, sources, states, labels, soft, constant, weighted, normalize=False,
         dtype=torch.float32):  # fmt: skip
    """Abstentions, forbidden labels, a source of weight 0 and NaN where nothing looks."""
    shape = (sources, states, labels) if constant else (batch, steps, sources, states, labels)
    log_emissions = torch.randn(shape, dtype=dtype) * 3
    log_emissions[torch.rand(shape) < 0.1] = -INF
    log_emissions[..., 0] = 0.5  # so that no row is all -inf
    if soft:
        observations = torch.rand(batch, steps, sources, labels, dtype=dtype)
        observations[torch.rand(observations.shape) < 0.3] = 0.0
        observations[torch.rand(observations.shape[:3]) < 0.2] = 0.0
        abstains = (observations == 0).all(-1)
    else:
        observations = torch.randint(-1, labels, (batch, steps, sources))
        abstains = observations == -1
    if not constant:
        log_emissions[abstains] = NAN
    weights = torch.rand(sources, dtype=dtype) + 0.5 if weighted else None
    if weighted:
        weights[0] = 0.0
    return Evidence(log_emissions, observations, weights, normalize)


def check(e, seed=0):
    double = e.log_emissions.dtype == torch.float64
    atol, rtol = (1e-11, 1e-11) if double else (1e-6, 1e-6)
    exact = Evidence(*map(wide, e[:3]), e.normalize)
    got, want = combine_emissions(*e, seed=seed), reference.combine_emissions(*exact)
    torch.testing.assert_close(got.double(), want, atol=atol, rtol=rtol, equal_nan=True)
    grad = torch.randn(got.shape).to(got.dtype)
    grad[torch.rand(grad.shape) < 0.2] = 0.0
    grads = combine_emissions_backward(grad, *e, seed=seed + 1)
    right = reference.combine_emissions_backward(grad.double(), *exact)
    for own, value in zip(grads, right, strict=True):
        torch.testing.assert_close(own.double(), value, atol=10 * atol, rtol=rtol, equal_nan=True)
    return got


OPTIONS = list(itertools.product((False, True), repeat=4))


@pytest.mark.parametrize(("soft", "constant", "weighted", "normalize"), OPTIONS)
def test_every_form(soft, constant, weighted, normalize):
    check(make(2, 5, 3, 4, 5, soft, constant, weighted, normalize))


@pytest.mark.gpu_free
@pytest.mark.parametrize(("soft", "constant", "weighted", "normalize"), OPTIONS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 7, 2, 1, 9), (1, 300, 3, 9, 2)])
def test_full_sweep(sizes, soft, constant, weighted, normalize):
    check(make(*sizes, soft, constant, weighted, normalize, torch.float64), seed=sizes[1])
    check(make(*sizes, soft, constant, weighted, normalize))


@pytest.mark.parametrize("constant", [False, True])
def test_no_tokens(constant):
    e = make(0, 3, 2, 3, 4, True, constant, True)
    assert combine_emissions(*e).shape == (0, 3, 3)
    by_matrix, _, by_weights = combine_emissions_backward(torch.zeros(0, 3, 3), *e)
    assert (by_matrix == 0).all()
    assert torch.equal(by_weights, torch.zeros(2))


def test_nan_passes_only_where_it_is_looked_at():
    e = make(2, 4, 2, 3, 3, True, False, True)
    e.log_emissions[0, 1, 1, 2, 0], e.observations[0, 1, 1, 0] = NAN, 0.0
    assert not combine_emissions(*e).isnan().any()
    e.observations[0, 1, 1, 0] = 0.5
    got = check(e)
    assert got.isnan().nonzero().tolist() == [[0, 1, 2]]
    grad = torch.ones(2, 4, 3)
    grad[0, 1, 2] = 0.0
    for x in combine_emissions_backward(grad, *e):
        assert not x.isnan().any()


def test_a_label_ruled_out_is_a_constant():
    e = make(1, 2, 1, 2, 2, False, False, False)
    e.observations.fill_(1)
    e.log_emissions.fill_(0.25)
    e.log_emissions[0, 1, 0, 0, 1] = -INF
    assert combine_emissions(*e)[0, 1].tolist() == [-INF, 0.25]
    by_matrix, _, _ = combine_emissions_backward(torch.ones(1, 2, 2), *e)
    assert by_matrix[0, 1, 0].tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("label", [-2, 5])
def test_a_label_outside_is_refused(label):
    e = make(2, 3, 2, 3, 5, False, True, False)
    e.observations[1, 2, 0] = label
    with pytest.raises(RuntimeError, match="refuses its input"):
        combine_emissions(*e)
    with pytest.raises(RuntimeError, match="refuses its input"):
        combine_emissions_backward(torch.ones(2, 3, 3), *e)

"""Entropy of whole paths against the enumeration and closed forms."""

import math

import pytest
import torch
from hmm_oracle import INF, TRANS, all_paths, leaves, make, sequences

from oneshot import ops


def by_enumeration(inputs):
    """-sum p log p over all paths; differentiable."""
    rows = []
    for sequence in sequences(inputs):
        rows.append(torch.zeros((), dtype=torch.float64))
        if sequence[2].shape[0]:
            score = all_paths(*sequence).score
            if score.max() > -INF:
                p = score[score > -INF].softmax(0)
                rows[-1] = -(p * p.log()).sum()
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TRANS)
@pytest.mark.parametrize(("steps", "states"), [(1, 1), (1, 5), (4, 1), (2, 3), (6, 4)])
def test_against_every_path(steps, states, kind, dtype):
    for forbidden in (0.0, 0.35):
        inputs = make(6, steps, states, kind, dtype=dtype, forbidden=forbidden)
        copy, tensors = leaves(inputs)
        twin, twins = leaves(inputs)
        entropy, expected = ops.hmm_entropy(**copy), by_enumeration(twin)
        assert entropy.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(entropy.double(), expected, rtol=tolerance, atol=tolerance)
        upstream = torch.randn(6)
        (entropy * upstream).sum().backward()
        loss = (expected * upstream).sum()
        grads = torch.autograd.grad(loss, twins, allow_unused=True) if loss.requires_grad else []
        for x, grad in zip(tensors, grads or [None] * 4, strict=True):
            grad = torch.zeros_like(x) if grad is None else grad
            torch.testing.assert_close(x.grad, grad, rtol=10 * tolerance, atol=10 * tolerance)


def test_independent_steps_add_up():
    """Potts chain without coupling: T log K; every chain: first state plus T - 1 equal moves."""
    steps, states = 3000, 6
    coupling = torch.tensor([0.0, 2.0])
    matrix = coupling[:, None, None] * torch.eye(states)
    for offset in (0.0, 300.0):  # an offset moves log Z by a million, the entropy not at all
        entropy = ops.hmm_entropy(
            torch.zeros(states), matrix, torch.full((2, steps, states), offset),
            trans_axis="sequence",
        )  # fmt: skip
        move = torch.tensor([2.0] + [0.0] * (states - 1), dtype=torch.float64).softmax(0)
        per_step = -float((move * move.log()).sum())
        expected = [steps * math.log(states), math.log(states) + (steps - 1) * per_step]
        torch.testing.assert_close(entropy, torch.tensor(expected), rtol=2e-7, atol=0)


def test_gradient_of_a_long_chain():
    """Descending it sharpens: against finite differences along one direction, float64."""
    inputs = make(2, 400, 4, "shared", dtype=torch.float64)
    inputs["lengths"] = torch.tensor([400, 377])
    copy, tensors = leaves(inputs)
    ops.hmm_entropy(**copy).sum().backward()
    step = 1e-4
    names = ("log_init", "log_trans", "log_emit", "log_final")
    direction = {k: torch.randn_like(inputs[k]) for k in names}
    ends = [
        ops.hmm_entropy(**{**inputs, **{k: inputs[k] + s * direction[k] for k in names}}).sum()
        for s in (-step, step)
    ]
    slope = (ends[1] - ends[0]) / (2 * step)
    ours = sum((x.grad * direction[k]).sum() for k, x in zip(names, tensors, strict=True))
    torch.testing.assert_close(ours, slope, rtol=1e-6, atol=1e-6)


def test_a_certain_path_has_no_entropy():
    inputs = make(3, 30, 5, forbidden=0.0)
    inputs["log_emit"][:, :, 1:] = -INF
    entropy = ops.hmm_entropy(**inputs)
    torch.testing.assert_close(entropy, torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats(dtype):
    inputs = make(3, 9, 4, dtype=dtype)
    copy, tensors = leaves(inputs)
    entropy = ops.hmm_entropy(**copy)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), by_enumeration(inputs), rtol=1e-6, atol=1e-6)
    entropy.sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in tensors)

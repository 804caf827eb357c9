"""The CUDA kernels of `hmm` on the emulator: posteriors and their gradient against float64."""

from __future__ import annotations

import pytest
import torch
from hmm_device import INF, NAN, make, posteriors, posteriors_backward, wide

from oneshot.reference import hmm as reference

FORMS = ("tokens", "steps", "sequences", "shared")


def close(got, want, atol, rtol=0.0):
    torch.testing.assert_close(got.double(), want.double(), atol=atol, rtol=rtol, equal_nan=True)


def check(inputs, atol=None, seed=0):
    """Log-likelihood alone, all posteriors, and their gradient."""
    double = inputs[2].dtype == torch.float64
    atol = atol or (1e-11 if double else 2e-6)
    got = posteriors(inputs, seed=seed)
    want = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    for name, mine, exact in zip(("Z", "gamma", "xi", "xi_sum"), got, want, strict=True):
        assert mine.dtype == inputs[2].dtype
        close(mine, exact, atol, 1e-12 if double else 1e-6), name
    (only,) = posteriors(inputs, False, False, False, seed=seed + 1)[:1]
    assert torch.equal(only.nan_to_num(7), got[0].nan_to_num(7))

    up = [torch.randn(x.shape).to(inputs[2].dtype) for x in got]
    for given in (up, [None, up[1], None, up[3]]):
        mine = posteriors_backward(given, inputs, seed=seed + 2)
        exact = reference.hmm_posteriors_backward(*map(wide, given), *map(wide, inputs))
        for own, value in zip(mine, exact, strict=True):
            if own is not None:
                close(own, value, 1e-10 if double else 1e-5, 1e-10 if double else 1e-6)
    return got


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_transitions(form):
    check(make(4, 12, 5, form))

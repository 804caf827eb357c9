"""Long sequences of the CUDA kernels of `hmm`: the scan over time, against float64."""

from __future__ import annotations

import pytest
import torch
from hmm_device import not_scanned, posteriors, sample
from kernel_inputs import INF, NAN, wide
from kernel_inputs import chains as make

from oneshot.reference import hmm as reference
from oneshot.reference import hmm_sampling


def close(got, want, atol=2e-6, rtol=1e-6):
    torch.testing.assert_close(got.double(), want.double(), atol=atol, rtol=rtol, equal_nan=True)


def long(lengths, states, form="tokens", dtype=torch.float32):
    """Chains of these lengths; NaN behind their ends."""
    inputs = make(len(lengths), max(lengths), states, form, lengths=False, dtype=dtype)
    inputs[3] = torch.tensor(lengths)
    behind = torch.arange(max(lengths)) >= inputs[3][:, None]
    inputs[2][behind] = NAN
    if form == "tokens":
        inputs[1][behind[:, 1:]] = NAN
    return inputs


def check(inputs, atol=2e-6, rtol=1e-6, seed=0):
    got = posteriors(inputs, seed=seed)
    want = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    for mine, exact in zip(got, want, strict=True):
        close(mine, exact, atol, rtol)
    (only,) = posteriors(inputs, False, False, False, seed=seed + 1)[:1]
    assert torch.equal(only.nan_to_num(7), got[0].nan_to_num(7))
    return got


def test_a_scan_gives_the_posteriors():
    inputs = long([2305, 2049, 2048, 40, 0], 3)
    assert not_scanned(inputs).tolist() == [False, False, True, True, True]
    check(inputs)


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["tokens", "steps", "sequences", "shared"])
@pytest.mark.parametrize("states", [1, 2, 9, 16])
def test_scans_of_every_form(states, form, dtype):
    inputs = long([2500, 2306], states, form, dtype)
    assert not not_scanned(inputs).any()
    double = dtype == torch.float64
    check(inputs, *((1e-11, 1e-12) if double else (2e-6, 1e-6)), seed=states)


@pytest.mark.gpu_free
def test_a_scan_depends_on_the_sequence_alone():
    inputs = long([2600, 2310, 2100], 2)
    together = posteriors(inputs, seed=3)
    alone = posteriors([x[1:2] for x in inputs[:3]] + [inputs[3][1:2], inputs[4][1:2]], seed=4)
    cut = [inputs[0][1:2], inputs[1][1:2, :2309], inputs[2][1:2, :2310], None, inputs[4][1:2]]
    for other in (alone, posteriors(cut, seed=5)):
        assert torch.equal(together[0][1:2], other[0])
        assert torch.equal(together[1][1, :2310], other[1][0, :2310])
        assert torch.equal(together[2][1, :2309], other[2][0, :2309])
        assert torch.equal(together[3][1], other[3][0])


def test_dead_states_and_nothing_possible():
    """A state that nothing leaves sets no scale; -inf is exact."""
    inputs = long([2200, 2100, 2100], 4)
    _, trans, emit, _, _ = inputs
    trans[0, :, 3, :], emit[0, :, 3] = -INF, emit[0, :, 3] + 20
    trans[1, 700] = -INF
    trans[2, 1900, 0, 0] = NAN
    assert not_scanned(inputs).tolist() == [False, False, True]
    got = check(inputs)
    assert got[0][1] == -INF
    assert (got[1][1] == 0).all()
    assert got[0].isnan().tolist() == [False, False, True]


@pytest.mark.gpu_free
def test_what_a_scan_cannot_hold_is_swept_as_a_whole():
    """Two halves of the states that never meet, and drift apart by 2 nats a step."""
    inputs = long([2050, 2050], 4)
    _, trans, emit, _, _ = inputs
    trans *= 0.1
    emit *= 0.1
    trans[:, :, :2, 2:], trans[:, :, 2:, :2] = -INF, -INF
    emit[0, :1000, :2] -= 2
    emit[0, 1000:2000, 2:] -= 2
    emit[1, 500, :2] -= 60
    emit[1, 1500, 2:] -= 60
    assert not_scanned(inputs).tolist() == [True, False]
    check(inputs, 1e-5)


@pytest.mark.gpu_free
def test_samples_after_a_scan():
    inputs = long([2100, 12], 3)
    paths = sample(inputs, None, 2, 9)
    assert torch.equal(paths[:, 1, 12:], torch.full((2, 2088), -1))
    short = [x[1:2] for x in inputs]
    short[1], short[2] = short[1][:, :11], short[2][:, :12]
    ids = torch.tensor([1])
    assert torch.equal(sample(short, ids, 2, 9, seed=2)[:, 0], paths[:, 1, :12])
    want = hmm_sampling.hmm_sample(*inputs, None, 2, 9)
    assert (paths == want).float().mean() > 0.999

"""What only the Triton kernels of `hmm` promise; the rest is in tests/parity."""

import pytest
import torch
from kernel_inputs import INF, NAN, wide
from kernel_inputs import chains as make

from oneshot.reference import hmm as reference
from oneshot.reference import hmm_emissions as emissions_reference
from oneshot.triton_kernels import hmm as kernels
from oneshot.triton_kernels import hmm_emissions, hmm_passes


def close(got, true, atol=5e-6, rtol=5e-6):
    torch.testing.assert_close(got.double(), true.double(), atol=atol, rtol=rtol, equal_nan=True)


def test_chunks_of_summed_steps(monkeypatch):
    monkeypatch.setattr(hmm_passes, "CHUNK", 4)
    inputs = make(1, 14, 2, "shared")
    got = kernels.hmm_posteriors(*inputs, False, False, True)
    close(got[3], reference.hmm_posteriors(*map(wide, inputs), False, False, True)[3], 3e-5)


def test_an_id_that_is_no_label_is_loud():
    log_emissions = torch.randn(2, 3, 4)
    for bad in (-2, 4, 2**40):
        ids = torch.tensor([[[1, -1], [0, bad], [3, 2]]])
        got = hmm_emissions.combine_emissions(log_emissions, ids, None, False)
        assert got.isnan().any(-1).tolist() == [[False, True, False]]
        grads = hmm_emissions.combine_emissions_backward(
            torch.ones(got.shape), log_emissions, ids, None, False
        )
        assert grads[0].isnan().any()


def test_more_tokens_than_one_sum_takes(monkeypatch):
    monkeypatch.setattr(hmm_emissions, "CHUNK", 3)
    monkeypatch.setattr(hmm_emissions, "LANES", 8)
    inputs = torch.randn(3, 2, 5), torch.rand(2, 5, 3, 5), torch.rand(3), True
    grad = torch.randn(2, 5, 2)
    got = hmm_emissions.combine_emissions_backward(grad, *inputs)
    want = emissions_reference.combine_emissions_backward(wide(grad), *map(wide, inputs))
    for mine, true in zip(got, want, strict=True):
        close(mine, true)


def test_no_gradient_passes_where_none_comes_from():
    """Padding: NaN in a matrix or a weight whose upstream gradient is 0."""
    log_emissions, x = torch.randn(1, 2, 3, 2, 4), torch.rand(1, 2, 3, 4)
    weights, grad = torch.rand(3), torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    want = hmm_emissions.combine_emissions_backward(grad, log_emissions, x, weights, False)
    log_emissions[0, 1], x[0, 1] = NAN, NAN
    got = hmm_emissions.combine_emissions_backward(grad, log_emissions, x, weights, False)
    for mine, true in zip(got, want, strict=True):
        assert torch.equal(mine, true)


def test_a_length_outside_the_steps_is_loud():
    init, trans, emit, _, final = make(3, 6, 3, lengths=False)
    got = kernels.hmm_posteriors(
        init, trans, emit, torch.tensor([6, 7, -1]), final, True, True, True
    )
    for x in got:
        assert x.isnan().flatten(1 if x.dim() > 1 else 0).reshape(3, -1).all(1).tolist() == [
            False, True, True,
        ]  # fmt: skip
    path, score = kernels.hmm_viterbi(init, trans, emit, torch.tensor([6, 7, -1]), final)
    assert score.isnan().tolist() == [False, True, True]
    assert (path[1:] == -1).all()


def test_ties_go_to_the_lowest_state():
    inputs = [torch.zeros(1, 3), torch.zeros(1, 1, 3, 3), torch.zeros(2, 5, 3), None, None]
    path, score = kernels.hmm_viterbi(*inputs)
    assert (path == 0).all()
    assert (score == 0).all()


@pytest.mark.parametrize("states", [4, 130])
def test_neighbours_and_padding_change_no_bit(states):
    init, trans, emit, _, final = make(3, 4, states)
    emit, trans = emit.nan_to_num(0.0, 0.0, 0.0), trans.nan_to_num(0.0)
    lengths = torch.tensor([4, 2, 3])
    together = kernels.hmm_posteriors(init, trans, emit, lengths, final, True, True, True)
    one = slice(1, 2)
    alone = kernels.hmm_posteriors(
        init[one], trans[one, :1], emit[one, :2], None, final[one], True, True, True
    )
    assert torch.equal(together[0][one], alone[0])
    assert torch.equal(together[1][one, :2], alone[1])
    assert torch.equal(together[2][one, :1], alone[2])
    assert torch.equal(together[3][one], alone[3])


def test_samples_of_nothing_possible():
    init, trans, emit, _, final = make(2, 4, 3, lengths=False)
    emit[1] = -INF
    paths = kernels.hmm_sample(init, trans, emit, None, final, None, 2, 1)
    assert (paths[:, 1] == -1).all()
    assert (paths[:, 0] >= 0).all()

"""What only the Triton kernels of `hmm` promise; the rest is in tests/parity."""

import torch
from kernel_inputs import INF, wide
from kernel_inputs import chains as make

from oneshot.reference import hmm as reference
from oneshot.triton_kernels import hmm as kernels


def close(got, true, atol=5e-6, rtol=5e-6):
    torch.testing.assert_close(got.double(), true.double(), atol=atol, rtol=rtol, equal_nan=True)


def test_chunks_of_summed_steps(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 4)
    inputs = make(1, 14, 2, "shared")
    got = kernels.hmm_posteriors(*inputs, False, False, True)
    close(got[3], reference.hmm_posteriors(*map(wide, inputs), False, False, True)[3], 3e-5)


def test_more_states_than_a_block_holds_go_to_the_reference():
    inputs = make(2, 3, 130)
    got = kernels.hmm_posteriors(*inputs, True, False, False)
    close(got[1], reference.hmm_posteriors(*map(wide, inputs), True, False, False)[1])


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


def test_neighbours_and_padding_change_no_bit():
    init, trans, emit, _, final = make(3, 9, 4)
    emit, trans = emit.nan_to_num(0.0, 0.0, 0.0), trans.nan_to_num(0.0)
    lengths = torch.tensor([9, 5, 6])
    together = kernels.hmm_posteriors(init, trans, emit, lengths, final, True, True, True)
    one = slice(1, 2)
    alone = kernels.hmm_posteriors(
        init[one], trans[one, :4], emit[one, :5], None, final[one], True, True, True
    )
    assert torch.equal(together[0][one], alone[0])
    assert torch.equal(together[1][one, :5], alone[1])
    assert torch.equal(together[2][one, :4], alone[2])
    assert torch.equal(together[3][one], alone[3])


def test_samples_of_nothing_possible():
    init, trans, emit, _, final = make(2, 4, 3, lengths=False)
    emit[1] = -INF
    paths = kernels.hmm_sample(init, trans, emit, None, final, None, 2, 1)
    assert (paths[:, 1] == -1).all()
    assert (paths[:, 0] >= 0).all()

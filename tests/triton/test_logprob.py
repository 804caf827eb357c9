"""What only the Triton kernels of `logprob` promise; the rest is in tests/parity."""

import pytest
import torch

from oneshot.triton_kernels import logprob as kernels

NAN = float("nan")


def test_nearly_certain_token_keeps_its_digits():
    logits = torch.zeros(2, 1000)
    logits[:, 3] = 30.0
    targets = torch.tensor([3, 4])
    logprobs, _, stats = kernels.token_logprobs_and_entropy(
        logits, targets, None, None, 1.0, False
    )  # fmt: skip
    grad = kernels.token_logprobs_and_entropy_backward(
        torch.ones(2), None, logits, targets, None, None, logprobs, stats, 1.0
    )
    exact = -torch.expm1(torch.log_softmax(logits[0].double(), -1)[3])
    assert abs(grad[0, 3].item() / exact.item() - 1) < 1e-2  # in float32 sums it would be 0


def test_logits_that_are_turned_are_read_and_not_overwritten():
    turned = torch.randn(63, 4).T
    got = kernels.token_logprobs_and_entropy(
        turned, torch.arange(4), None, None, 1.0, False
    )  # fmt: skip
    want = torch.log_softmax(turned.double(), -1).diagonal()[:4]
    torch.testing.assert_close(got[0].double(), want, rtol=2e-6, atol=2e-6)
    with pytest.raises(ValueError, match="last stride of 1"):
        kernels.token_logprobs_and_entropy_backward_(
            torch.ones(4), None, turned, torch.arange(4), None, None, got[0], got[2], 1.0
        )


def test_overwriting_a_slice_leaves_the_rest():
    whole = torch.randn(3, 6, 80)
    before, view = whole.clone(), whole[:, :-1, :63]
    targets = torch.randint(63, (3, 5))
    logprobs, _, stats = kernels.token_logprobs_and_entropy(view, targets, None, None, 1.0, False)
    kernels.token_logprobs_and_entropy_backward_(
        torch.ones(3, 5), None, view, targets, None, None, logprobs, stats, 1.0
    )
    assert torch.equal(whole[:, -1], before[:, -1])
    assert torch.equal(whole[..., 63:], before[..., 63:])
    assert not torch.equal(view, before[:, :-1, :63])


def test_target_outside_the_vocabulary_is_loud():
    logits, targets = torch.randn(3, 63), torch.tensor([2, 63, -1])
    logprobs, entropy, stats = kernels.token_logprobs_and_entropy(
        logits, targets, None, None, 1.0, False
    )  # fmt: skip
    assert logprobs.isnan().tolist() == [False, True, True]
    assert entropy.isfinite().all()
    grad = kernels.token_logprobs_and_entropy_backward(
        torch.ones(3), None, logits, targets, None, None, logprobs, stats, 1.0
    )
    assert grad.isnan().all(1).tolist() == [False, True, True]


def test_neighbours_change_no_bit():
    logits, targets = torch.randn(5, 9000) * 4, torch.randint(9000, (5,))
    together = kernels.token_logprobs_and_entropy(logits, targets, None, None, 1.0, False)
    alone = kernels.token_logprobs_and_entropy(logits[2:3], targets[2:3], None, None, 1.0, False)
    for whole, part in zip(together, alone, strict=True):
        assert torch.equal(whole[2:3], part)


def test_rows_without_gradient_are_zero_even_where_the_logits_are_nan():
    logits = torch.randn(2, 63)
    logits[0, 5] = NAN
    targets = torch.tensor([1, 2])
    logprobs, _, stats = kernels.token_logprobs_and_entropy(
        logits, targets, None, None, 1.0, False
    )  # fmt: skip
    grad = kernels.token_logprobs_and_entropy_backward(
        torch.tensor([0.0, 1.0]), None, logits, targets, None, None, logprobs, stats, 1.0
    )
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).all()

"""Interpreted Triton kernels of the `logprob` family against the reference in float64."""

import pytest
import torch

from oneshot.reference import logprob as reference
from oneshot.triton_kernels import logprob as kernels

INF, NAN = float("inf"), float("nan")


def wide(x):
    return x.double() if x is not None and x.is_floating_point() else x


def close(got, expected, like):
    tolerance = {"rtol": 2e-6, "atol": 2e-6}
    if like in (torch.bfloat16, torch.float16):
        tolerance = {"rtol": torch.finfo(like).eps, "atol": 1e-6}
    torch.testing.assert_close(got.double(), expected, equal_nan=True, **tolerance)


def check(logits, targets, mask=None, keep_mask=None, temperature=1.0):
    """Forward, backward and backward in place against the definition in float64."""
    inputs = (targets, mask, keep_mask)
    got = kernels.token_logprobs_and_entropy(logits, *inputs, temperature, False)
    expected = reference.token_logprobs_and_entropy(wide(logits), *inputs, temperature, False)
    for mine, true in zip(got[:2], expected[:2], strict=True):
        assert mine.dtype == torch.float32
        close(mine, true, torch.float32)
    up = torch.randn(got[0].shape), torch.randn(got[1].shape)
    for grads in (up, (up[0], None), (None, up[1])):
        saved = (got[0], got[2], temperature)
        true = reference.token_logprobs_and_entropy_backward(
            *map(wide, grads), wide(logits), *inputs, expected[0], expected[2], temperature
        )
        mine = kernels.token_logprobs_and_entropy_backward(*grads, logits, *inputs, *saved)
        assert mine.dtype == logits.dtype
        close(mine, true, logits.dtype)
        over = logits.clone()
        kernels.token_logprobs_and_entropy_backward_(*grads, over, *inputs, *saved)
        assert torch.equal(over.nan_to_num(7), mine.nan_to_num(7))
    return got, mine


FULL = pytest.mark.gpu_free


@pytest.mark.parametrize(
    "vocab", [1, 63, 8193, *(pytest.param(n, marks=FULL) for n in (7, 1000, 1025, 8192))]
)
def test_vocabularies(vocab):
    check(torch.randn(3, vocab) * 4, torch.randint(vocab, (3,)), temperature=0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats(dtype):
    check((torch.randn(5, 1000) * 4).to(dtype), torch.randint(1000, (5,)))


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 7, 63])
def test_full_vocabulary(dtype, rows):
    check((torch.randn(rows, 50257) * 4).to(dtype), torch.randint(50257, (rows,)), temperature=1.3)


@pytest.mark.parametrize("count", [0, 3, pytest.param(40, marks=FULL)])
def test_several_targets_some_twice(count):
    check(torch.randn(2, 3, 50) * 4, torch.randint(50, (2, 3, count)))


def test_masked_rows_hold_garbage_and_are_never_read():
    logits = torch.randn(4, 5, 63)
    mask = torch.rand(4, 5) < 0.5
    mask[0, 0], mask[0, 1] = True, False
    logits[~mask] = torch.tensor([NAN, INF, -INF]).repeat(21)
    targets = torch.randint(63, (4, 5))
    targets[~mask] = 10**12
    got, grad = check(logits, targets, mask=mask)
    assert (got[0][~mask] == 0).all()
    assert (grad[~mask] == 0).all()


def test_keep_mask_broadcasts():
    logits = torch.randn(3, 4, 63) * 3
    keep = torch.rand(3, 1, 63) < 0.5
    keep[..., 5] = True
    targets = torch.full((3, 4, 2), 5)
    targets[..., 1] = torch.randint(63, (3, 4))  # some outside the keep-mask: -inf, no gradient
    check(logits, targets, keep_mask=keep)


def test_infinite_logits():
    logits = torch.randn(6, 9000)
    logits[0, :8500] = -INF  # a whole tile
    logits[1, 10:] = -INF
    logits[2, 8999] = -INF
    logits[3] = -INF  # NaN, as in log_softmax
    logits[4, 8800] = INF
    logits[5, 3] = NAN
    targets = torch.tensor([8600, 3, 8999, 0, 1, 2])
    got, _ = check(logits, targets)
    assert got[0][2] == -INF
    assert got[0][:2].isfinite().all()
    assert got[0][3:].isnan().all()


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


def test_rows_lie_anywhere():
    whole = torch.randn(3, 6, 80)
    padded = whole[:, :-1, :63]
    check(padded, torch.randint(63, (3, 5)))
    turned = torch.randn(63, 4).T
    got = kernels.token_logprobs_and_entropy(
        turned, torch.arange(4), None, None, 1.0, False
    )  # fmt: skip
    close(got[0], torch.log_softmax(turned.double(), -1).diagonal()[:4], torch.float32)
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

"""token_logprobs_and_entropy and both its backwards on every backend."""

import pytest
import torch
from backends import DEVICE
from parity import DTYPES, FULL, HALVES, INF, NAN, check, close, placed

TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def both_ways(logits, targets, mask=None, keep_mask=None, temperature=1.0):
    """Forward, backward for each output, and backward in place."""
    inputs = (targets, mask, keep_mask)
    logprobs, entropy, stats = check(
        "token_logprobs_and_entropy", logits, *inputs, temperature, False,
        judge=lambda got, want: None,
    )  # fmt: skip
    for pair in (logprobs, entropy):  # stats are each backend's own
        exact = logits.dtype == torch.float64
        close(*pair, **({"rtol": 1e-10, "atol": 1e-10} if exact else TOLERANCE))
    up = (
        torch.randn_like(logprobs.want).to(logprobs.got.dtype),
        torch.randn_like(entropy.want).to(logprobs.got.dtype),
    )
    for grads in (up, (up[0], None), (None, up[1])):
        saved = (logprobs, stats, temperature)
        (grad,) = check(
            "token_logprobs_and_entropy_backward", *grads, logits, *inputs, *saved, **TOLERANCE
        )
        over = placed(logits)
        over = over.clone() if over.is_contiguous() else over.contiguous()
        torch.ops.oneshot.token_logprobs_and_entropy_backward_.default(
            *map(placed, (*grads, over, *inputs, logprobs, stats)), temperature
        )
        assert torch.equal(over.nan_to_num(7.0), grad.got.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "vocabulary", "count"),
    [
        (1, 1, 1),
        (7, 63, 2),
        (3, 8193, 1),
        (9, 1000, 0),
        *(pytest.param(n, v, 1, marks=FULL) for n in (0, 1, 7, 63) for v in (1025, 16385, 50257)),
        *(pytest.param(3, v, k, marks=FULL) for v in (2, 8, 255, 8192, 16384) for k in (0, 3, 40)),
    ],
)
def test_sizes_and_dtypes(rows, vocabulary, count, dtype):
    logits = (torch.randn(rows, vocabulary) * 4).to(dtype)
    both_ways(logits, torch.randint(vocabulary, (rows, count)), temperature=0.7)


def test_one_target_a_row_and_leading_dimensions():
    both_ways(torch.randn(2, 3, 50) * 4, torch.randint(50, (2, 3)))
    both_ways(torch.randn(2, 3, 50) * 4, torch.full((2, 3, 3), 5))  # the same three times


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_rows_hold_garbage_and_are_never_read(dtype):
    logits = torch.randn(4, 5, 63).to(dtype)
    mask = torch.rand(4, 5) < 0.5
    mask[0, 0], mask[0, 1] = True, False
    logits[~mask] = torch.tensor([NAN, INF, -INF], dtype=dtype).repeat(21)
    targets = torch.randint(63, (4, 5))
    targets[~mask] = 10**12
    both_ways(logits, targets, mask=mask)


def test_keep_masks_and_targets_outside_them():
    logits = torch.randn(3, 4, 63) * 3
    keep = torch.rand(3, 1, 63) < 0.5
    keep[..., 5] = True
    targets = torch.full((3, 4, 2), 5)
    targets[..., 1] = torch.randint(63, (3, 4))  # -inf, without a gradient
    both_ways(logits, targets, keep_mask=keep)
    both_ways(logits, targets, keep_mask=keep[0, 0])


def test_infinite_logits():
    logits = torch.randn(6, 9000)
    logits[0, :8500] = -INF  # a whole tile
    logits[1, 10:] = -INF
    logits[2, 8999] = -INF
    logits[3] = -INF  # NaN, as in log_softmax
    logits[4, 8800] = INF
    logits[5, 3] = NAN
    both_ways(logits, torch.tensor([8600, 3, 8999, 0, 1, 2]))


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_that_lie_apart_or_begin_anywhere(dtype):
    whole = torch.randn(3, 6, 80).to(dtype)
    both_ways(whole[:, :-1, :63], torch.randint(63, (3, 5)))
    both_ways(whole[:, 1:, 1:64], torch.randint(63, (3, 5)))


def test_public_gradients():
    from oneshot import ops

    logits, targets = torch.randn(5, 63, dtype=torch.float64) * 3, torch.randint(63, (5,))
    grads = []
    for x in (logits.float().to(DEVICE), logits):
        x = x.requires_grad_()
        logprobs, entropy = ops.token_logprobs_and_entropy(x, targets.to(x.device), temperature=0.6)
        (logprobs.sin().sum() + entropy.square().sum()).backward()
        grads.append(x.grad)
    close(*grads, rtol=2e-5, atol=2e-5)

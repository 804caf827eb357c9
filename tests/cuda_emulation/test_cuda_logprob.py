"""What only the CUDA kernels of `logprob` promise, on the emulator; the rest: tests/parity."""

from __future__ import annotations

import pytest
import torch
from emulation import DTYPES
from launchers.logprob import (
    token_logprobs_and_entropy,
    token_logprobs_and_entropy_backward,
    token_logprobs_and_entropy_backward_,
)


def forward(logits, targets, mask=None, seed=0):
    return token_logprobs_and_entropy(logits, targets, mask, None, 1.0, False, seed)


def test_a_late_maximum_in_a_row_of_several_segments() -> None:
    logits, targets = torch.randn(2, 40001).bfloat16(), torch.tensor([39000, 5])
    logits[0, 39000] = 100.0
    logprobs, entropy, _ = forward(logits, targets)
    wide = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(logprobs.double(), wide.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(entropy.double(), -(wide.exp() * wide).sum(-1), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gives_the_same_bits_wherever_it_lies(dtype: torch.dtype, offset: int) -> None:
    logits, targets = (torch.randn(5, 1003) * 4).to(dtype), torch.randint(1003, (5, 1))
    wide = torch.full((5, 1024), float("nan"), dtype=dtype)
    view = wide[:, offset : offset + 1003]
    view.copy_(logits)
    together = forward(view, targets, seed=1)
    for i in range(5):
        alone = forward(logits[i : i + 1], targets[i : i + 1], seed=i)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_gradient_and_touches_nothing_else(dtype: torch.dtype) -> None:
    wide = torch.full((6, 600), 77.0, dtype=dtype)
    view = wide[:, 3:504]
    view.copy_(torch.randn(6, 501) * 4)
    targets = torch.randint(501, (6, 2))
    mask = torch.tensor([True, False, True, True, True, True])
    logprobs, entropy, stats = forward(view, targets, mask)
    up = torch.randn_like(logprobs), torch.randn_like(entropy)
    up[0][2], up[1][2] = 0.0, 0.0
    saved = (view, targets, mask, None, logprobs, stats, 1.0)
    fresh = token_logprobs_and_entropy_backward(*up, *saved)
    token_logprobs_and_entropy_backward_(*up, *saved, seed=5)
    assert torch.equal(view, fresh)
    assert (fresh[1:3] == 0).all()
    untouched = torch.ones(6, 600, dtype=torch.bool)
    untouched[:, 3:504] = False
    assert (wide[untouched] == 77.0).all()


@pytest.mark.parametrize("target", [-1, 63])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    targets = torch.tensor([[3], [target], [7]])
    with pytest.raises(RuntimeError, match="refuses its input"):
        forward(torch.randn(3, 63), targets)

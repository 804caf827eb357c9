"""What only the CUDA kernels of `policy_loss` promise, on the emulator; the rest: tests/parity."""

from __future__ import annotations

import pytest
import torch
from launchers.policy_loss import importance_weights, policy_loss, value_loss

# One value for each field of PolicyOptions but max_length: PPO with clipping at 0.2.
PLAIN = [0, 0, 0.8, 1.2, *[float("inf")] * 2, -float("inf"), float("inf"), 0, 0,
         *[float("inf")] * 2, 1, 0, 0, 0, -1, -1, 0]  # fmt: skip


@pytest.mark.parametrize("bounds", [[1, 8], [0, 7], [0, 5, 3, 8]])
def test_bounds_that_do_not_rise_to_the_tokens_are_refused(bounds: list[int]) -> None:
    x, ends = torch.randn(8), torch.tensor(bounds)
    calls = (
        lambda: policy_loss(x, x, x, None, None, None, None, ends, None, PLAIN, 8),
        lambda: value_loss(x, x, x, None, ends, None, 0.2, 0, False, 8),
        lambda: importance_weights(x, x, None, ends, True, True, 0.0, 2.0, 20.0, False, False),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="refuses its input"):
            call()

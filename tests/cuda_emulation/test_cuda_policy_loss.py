"""What only the CUDA kernels of `policy_loss` promise, on the emulator; the rest: tests/parity."""

from __future__ import annotations

import pytest
import torch
from launchers.policy_loss import importance_weights, policy_loss, value_loss

from oneshot.policy_options import KernelOptions, KlEstimator

PLAIN = KernelOptions(kl=KlEstimator.NONE).packed()


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

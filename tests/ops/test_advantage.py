"""The `advantage` family against closed forms and float64."""

import pytest
import torch

import oneshot.numpy
from oneshot import ops
from oneshot.reference import advantage as reference


@pytest.mark.parametrize("shape", [(1,), (7,), (63,), (1000,), (3, 4099)])
def test_whiten_matches_float64(shape):
    values = torch.randn(shape) * 3 + 100
    mask = torch.rand(shape) > 0.3
    mask.view(-1)[0] = True
    values = torch.where(mask, values, torch.nan)
    out = ops.whiten(values, mask)
    kept = values[mask].double()
    spread = kept.var(unbiased=True) if kept.numel() > 1 else torch.tensor(0.0).double()
    expected = (kept - kept.mean()) / (spread + 1e-8).sqrt()
    torch.testing.assert_close(out[mask].double(), expected, rtol=1e-5, atol=1e-5)
    assert (out[~mask] == 0).all()
    torch.testing.assert_close(out, reference.whiten(values, mask, True, 1e-8))
    numpy_out = torch.from_numpy(oneshot.numpy.whiten(values.numpy(), mask.numpy()))
    assert torch.equal(numpy_out, out)

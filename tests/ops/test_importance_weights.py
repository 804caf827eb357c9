"""`importance_weights` against loops in float64."""

import math

import policy_loss_oracle as oracle
import pytest
import torch
from policy_loss_inputs import INF, Batch

from oneshot import ops


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("mode", "low", "high"), [("truncate", 0.0, 1.2), ("truncate", 0.8, INF), ("mask", 0.7, 1.3)]
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_importance_weights_match_loops(level, mode, low, high, normalize, dtype):
    batch = Batch([7, 0, 5, 1], 7, dtype, spread=0.15)
    options = {"level": level, "mode": mode, "low": low, "high": high, "normalize": normalize}
    out = ops.importance_weights(batch.new, batch.old, batch.mask, **options)
    tight = 1e-11 if dtype == torch.float64 else 1e-5
    rows = oracle.importance_weights(
        batch.lists(batch.new), batch.lists(batch.old), level, mode, low, high, 20.0, normalize
    )
    figures = out.metrics_dict()
    lengths = batch.mask.sum(1).tolist()
    if level == "sequence":
        assert out.weights.shape == (4,)
        torch.testing.assert_close(
            out.weights.double(), torch.tensor(rows, dtype=torch.float64), rtol=tight, atol=0
        )
        per_token = [w for w, n in zip(rows, lengths, strict=True) for _ in range(n)]
    else:
        assert (out.weights[~batch.mask] == 0).all()
        per_token = [w for row in rows for w in row]
        torch.testing.assert_close(
            out.weights[batch.mask].double(),
            torch.tensor(per_token, dtype=torch.float64),
            rtol=tight,
            atol=0,
        )
    applied = torch.tensor(per_token, dtype=torch.float64) * figures["normalizer"]
    assert figures["mean"] == pytest.approx(applied.mean().item(), rel=tight)
    assert figures["min"] == pytest.approx(applied.min().item(), rel=tight)
    assert figures["max"] == pytest.approx(applied.max().item(), rel=tight)
    size = applied.mean() ** 2 / (applied**2).mean()
    assert figures["effective_sample_size"] == pytest.approx(size.item(), rel=tight)
    gap = (batch.old.double() - batch.new.double())[batch.mask].mean().item()
    assert figures["kl"] == pytest.approx(gap, rel=tight, abs=tight)
    logs = [
        [float(a) - float(b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(batch.lists(batch.new), batch.lists(batch.old), strict=True)
    ]
    raw = [math.exp(sum(r) if level == "sequence" else v) for r in logs for v in r]
    assert figures["fraction_low"] == pytest.approx(sum(r < low for r in raw) / len(raw), abs=1e-6)
    assert figures["fraction_high"] == pytest.approx(
        sum(r > high for r in raw) / len(raw), abs=1e-6
    )


def test_importance_weights_nan_clamp_layout_and_emptiness():
    new = torch.tensor([[-1.0, -2.0, -30.0], [-1.0, -1.0, -1.0]])
    sampler = torch.tensor([[math.nan, -1.0, -1.0], [-60.0, -1.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    kept = ops.importance_weights(new, sampler, mask, high=INF, ignore_nan=True).weights
    want = torch.tensor([[1.0, math.exp(-1), math.exp(-20)], [math.exp(20), 1.0, 0.0]])
    torch.testing.assert_close(kept, want, rtol=1e-5, atol=0)
    assert ops.importance_weights(new, sampler, mask).weights[0, 0].isnan()
    for level in ("token", "sequence"):  # without ignore_nan, a NaN is not divided away
        found = ops.importance_weights(new, sampler, mask, level=level, normalize=True)
        counted = mask if level == "token" else torch.tensor([True, True])
        assert found.weights[counted].isnan().all()
        assert (found.weights[~counted] == 0).all()
        assert math.isnan(found.metrics_dict()["normalizer"])
    summed = ops.importance_weights(
        new, sampler, mask, level="sequence", high=INF, ignore_nan=True, log_ratio_clamp=None
    ).weights
    torch.testing.assert_close(
        summed, torch.tensor([math.exp(-30), math.exp(59)]), rtol=1e-4, atol=0
    )
    for level in ("token", "sequence"):
        padded = ops.importance_weights(new, sampler, mask, level=level, ignore_nan=True)
        packed = ops.importance_weights(
            new.flatten()[:5], sampler.flatten()[:5], level=level, ignore_nan=True,
            cu_seqlens=torch.tensor([0, 3, 5]),
        )  # fmt: skip
        assert torch.equal(packed.weights, padded.weights.flatten()[:5])
        assert torch.equal(packed.metrics, padded.metrics)
    none = ops.importance_weights(new, sampler, torch.zeros_like(mask), normalize=True)
    assert (none.weights == 0).all()
    assert none.metrics_dict()["mean"] == none.metrics_dict()["kl"] == 0
    assert not ops.importance_weights(new.requires_grad_(), sampler, mask).weights.requires_grad
    with pytest.raises(ValueError, match="0 <= low <= high"):
        ops.importance_weights(new, sampler, low=3.0, high=2.0)

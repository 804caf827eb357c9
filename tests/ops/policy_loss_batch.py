"""One random batch, and the op on it, for the comparisons with libraries and formulas."""

import types

import torch

from oneshot import ops

ROWS, WIDTH = 6, 33


def draw_batch():
    """Ragged batch with one empty sequence; masked places hold 0, which every peer survives."""
    mask = torch.arange(WIDTH)[None] < torch.tensor([33, 1, 20, 0, 7, 32])[:, None]
    mask[4, 2] = False  # a hole, as a tool call leaves

    def draw(scale, shift=0.0):
        return torch.where(mask, scale * torch.randn(ROWS, WIDTH) + shift, 0.0)

    old = -draw(1.0).abs()
    return types.SimpleNamespace(
        mask=mask,
        new=(old + draw(0.3)),
        old=old,
        ref=old + draw(0.4),
        entropy=draw(1.0).abs(),
        advantage=torch.randn(ROWS),
        weights=torch.where(mask, torch.rand(ROWS, WIDTH) + 0.5, 1.0),
    )


def ours(batch, preset, *, per_token=False, weights=False, ref=False, entropy=False):
    new = batch.new.clone().requires_grad_()
    h = batch.entropy.clone().requires_grad_()
    advantages = batch.advantage[:, None].expand(ROWS, WIDTH) if per_token else batch.advantage
    out = ops.policy_loss(
        new,
        batch.old,
        advantages,
        batch.mask,
        ref_logprobs=batch.ref if ref else None,
        entropy=h if entropy else None,
        importance_weights=batch.weights if weights else None,
        options=preset,
    )
    out.loss.backward()
    return out, new.grad, h.grad


def same(actual, expected, **tolerance):
    tolerance = tolerance or {"rtol": 2e-5, "atol": 2e-6}
    out, by_new, by_entropy = actual
    loss, new, entropy = expected
    torch.testing.assert_close(out.loss.detach(), loss.detach().to(out.loss.dtype), **tolerance)
    torch.testing.assert_close(by_new, new.grad, **tolerance)
    if entropy is not None and entropy.grad is not None:
        torch.testing.assert_close(by_entropy, entropy.grad, **tolerance)

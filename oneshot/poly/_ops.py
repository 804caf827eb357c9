"""Stand-in until the op family `routing` is merged."""

import torch


def routing_weights(logits, task_ids, *, noise="none", temperature=1.0, eps=1e-12):
    if noise == "per_example":
        rows = torch.arange(len(task_ids), device=task_ids.device)
        distinct = task_ids
    else:
        distinct, rows = torch.unique(task_ids, return_inverse=True)
    z = logits[distinct].float() if logits.dtype != torch.float64 else logits[distinct]
    if noise != "none":
        u = torch.rand_like(z)
        z = (z + u.log() - (-u).log1p()) / temperature
    s = z.sigmoid()
    return s / (s.sum(-1, keepdim=True) + eps), rows


def mix_adapters(inventory, weights):
    return torch.einsum("uhk,hk...->uh...", weights.to(inventory), inventory)


def routed_lora(x, a, b, weights, rows, *, scaling):
    mixed_a = mix_adapters(a, weights).flatten(1, 2)
    mixed_b = mix_adapters(b, weights).transpose(1, 2).flatten(2)
    lead = x.shape[:-1]
    flat = x.reshape(-1, x.shape[-1]).to(a.dtype)
    per = (
        rows.reshape(-1)
        if rows.shape == lead
        else rows.repeat_interleave(flat.shape[0] // len(rows))
    )
    out = flat.new_zeros(flat.shape[0], mixed_b.shape[-1])
    for u in range(len(weights)):
        mine = per == u
        out = out.index_put((mine.nonzero()[:, 0],), flat[mine] @ mixed_a[u] @ mixed_b[u] * scaling)
    return out.reshape(*lead, -1)


def routed_ia3(y, l, weights, rows):
    mixed = mix_adapters(l, weights).flatten(1)
    per = mixed[rows]
    while per.dim() < y.dim():
        per = per.unsqueeze(1)
    return y * per

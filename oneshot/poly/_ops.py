"""Stand-in until the op family `routing` is merged: the same contract, slowly."""

import torch


def routing_weights(logits, task_ids, *, noise="none", temperature=1.0, eps=1e-12):
    distinct, rows = torch.unique(task_ids, return_inverse=True)
    distinct, rows = distinct.to(logits.device), rows.to(logits.device)
    if noise == "per_example":
        distinct = distinct[rows]
        rows = torch.arange(len(rows), device=rows.device)
    z = logits[..., distinct, :, :]
    if noise != "none":
        u = torch.rand_like(z)
        z = (z + u.log() - (-u).log1p()) / temperature
    s = z.sigmoid()
    return s / (s.sum(-1, keepdim=True) + eps), rows


def mix_adapters(inventory, weights, *, split_dim):
    mixed = torch.einsum("uhk,hk...->uh...", weights.to(inventory), inventory)
    if inventory.dim() == 3 or split_dim == -2:
        return mixed.flatten(1, 2)
    return mixed.transpose(1, 2).flatten(2)


def routed_lora(x, a, b, weights=None, rows=None, *, scaling=1.0, base=None):
    if weights is not None:
        a, b = mix_adapters(a, weights, split_dim=-2), mix_adapters(b, weights, split_dim=-1)
    lead = x.shape[:-1]
    flat = x.reshape(-1, x.shape[-1]).to(a.dtype)
    per = rows.reshape(*rows.shape, *(1,) * (len(lead) - rows.dim())).expand(lead).reshape(-1)
    out = flat.new_zeros(flat.shape[0], b.shape[-1])
    for u in range(len(a)):
        mine = (per == u).nonzero()[:, 0]
        out = out.index_put((mine,), flat[mine] @ a[u] @ b[u] * scaling)
    out = out.reshape(*lead, -1).to(x.dtype)
    return out if base is None else base + out


def routed_ia3(x, inventory, weights=None, rows=None):
    mixed = inventory if weights is None else mix_adapters(inventory, weights, split_dim=-1)
    own = mixed.to(x.dtype)[rows]
    return x * own.reshape(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim()), x.shape[-1])

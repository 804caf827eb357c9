"""Plain PyTorch definitions of the `routing` family."""

from __future__ import annotations

import torch


def real_type(dtype: torch.dtype) -> torch.dtype:
    """What weights, mixtures and their gradients are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def distinct_tasks(task_ids: torch.Tensor, tasks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted distinct ids and the place of each id among them; see `oneshot.ops.routing`.

    Done on the host: ids that lie on a GPU cost one synchronisation, ids that lie on the CPU none.
    """
    ids = task_ids.cpu()
    if ids.numel():
        low, high = ids.min().item(), ids.max().item()
        if low < 0 or high >= tasks:
            raise ValueError(
                f"task_ids must lie in [0, {tasks}), got {int(low if low < 0 else high)}"
            )
    distinct, index = torch.unique(ids, return_inverse=True)
    return distinct.to(task_ids.device), index.to(task_ids.device)


def routing_weights(logits: torch.Tensor, tasks: torch.Tensor, eps: float) -> torch.Tensor:
    """Weights s / (sum over skills of s + eps), s = sigmoid(logits), of the tasks chosen.

    Args:
        logits: ``[layers, tasks, H, K]``, float32 or float64.
        tasks: int64 ``[U]``, which of the tasks; one may come more than once.
        eps: Added to the sum.

    Returns:
        ``[layers, U, H, K]``.
    """
    scores = torch.sigmoid(logits.index_select(1, tasks))
    return scores / (scores.sum(-1, keepdim=True) + eps)


def routing_weights_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    tasks: torch.Tensor,
    weights: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Gradient of `routing_weights`, w (1 - s) (grad - sum over skills of grad w)."""
    rest = torch.sigmoid(-logits.index_select(1, tasks))  # 1 - s, also where s is nearly 1
    of_chosen = weights * rest * (grad - (grad * weights).sum(-1, keepdim=True))
    return torch.zeros_like(logits).index_add(1, tasks, of_chosen)


def mix_adapters(inventory: torch.Tensor, weights: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Sum over skills of weights[u, h, k] * inventory[h, k]; see `oneshot.ops.mix_adapters`.

    Args:
        inventory: ``[H, K, p, q]``.
        weights: ``[U, H, K]``.
        transposed: False: heads lie along q, result ``[U, p, H * q]``. True: heads lie along p and
            the result is ``[U, q, H * p]``: every mixture is a few long vectors, either way.
    """
    inventory = inventory.to(weights.dtype)
    order = "uhk,hkpq->uqhp" if transposed else "uhk,hkpq->uphq"
    return torch.einsum(order, weights, inventory).flatten(2).contiguous()


def mix_adapters_backward(
    grad: torch.Tensor,
    inventory: torch.Tensor,
    weights: torch.Tensor,
    transposed: bool,
    need_inventory: bool,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `mix_adapters`; one that is not needed is empty."""
    heads = inventory.shape[0]
    grad = grad.unflatten(2, (heads, -1))  # [U, q, H, p] or [U, p, H, q]
    pieces = "uqhp" if transposed else "uphq"
    grad_inventory, grad_weights = inventory.new_empty(0), weights.new_empty(0)
    if need_inventory:
        grad_inventory = torch.einsum(f"uhk,{pieces}->hkpq", weights, grad)
        grad_inventory = grad_inventory.to(inventory.dtype).contiguous()
    if need_weights:
        wide = inventory.to(weights.dtype)
        grad_weights = torch.einsum(f"hkpq,{pieces}->uhk", wide, grad).contiguous()
    return grad_inventory, grad_weights


# The mixtures lie side by side in one wide matrix, [mixtures * rank, features]: every product is
# one dense GEMM over all rows, and a row then keeps (or is given) the columns of its own mixture.
# That is `mixtures` times the arithmetic of one adapter, but no sorting, no host synchronisation
# and no loop, and a rank of 16 alone would leave most of a GPU's matrix tile empty.


def _own(wide: torch.Tensor, rows: torch.Tensor, mixtures: int) -> torch.Tensor:
    """[S, T, mixtures * rank] -> [S, T, rank]: the columns of the mixture of each row."""
    place = rows[:, None, None, None].expand(-1, wide.shape[1], 1, wide.shape[2] // mixtures)
    return wide.unflatten(2, (mixtures, -1)).gather(2, place).squeeze(2)


def _spread(own: torch.Tensor, rows: torch.Tensor, mixtures: int) -> torch.Tensor:
    """The transpose of `_own`: zeros in the columns of all other mixtures."""
    wide = own.new_zeros(*own.shape[:2], mixtures, own.shape[2])
    place = rows[:, None, None, None].expand(-1, own.shape[1], 1, own.shape[2])
    return wide.scatter(2, place, own.unsqueeze(2)).flatten(2)


def _mixtures(
    lora_a: torch.Tensor, lora_b: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if weights is None:
        return lora_a, lora_b
    return mix_adapters(lora_a, weights, True), mix_adapters(lora_b, weights, False)


def routed_lora(
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor | None,
    rows: torch.Tensor,
    base: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """LoRA, base + scaling * (x A) B, with the mixture of each row; see `oneshot.ops.routed_lora`.

    Args:
        x: ``[S, T, d_in]``.
        lora_a: ``[H, K, d_in / H, rank]``; without weights, mixtures ``[U, rank, d_in]``.
        lora_b: ``[H, K, rank, d_out / H]``; without weights, mixtures ``[U, rank, d_out]``.
        weights: ``[U, H, K]`` or None.
        rows: ``[S]``, the mixture of each group of T rows.
        base: ``[S, T, d_out]`` or None.
        scaling: Factor.

    Returns:
        ``[S, T, d_out]`` in the dtype of x, and scaling * x A ``[S, T, rank]``.
    """
    mixed_a, mixed_b = _mixtures(lora_a, lora_b, weights)
    mixtures = mixed_a.shape[0]
    wide = x @ mixed_a.flatten(0, 1).to(x.dtype).T
    shrunk = scaling * _own(wide, rows, mixtures).to(mixed_a.dtype)
    y = _spread(shrunk.to(x.dtype), rows, mixtures) @ mixed_b.flatten(0, 1).to(x.dtype)
    return (y if base is None else base + y), shrunk


def _outer(
    left: torch.Tensor, right: torch.Tensor, rows: torch.Tensor, mixtures: int
) -> torch.Tensor:
    """Sum of left^T right over the rows of each mixture, ``[mixtures, left size, right size]``.

    Other mixtures' rows are taken out first: zero times a NaN would be a NaN.
    """
    products = left.new_empty(mixtures, left.shape[-1], right.shape[-1])
    for u in range(mixtures):
        own = (rows == u)[:, None, None]
        of_mixture = (
            torch.where(own, left, 0).flatten(0, 1),
            torch.where(own, right, 0).flatten(0, 1),
        )
        products[u] = of_mixture[0].T @ of_mixture[1]
    return products


def routed_lora_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor | None,
    rows: torch.Tensor,
    shrunk: torch.Tensor,
    scaling: float,
    need_x: bool,
    need_a: bool,
    need_b: bool,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `routed_lora`; one that is not needed is empty. Mixtures are made again."""
    mixed_a, mixed_b = _mixtures(lora_a, lora_b, weights)
    mixtures, dtype = mixed_a.shape[0], x.dtype
    wide = grad @ mixed_b.flatten(0, 1).to(dtype).T
    grad_own = scaling * _own(wide, rows, mixtures)
    grad_shrunk = _spread(grad_own, rows, mixtures)
    grad_x, grad_a, grad_b = x.new_empty(0), lora_a.new_empty(0), lora_b.new_empty(0)
    grad_weights = shrunk.new_empty(0)
    if need_x:
        grad_x = grad_shrunk @ mixed_a.flatten(0, 1).to(dtype)
    if need_a or need_weights:
        grad_a = _outer(grad_own, x, rows, mixtures).to(mixed_a.dtype)
    if need_b or need_weights:
        grad_b = _outer(shrunk.to(dtype), grad, rows, mixtures).to(mixed_b.dtype)
    if weights is not None:
        need = (need_a, need_weights), (need_b, need_weights)
        if any(need[0]):
            grad_a, grad_weights = mix_adapters_backward(grad_a, lora_a, weights, True, *need[0])
        if any(need[1]):
            grad_b, more = mix_adapters_backward(grad_b, lora_b, weights, False, *need[1])
            grad_weights = grad_weights + more
    return grad_x, grad_a, grad_b, grad_weights


def inventory_lora(
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """(x A) B without any mixture: all skills on every row, mixed at rank r between A and B.

    Weights applied after B would compute another model: a mixture of A times a mixture of B has
    cross terms between skills. Differentiable.

    Args:
        x: ``[N, d_in]``.
        lora_a: ``[H, K, d_in / H, rank]``.
        lora_b: ``[H, K, rank, d_out / H]``.
        weights: ``[U, H, K]``.
        rows: ``[N]``, the mixture of each row.

    Returns:
        ``[N, d_out]`` in the dtype of x.
    """
    heads, skills, _, rank = lora_a.shape
    dtype = x.dtype
    own = weights[rows].to(dtype)  # [N, H, K]
    by_head = x.unflatten(1, (heads, -1)).transpose(0, 1)  # [H, N, d_in / H]
    side_by_side = lora_a.to(dtype).transpose(1, 2).flatten(2)  # [H, d_in / H, K * rank]
    shrunk = (by_head @ side_by_side).unflatten(2, (skills, rank))  # [H, N, K, rank]
    mixed = torch.einsum("nhk,hnkr->nr", own, shrunk)
    spread = torch.einsum("nhk,nr->hnkr", own, mixed).flatten(2)  # [H, N, K * rank]
    return (spread @ lora_b.to(dtype).flatten(1, 2)).transpose(0, 1).flatten(1)

"""Multi-head adapter routing: mixtures of low-rank adapters or scaling vectors, one a task."""

from __future__ import annotations

import math
from typing import Any

import torch

from oneshot.ops import _library
from oneshot.ops._checks import (
    as_int64,
    check_choice,
    check_float,
    check_same_device,
    check_values,
    kind_of,
)
from oneshot.ops._numbers import number
from oneshot.reference import routing as reference

real_type = reference.real_type
PLANS = ("auto", "mixtures", "inventory")


# ---- ops


def _fake_distinct(task_ids: torch.Tensor, tasks: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return task_ids.new_empty(count), task_ids.new_empty(task_ids.shape)


def _fake_weights(logits: torch.Tensor, tasks: torch.Tensor, eps: float) -> torch.Tensor:
    return logits.new_empty(logits.shape[0], tasks.shape[0], *logits.shape[2:])


def _fake_weights_backward(grad: torch.Tensor, logits: torch.Tensor, *_: object) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _fake_mix(inventory: torch.Tensor, weights: torch.Tensor, transposed: bool) -> torch.Tensor:
    heads, _, p, q = inventory.shape
    rank, length = (q, heads * p) if transposed else (p, heads * q)
    return weights.new_empty(weights.shape[0], rank, length)


def _fake_lora(
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor | None,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    rank = lora_a.shape[1] if weights is None else lora_a.shape[3]
    d_out = lora_b.shape[2] if weights is None else lora_b.shape[0] * lora_b.shape[3]
    return (
        x.new_empty(*x.shape[:2], d_out),
        x.new_empty(*x.shape[:2], rank, dtype=real_type(x.dtype)),
    )


def _fake_lora_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor | None,
    rows: torch.Tensor,
    shrunk: torch.Tensor,
    scaling: float,
    *needs: bool,
) -> tuple[torch.Tensor, ...]:
    return tuple(
        like.new_empty(like.shape if need else 0)
        for like, need in zip(
            (x, lora_a, lora_b, shrunk if weights is None else weights), needs, strict=True
        )
    )


_distinct = _library.define(
    "distinct_tasks(Tensor task_ids, int tasks) -> (Tensor distinct, Tensor index)",
    reference.distinct_tasks,
    _fake_distinct,
)
_weights = _library.define(
    "routing_weights(Tensor logits, Tensor tasks, float eps) -> Tensor",
    reference.routing_weights,
    _fake_weights,
)
_weights_backward = _library.define(
    "routing_weights_backward(Tensor grad, Tensor logits, Tensor tasks, Tensor weights, float eps) "
    "-> Tensor",
    reference.routing_weights_backward,
    _fake_weights_backward,
)
_mix = _library.define(
    "mix_adapters(Tensor inventory, Tensor weights, bool transposed) -> Tensor",
    reference.mix_adapters,
    _fake_mix,
)
_mix_backward = _library.define(
    "mix_adapters_backward(Tensor grad, Tensor inventory, Tensor weights, bool transposed, "
    "bool need_inventory, bool need_weights) -> (Tensor, Tensor)",
    reference.mix_adapters_backward,
    lambda grad, inventory, weights, transposed, need_inventory, need_weights: (
        inventory.new_empty(inventory.shape if need_inventory else 0),
        weights.new_empty(weights.shape if need_weights else 0),
    ),
)
_lora = _library.define(
    "routed_lora(Tensor x, Tensor lora_a, Tensor lora_b, Tensor? weights, Tensor rows, "
    "Tensor? base, float scaling) -> (Tensor y, Tensor shrunk)",
    reference.routed_lora,
    _fake_lora,
)
_lora_backward = _library.define(
    "routed_lora_backward(Tensor grad, Tensor x, Tensor lora_a, Tensor lora_b, Tensor? weights, "
    "Tensor rows, Tensor shrunk, float scaling, bool need_x, bool need_a, bool need_b, "
    "bool need_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.routed_lora_backward,
    _fake_lora_backward,
)


def _save_weights(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    logits, tasks, ctx.eps = inputs
    _library.save_for_backward(ctx, logits, tasks, output)


def _differentiate_weights(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # With create_graph=True in plain PyTorch, which can be differentiated once more.
    again = torch.is_grad_enabled()
    backward = reference.routing_weights_backward if again else _weights_backward
    logits, tasks, weights = ctx.saved_tensors
    return backward(grad, logits, tasks, weights, ctx.eps), None, None


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    inventory, weights, ctx.transposed = inputs
    _library.save_for_backward(ctx, inventory, weights)


def _differentiate_mix(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needed = ctx.needs_input_grad[:2]
    grads = _mix_backward(grad, *ctx.saved_tensors, ctx.transposed, *needed)
    return (*(g if need else None for g, need in zip(grads, needed, strict=True)), None)


def _save_lora(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, _, ctx.scaling = inputs
    # Nothing that grows with the number of mixtures: backward mixes again.
    _library.save_for_backward(ctx, *tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate_lora(
    ctx: Any, grad: torch.Tensor | None, _grad_shrunk: None
) -> tuple[torch.Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    needed = ctx.needs_input_grad[:4]
    grads: tuple[torch.Tensor | None, ...] = (None,) * 4
    if any(needed):
        computed = _lora_backward(grad, *ctx.saved_tensors, ctx.scaling, *needed)
        grads = tuple(g if need else None for g, need in zip(computed, needed, strict=True))
    return (*grads, None, grad if ctx.needs_input_grad[5] else None, None)


_library.differentiable("routing_weights", _differentiate_weights, _save_weights)
_library.differentiable("mix_adapters", _differentiate_mix, _save_mix)
_library.differentiable("routed_lora", _differentiate_lora, _save_lora)


# ---- checks


def _check_weights(
    weights: torch.Tensor, inventory_name: str, inventory: torch.Tensor
) -> torch.Tensor:
    """Weights [U, H, K] that fit the inventory, in the dtype that mixing works in."""
    check_float(inventory_name, inventory)
    check_float("weights", weights)
    heads, skills = inventory.shape[:2]
    if weights.dim() != 3 or weights.shape[1:] != (heads, skills):
        raise ValueError(
            f"weights must have the shape [mixtures, {heads}, {skills}] for {inventory_name} "
            f"{list(inventory.shape)}, got {list(weights.shape)}"
        )
    check_same_device("weights", weights, inventory_name, inventory)
    return weights.to(real_type(inventory.dtype))


def _check_rows(
    rows: torch.Tensor | None, x: torch.Tensor, mixtures: int, mixtures_of: str
) -> torch.Tensor:
    """The mixture of each row as int64 of the leading dimensions of x; None: mixture 0."""
    if rows is None:
        if mixtures != 1:
            raise ValueError(
                f"rows must say which of the {mixtures} mixtures in {mixtures_of} each row takes, "
                "got None"
            )
        return torch.zeros((), dtype=torch.int64, device=x.device)
    rows = as_int64("rows", rows)
    if rows.dim() >= x.dim() or rows.shape != x.shape[: rows.dim()]:
        raise ValueError(
            f"rows must have the leading dimensions of x {list(x.shape)} (all but the last, or "
            f"fewer), got {list(rows.shape)}"
        )
    check_same_device("rows", rows, "x", x)
    if not _is_checked_late(rows):
        _check_range(rows, mixtures)
    return rows


def _is_checked_late(rows: torch.Tensor) -> bool:
    """Whether nothing may wait for the values: kernels look at them, plain indexing does not."""
    return rows.is_cuda or torch.compiler.is_compiling()


def _check_range(rows: torch.Tensor, mixtures: int) -> None:
    allowed = (rows >= 0) & (rows < mixtures)
    # A compiled message cannot hold a number that varies.
    bound = "the number of mixtures" if torch.compiler.is_compiling() else mixtures
    check_values(allowed, f"rows must lie in [0, {bound})", rows)


def _check_features(x: torch.Tensor, d_in: int, adapter: str) -> None:
    check_float("x", x)
    if x.dim() < 1 or x.shape[-1] != d_in:
        raise ValueError(f"x must have shape [..., {d_in}] for {adapter}, got {list(x.shape)}")


# ---- public functions


def routing_weights(
    logits: torch.Tensor,
    task_ids: int | torch.Tensor,
    *,
    noise: str = "none",
    temperature: float = 1.0,
    eps: float = 1e-12,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each skill each task takes, one row for each distinct task of the batch.

    w = s / (sum over skills of s + eps) with s = sigmoid(logits). Differentiable in the logits. The
    logits of all layers may be stacked in front, so that one call serves a whole forward pass.

    Args:
        logits: ``[tasks, H, K]`` or ``[..., tasks, H, K]``, float32, float64, bfloat16 or float16.
        task_ids: int64 or int32 tensor of any shape (one id for each example, or for each packed
            row), or one int for everything. Keep the tensor on the CPU, where the collator makes
            it: the distinct ids are found on the host, so ids on a GPU cost one synchronisation.
        noise: "none": what the paper's runs use, and evaluation always. "per_task" and
            "per_example": a relaxed Bernoulli draw, s = sigmoid((logits + log u - log(1 - u)) /
            temperature) with u uniform in (0, 1), for each distinct task or for each example; the
            latter makes one mixture for each example. Default: "none".
        temperature: Of the draw; not used without noise. Default: 1.
        eps: Added to the sum over skills. Default: 1e-12.

    Returns:
        Weights ``[..., U, H, K]``, float32 (float64 for float64 logits), and the place of each id
        among the U rows, int64 in the shape of `task_ids`, on the device of the logits: what
        `routed_lora` takes as ``weights[layer]`` and ``rows``. U is the number of distinct ids, in
        ascending order; the number of examples with noise="per_example".

    Raises:
        TypeError: logits are not floating point or task_ids are not integers.
        ValueError: A shape or option does not fit, or an id lies outside ``[0, tasks)`` (negative
            ids do not count from the end).

    Source:
        Ponti et al. (2022), "Combining Modular Skills in Multitask Learning", eq. 2; heads: Caccia
        et al. (2023), "Multi-Head Adapter Routing for Cross-Task Generalization".
    """
    check_float("logits", logits)
    if logits.dim() < 3:
        raise ValueError(f"logits must have shape [..., tasks, H, K], got {list(logits.shape)}")
    check_choice("noise", noise, ("none", "per_task", "per_example"))
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    temperature = number("temperature", temperature)
    *layers, tasks, heads, skills = logits.shape
    logits = logits.to(real_type(logits.dtype)).reshape(math.prod(layers), tasks, heads, skills)
    if isinstance(task_ids, bool) or not isinstance(task_ids, (int, torch.Tensor)):
        raise TypeError(
            f"task_ids must be an int64 or int32 tensor or an int, got {kind_of(task_ids)}"
        )
    if isinstance(task_ids, torch.Tensor):
        task_ids = as_int64("task_ids", task_ids)
        chosen, index = _distinct(task_ids, tasks)
        chosen = chosen.to(logits.device, non_blocking=True)
        index = index.to(logits.device, non_blocking=True)
        if noise == "per_example":
            chosen = chosen[index.flatten()]
            index = torch.arange(index.numel(), device=index.device).view(index.shape)
    else:
        if not 0 <= task_ids < tasks:
            raise ValueError(f"task_ids must lie in [0, {tasks}), got {task_ids}")
        logits = logits.narrow(1, task_ids, 1)
        chosen = torch.zeros(1, dtype=torch.int64, device=logits.device)
        index = chosen[0]
    if noise != "none":
        logits = logits.index_select(1, chosen)
        # Kept off 0 and 1 by one rounding error, as torch.distributions does.
        uniform = torch.rand_like(logits).logit(torch.finfo(logits.dtype).eps)
        logits = (logits + uniform) / temperature
        chosen = torch.arange(chosen.shape[0], device=logits.device)
    weights = _weights(logits, chosen, number("eps", eps))
    return weights.view(*layers, *weights.shape[1:]), index


def mix_adapters(inventory: torch.Tensor, weights: torch.Tensor, *, split_dim: int) -> torch.Tensor:
    """Mixed adapters, sum over skills of weights[u, h, k] * inventory[h, k], heads side by side.

    One pass over the inventory for all mixtures. Differentiable in both arguments (once).

    Args:
        inventory: ``[H, K, ...]``, one or two dimensions after heads and skills: A
            ``[H, K, d_in / H, r]``, B ``[H, K, r, d_out / H]``, (IA)^3 ``[H, K, d_out / H]``.
        weights: ``[U, H, K]`` from `routing_weights`. For the uniform average (Poly-mu): 1 / K.
        split_dim: Which dimension the heads split, -1 or -2: -2 for A, -1 for B and (IA)^3.

    Returns:
        ``[U, d_in, r]``, ``[U, r, d_out]`` or ``[U, d_out]``, float32 (float64 for float64). The
        memory of a mixed A is that of its transpose, ``[U, r, d_in]``: what `routed_lora` reads.

    Raises:
        TypeError: A dtype is not floating point.
        ValueError: Shapes, devices or split_dim do not fit.

    Source:
        Caccia et al. (2023), multi-head routing (MHR, Poly-S): the same weights for block h of A
        and block h of B; H = 1 is Polytropon (Ponti et al. 2022).
    """
    check_float("inventory", inventory)
    if inventory.dim() not in (3, 4):
        raise ValueError(
            f"inventory must have shape [H, K, d] or [H, K, p, q], got {list(inventory.shape)}"
        )
    check_choice("split_dim", split_dim, (-1, -2) if inventory.dim() == 4 else (-1,))
    weights = _check_weights(weights, "inventory", inventory)
    if inventory.dim() == 3:
        return _mix(inventory.unsqueeze(2), weights, False).squeeze(1)
    mixed = _mix(inventory, weights, split_dim == -2)
    return mixed.transpose(1, 2) if split_dim == -2 else mixed


def _check_lora(
    x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, weights: torch.Tensor | None
) -> tuple[int, int]:
    """The number of features into and out of the adapters."""
    check_float("lora_a", lora_a)
    check_float("lora_b", lora_b)
    if weights is None:
        if lora_a.dim() != 3 or lora_b.dim() != 3 or lora_a.shape[::2] != lora_b.shape[:2]:
            raise ValueError(
                "without weights, lora_a must be mixed adapters [U, d_in, r] and lora_b "
                f"[U, r, d_out], got {list(lora_a.shape)} and {list(lora_b.shape)}"
            )
        d_in, d_out = lora_a.shape[1], lora_b.shape[2]
    else:
        if (
            lora_a.dim() != 4
            or lora_b.dim() != 4
            or ((*lora_a.shape[:2], lora_a.shape[3]) != lora_b.shape[:3])
        ):
            raise ValueError(
                "lora_a must have shape [H, K, d_in / H, r] and lora_b [H, K, r, d_out / H], "
                f"got {list(lora_a.shape)} and {list(lora_b.shape)}"
            )
        d_in, d_out = lora_a.shape[0] * lora_a.shape[2], lora_b.shape[0] * lora_b.shape[3]
    if real_type(lora_a.dtype) != real_type(x.dtype) or real_type(lora_b.dtype) != real_type(
        x.dtype
    ):
        raise TypeError(
            "x, lora_a and lora_b must be all float64 or none, got "
            f"{x.dtype}, {lora_a.dtype} and {lora_b.dtype}"
        )
    check_same_device("lora_a", lora_a, "x", x)
    check_same_device("lora_b", lora_b, "x", x)
    return d_in, d_out


def _without_mixtures_is_cheaper(
    rows: int, mixtures: int, lora_a: torch.Tensor, lora_b: torch.Tensor
) -> bool:
    """Whether to apply all skills to every row instead of mixing them for each task.

    Arithmetic: rows * K against rows + mixtures * K. Memory: 2 * rows * H * K numbers between the
    products against mixtures * (d_in + d_out) in the mixtures (both times the rank). False under
    `torch.compile`, where the number of distinct tasks is not known yet, and where CUDA or Triton
    kernels serve, which read the inventory themselves when that is cheaper.
    """
    if torch.compiler.is_compiling():
        return False
    if lora_a.is_cuda and _library.has_kernel("routed_lora", "CUDA"):
        return False
    heads, skills = lora_a.shape[:2]
    features = heads * (lora_a.shape[2] + lora_b.shape[3])
    return (
        mixtures > skills
        and rows * skills <= rows + mixtures * skills
        and 2 * rows * heads * skills < mixtures * features
    )


def routed_lora(
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    weights: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    *,
    scaling: float = 1.0,
    base: torch.Tensor | None = None,
    plan: str = "auto",
) -> torch.Tensor:
    """LoRA with the mixed adapter u of each row: base + scaling * x A_u B_u.

    Mixtures are made once for each distinct task, never for each example, and so is what backward
    keeps of them. Differentiable (once) in x, lora_a, lora_b, weights and base; a gradient that
    nobody needs is not computed.

    Args:
        x: ``[..., d_in]``: ``[B, T, d_in]``, packed tokens ``[N, d_in]``, anything.
        lora_a: Inventory ``[H, K, d_in / H, r]``; or, without weights, mixed adapters
            ``[U, d_in, r]`` from ``mix_adapters(..., split_dim=-2)``, to be reused call after call.
        lora_b: Inventory ``[H, K, r, d_out / H]``; or mixed adapters ``[U, r, d_out]``.
        weights: ``[U, H, K]`` from `routing_weights`. Default: the adapters are mixed already.
        rows: int64 or int32, which of the U mixtures: any number of the leading dimensions of x.
            ``[B]`` for one task an example, ``[B, T]`` or ``[N]`` for tasks packed together,
            ``[]`` for one task. Default: mixture 0, if it is the only one.
        scaling: Factor, usually alpha / r. Default: 1.
        base: ``[..., d_out]`` in the dtype of x, e.g. the output of the frozen layer; added on the
            way, which saves a pass over the output. Default: nothing is added.
        plan: "mixtures": mix, then apply to the rows of each mixture. "inventory": apply all K
            skills to every row and mix at rank r, which wins in decoding with more tasks than
            skills. "auto" chooses (docs/ops/routing.md). The result is the same. Default: "auto".

    Returns:
        ``[..., d_out]`` in the dtype of x. The adapters may have another dtype (float32 adapters on
        a bfloat16 model); sums are float32 or better.

    Raises:
        TypeError: A dtype does not fit.
        ValueError: A shape, device or option does not fit, or rows lie outside ``[0, U)`` (on the
            CPU; on a GPU only a device-side check can say so).

    Source:
        Caccia et al. (2023), "Multi-Head Adapter Routing for Cross-Task Generalization"; LoRA: Hu
        et al. (2021). A and B are mixed separately, so A_u B_u has cross terms between skills.
    """
    check_choice("plan", plan, PLANS)
    scaling = number("scaling", scaling)
    check_float("x", x)
    d_in, d_out = _check_lora(x, lora_a, lora_b, weights)
    _check_features(x, d_in, "lora_a")
    if weights is not None:
        weights = _check_weights(weights, "lora_a", lora_a)
        check_same_device("weights", weights, "x", x)
    elif plan == "inventory":
        raise ValueError("plan='inventory' needs weights, got mixed adapters")
    mixtures = lora_a.shape[0] if weights is None else weights.shape[0]
    rows = _check_rows(rows, x, mixtures, "lora_a" if weights is None else "weights")
    shape = (*x.shape[:-1], d_out)
    if base is not None:
        check_float("base", base)
        if base.shape != shape or base.dtype != x.dtype:
            raise ValueError(
                f"base must have shape {list(shape)} and the dtype of x {x.dtype}, "
                f"got {list(base.shape)} and {base.dtype}"
            )
        check_same_device("base", base, "x", x)
    if weights is not None and (
        plan == "inventory"
        or (
            plan == "auto"
            and _without_mixtures_is_cheaper(x.numel() // d_in, mixtures, lora_a, lora_b)
        )
    ):
        if _is_checked_late(rows):
            _check_range(rows, mixtures)
        spread = rows.reshape(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim()))
        every = spread.expand(x.shape[:-1]).reshape(-1)
        y = reference.inventory_lora(x.reshape(-1, d_in), lora_a, lora_b, weights, every)
        y = (scaling * y).view(shape)
        return y if base is None else base + y
    if weights is None:
        # Mixtures travel as [U, r, features]: a view of what mix_adapters returned.
        real = real_type(x.dtype)
        lora_a, lora_b = lora_a.transpose(1, 2).to(real), lora_b.to(real)
    groups = (math.prod(x.shape[: rows.dim()]), math.prod(x.shape[rows.dim() : -1]))
    y, _ = _lora(
        x.reshape(*groups, d_in),
        lora_a,
        lora_b,
        weights,
        rows.reshape(-1),
        None if base is None else base.reshape(*groups, d_out),
        scaling,
    )
    return y.view(shape)


def routed_ia3(
    x: torch.Tensor,
    inventory: torch.Tensor,
    weights: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """X times the mixed scaling vector of each row: routed (IA)^3.

    Differentiable in x, inventory and weights.

    Args:
        x: ``[..., d]``, the output of the layer that is scaled.
        inventory: ``[H, K, d / H]``; or, without weights, mixed vectors ``[U, d]`` from
            ``mix_adapters(..., split_dim=-1)``.
        weights: ``[U, H, K]`` from `routing_weights`. Default: the vectors are mixed already.
        rows: int64 or int32, which of the U mixtures, any number of the leading dimensions of x.
            Default: mixture 0, if it is the only one.

    Returns:
        ``[..., d]`` in the dtype of x.

    Raises:
        TypeError, ValueError: As :func:`routed_lora`.

    Source:
        (IA)^3: Liu et al. (2022), "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper
        than In-Context Learning"; routed: Ponti et al. (2022), Caccia et al. (2023).
    """
    if weights is None:
        check_float("inventory", inventory)
        if inventory.dim() != 2:
            raise ValueError(
                "without weights, inventory must be mixed vectors [U, d], "
                f"got {list(inventory.shape)}"
            )
        mixed = inventory
    else:
        check_float("inventory", inventory)
        if inventory.dim() != 3:
            raise ValueError(
                f"inventory must have shape [H, K, d / H], got {list(inventory.shape)}"
            )
        mixed = mix_adapters(inventory, weights, split_dim=-1)
    _check_features(x, mixed.shape[1], "inventory")
    check_same_device("inventory", inventory, "x", x)
    rows = _check_rows(rows, x, mixed.shape[0], "inventory" if weights is None else "weights")
    if _is_checked_late(rows):
        _check_range(rows, mixed.shape[0])
    own = mixed.to(x.dtype)[rows]
    return x * own.reshape(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim()), x.shape[-1])

"""Credit assignment: from rewards and values to advantages. Outputs are data: no gradient."""

from __future__ import annotations

from typing import Literal

import torch

from oneshot.ops import _library
from oneshot.ops._checks import as_int64, as_mask, check_choice, check_float, check_same_device
from oneshot.ops._numbers import number
from oneshot.reference import advantage as reference

_group_advantages = _library.define(
    "group_advantages(Tensor rewards, Tensor? mask, Tensor? lengths, SymInt group_size, "
    "Tensor? group_ids, Tensor? group_sizes, str baseline, str scale, int ddof, float eps, "
    "str singleton, str nan) -> Tensor",
    reference.group_advantages,
    lambda rewards, *_: rewards.new_empty(rewards.shape),
)
_gae = _library.define(
    "gae(Tensor rewards, Tensor values, Tensor? mask, Tensor? bootstrap, Tensor? cu_seqlens, "
    "float gamma, float lam) -> (Tensor, Tensor)",
    reference.gae,
    lambda rewards, *_: (rewards.new_empty(rewards.shape), rewards.new_empty(rewards.shape)),
)
_whiten = _library.define(
    "whiten(Tensor values, Tensor? mask, bool shift_mean, float eps) -> Tensor",
    reference.whiten,
    lambda values, *_: values.new_empty(values.shape),
)


def _as_data(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Checked, cut off the graph, half formats widened to float32."""
    check_float(name, tensor)
    tensor = _library.as_data(tensor)
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _integers(
    name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor, size: int | None = None
) -> torch.Tensor:
    """As int64; raises unless it is one-dimensional, of this size, on the other's device."""
    tensor = as_int64(name, tensor)
    if tensor.dim() != 1 or (size is not None and tensor.shape[0] != size):
        expected = "[any]" if size is None else f"[{size}], one for each row"
        raise ValueError(f"{name} must have the shape {expected}, got {list(tensor.shape)}")
    check_same_device(name, tensor, other_name, other)
    return tensor


def group_advantages(
    rewards: torch.Tensor,
    groups: int | None = None,
    *,
    group_ids: torch.Tensor | None = None,
    group_sizes: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    baseline: Literal["mean", "loo", "none", "opo"] = "mean",
    scale: Literal["std", "batch_std", "none"] = "std",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Literal["raw", "zero"] = "raw",
    nan: Literal["propagate", "ignore"] = "propagate",
) -> torch.Tensor:
    """Advantage of each response against the other responses of its group.

    ``A_i = (r_i - b) / (s + eps)``; exactly one of `groups`, `group_ids`, `group_sizes` says which
    rows form a group. Sums are float64 and the variance takes two passes, so equal float32 rewards
    give exactly 0.

    Args:
        rewards: One reward a response, [N]; or token rewards [N, T] with `mask`: the score of a
            row is the sum of its unmasked rewards (0 for a row without any).
        groups: Size of every group; rows lie group after group and N is a multiple of it.
        group_ids: int64 or int32 [N], rows with the same number form a group, in any order. (For
            other labels: ``torch.from_numpy(numpy.unique(labels, return_inverse=True)[1])``.)
        group_sizes: int64 or int32 [G], sizes of consecutive groups; they sum to N.
        mask: [N, T], bool, or numbers that are all 0 or 1; with token rewards only. Masked places
            may hold anything: a reward there belongs to no score. If the reward of a trajectory
            lies on a token that the mask leaves out (it ends in a tool result), pass
            ``rewards.sum(-1)`` without mask, as verl's ``token_level_rewards.sum(-1)``.
        lengths: int64 or int32 [N], tokens of each response; used by ``baseline="opo"`` alone,
            where it defaults to the row sums of `mask`.
        baseline: b: ``"mean"`` of the group; ``"loo"`` mean of the group's other rows; ``"opo"``
            mean weighted by length; ``"none"`` 0.
        scale: s: ``"std"`` of the group, ``"batch_std"`` of all N rewards; ``"none"`` does not
            divide at all, not even by eps.
        ddof: 1 divides the variance by n - 1, 0 by n.
        eps: Added to the standard deviation. Paper's run and verl 1e-6, TRL 1e-4, OpenRLHF 1e-9.
        singleton: A group of one: ``"raw"`` takes b = 0 and, with ``scale="std"``, s = 1 (verl, the
            paper's run); ``"zero"`` gives it the advantage 0 (TRL). Also for a batch of one with
            ``"batch_std"``.
        nan: ``"propagate"`` makes a group with a NaN reward NaN; ``"ignore"`` leaves such a row out
            of b, s and the group's size, and gives it the advantage 0.

    Returns:
        [N]; or [N, T] with the row's advantage in every unmasked place and 0 elsewhere. float32
        (float64 for float64 rewards), without gradient.

    Raises:
        TypeError: A tensor of the wrong dtype.
        ValueError: A wrong shape, device or choice; not exactly one way of grouping; `group_sizes`
            negative or not summing to N.

    Source:
        Group mean and std: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), section 4.1.2; the
        paper's run adds eps 1e-6 to an unbiased std (verl ``compute_grpo_outcome_advantage``).
        ``scale="none"``: Dr.GRPO, Liu et al. 2025 (arXiv 2503.20783). ``"loo"``: RLOO, Ahmadian
        et al. 2024 (arXiv 2402.14740). ``"opo"``: Hao et al. 2025 (arXiv 2505.23585),
        ``b = sum(l_i r_i) / sum(l_i)``.
    """
    rewards = _as_data("rewards", rewards)
    if rewards.dim() != (1 if mask is None else 2):
        expected = "[N] (or [N, T] with mask)" if mask is None else "[N, T] with mask"
        raise ValueError(f"rewards must have the shape {expected}, got {list(rewards.shape)}")
    rows = rewards.shape[0]
    if mask is not None:
        mask = as_mask("mask", mask, rewards.shape, "rewards", rewards)
    if (groups is None) + (group_ids is None) + (group_sizes is None) != 2:
        raise ValueError("give exactly one of groups, group_ids, group_sizes")
    if group_ids is not None:
        group_ids = _integers("group_ids", group_ids, "rewards", rewards, rows)
    elif group_sizes is not None:
        group_sizes = _integers("group_sizes", group_sizes, "rewards", rewards)
    elif isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(
            f"groups must be an int, the size of every group, got {type(groups).__name__}; "
            "use group_ids= or group_sizes= for tensors"
        )
    elif groups < 1 or rows % groups:
        raise ValueError(f"groups must be >= 1 and divide the {rows} rows, got {groups}")
    check_choice("baseline", baseline, ("mean", "loo", "none", "opo"))
    check_choice("scale", scale, ("std", "batch_std", "none"))
    check_choice("ddof", ddof, (0, 1))
    check_choice("singleton", singleton, ("raw", "zero"))
    check_choice("nan", nan, ("propagate", "ignore"))
    if lengths is not None:
        lengths = _integers("lengths", lengths, "rewards", rewards, rows)
    elif baseline == "opo" and mask is None:
        raise ValueError("lengths must be given for baseline='opo' with rewards [N], got None")
    return _group_advantages(
        rewards, mask, lengths, groups or 0, group_ids, group_sizes,
        baseline, scale, ddof, number("eps", eps), singleton, nan,
    )  # fmt: skip


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    gamma: float = 1.0,
    lam: float = 1.0,
    *,
    bootstrap: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation by one reverse scan over each sequence.

    With ``V_T = bootstrap`` and ``A_T = 0``, for t = T - 1 ... 0 over unmasked steps::

        delta_t = r_t + gamma * V_next - V_t
        A_t     = delta_t + gamma * lam * A_next
        R_t     = A_t + V_t

    where ``next`` is the next unmasked step: a masked one (padding, tool output) hands V_next and
    A_next on unchanged. The scan is sequential in the input's precision: any padding, packing,
    thread count or instruction set gives the same bits. Advantages are not whitened; see `whiten`.

    Args:
        rewards: [B, T]; or packed [N] with `cu_seqlens`.
        values: Shape and dtype of `rewards`; [B, T + 1] appends `bootstrap` as its last column.
        mask: Shape of `rewards`, bool, or numbers that are all 0 or 1; True where a step counts.
            Masked places may hold anything and come back as 0 in both outputs. Default: all count.
        gamma: Discount per unmasked step.
        lam: Decay of the estimator: 0 gives the one-step error, 1 gives return minus value.
        bootstrap: [B] (packed: one for each sequence), value of the state after the last step.
            Default: 0, the sequence has ended.
        cu_seqlens: int64 or int32 [S + 1] for packed input: sequence i lies in
            [cu_seqlens[i], cu_seqlens[i + 1]), from 0 to N.

    Returns:
        (advantages, returns), each of the shape of `rewards`; float32 (float64 for float64 input),
        without gradient.

    Raises:
        TypeError: A tensor of the wrong dtype; rewards and values of different dtypes.
        ValueError: A wrong shape or device; `cu_seqlens` does not rise from 0 to N.

    Source:
        Schulman et al. 2016 (arXiv 1506.02438), equations 11-16; masked steps as in verl
        ``compute_gae_advantage_return``, before its whitening.
    """
    check_float("rewards", rewards)
    for name, tensor in (("values", values), ("bootstrap", bootstrap)):
        if tensor is not None:
            check_float(name, tensor)
        if tensor is not None and tensor.dtype != rewards.dtype:
            raise TypeError(f"{name} must have the dtype of rewards {rewards.dtype}, "
                            f"got {tensor.dtype}")  # fmt: skip
    rewards, values = _as_data("rewards", rewards), _as_data("values", values)
    dims, layout = (2, "[B, T]") if cu_seqlens is None else (1, "[N] with cu_seqlens")
    if rewards.dim() != dims:
        raise ValueError(f"rewards must have the shape {layout}, got {list(rewards.shape)}")
    if cu_seqlens is not None:
        cu_seqlens = _integers("cu_seqlens", cu_seqlens, "rewards", rewards)
        if cu_seqlens.shape[0] < 1:
            raise ValueError("cu_seqlens must have the shape [S + 1], got [0]")
    elif values.dim() == 2 and values.shape[1] == rewards.shape[1] + 1:
        if bootstrap is not None:
            raise ValueError("bootstrap must be None when values has the shape [B, T + 1]")
        values, bootstrap = values[:, :-1], values[:, -1]
    if values.shape != rewards.shape:
        allowed = " (or [B, T + 1])" if cu_seqlens is None else ""
        raise ValueError(f"values must have the shape of rewards {list(rewards.shape)}{allowed}, "
                         f"got {list(values.shape)}")  # fmt: skip
    check_same_device("values", values, "rewards", rewards)
    if mask is not None:
        mask = as_mask("mask", mask, rewards.shape, "rewards", rewards)
    if bootstrap is not None:
        sequences = rewards.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if bootstrap.shape != (sequences,):
            raise ValueError(f"bootstrap must have the shape [{sequences}], one for each "
                             f"sequence, got {list(bootstrap.shape)}")  # fmt: skip
        check_same_device("bootstrap", bootstrap, "rewards", rewards)
        bootstrap = _as_data("bootstrap", bootstrap)
    discounts = number("gamma", gamma), number("lam", lam)
    return _gae(rewards, values, mask, bootstrap, cu_seqlens, *discounts)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Scale values to unit variance (and zero mean) over all unmasked places.

    Args:
        values: Any shape, float32 or float64; half formats are computed in float32.
        mask: Same shape, bool, or numbers that are all 0 or 1; False places are ignored and come
            back as 0. Default: all count.
        shift_mean: False keeps the mean of the values.
        eps: Added to the variance.

    Returns:
        Tensor of the shape of `values`; float32 (float64 for float64 input), without gradient.
        One unmasked value gives 0 (its variance is taken as 0).

    Raises:
        TypeError: `values` is not floating point.
        ValueError: `mask` has another shape or device, or other numbers than 0 and 1.

    Source:
        verl ``masked_whiten``: (x - mean) * rsqrt(var + 1e-8), unbiased variance.
    """
    values = _as_data("values", values)
    if mask is not None:
        mask = as_mask("mask", mask, values.shape, "values", values)
    return _whiten(values, mask, shift_mean, number("eps", eps))

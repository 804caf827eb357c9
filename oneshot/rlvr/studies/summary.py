"""The summary of one run from its metrics, as the demo and the studies report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SATURATED, WINDOW = 0.95, 5  # training reward, mean of that many steps, that counts as saturated


def summarize(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarizes one run from the rows of its metrics.

    Args:
        history: Rows with "step"; training metrics in all but step 0, validation in some.

    Returns:
        Accuracy on unseen problems before, after and at its peak, the training reward at both
        ends, the step at which training saturated (None if it did not) with the accuracy at the
        first evaluation from then on, and the curve.
    """
    evaluated = [row for row in history if "validation/accuracy" in row]
    trained = [row for row in history if "reward/mean" in row]
    rewards = [row["reward/mean"] for row in trained]
    means = {
        trained[end - 1]["step"]: sum(rewards[end - WINDOW : end]) / WINDOW
        for end in range(WINDOW, len(rewards) + 1)
    }
    saturated = next((step for step, mean in means.items() if mean >= SATURATED), None)
    first, last = evaluated[0], evaluated[-1]
    peak = max(evaluated, key=lambda row: row["validation/accuracy"])
    later = [row for row in evaluated if saturated is not None and row["step"] >= saturated]
    return {
        "accuracy_before": first["validation/accuracy"],
        "interval_before": [first["validation/accuracy_low"], first["validation/accuracy_high"]],
        "accuracy_after": last["validation/accuracy"],
        "interval_after": [last["validation/accuracy_low"], last["validation/accuracy_high"]],
        "accuracy_peak": peak["validation/accuracy"],
        "peak_step": peak["step"],
        "boxed_before": first["validation/boxed_ratio"],
        "boxed_after": last["validation/boxed_ratio"],
        "reward_start": rewards[0],
        "reward_end": sum(rewards[-WINDOW:]) / len(rewards[-WINDOW:]),
        "saturated_step": saturated,
        "accuracy_at_saturation": later[0]["validation/accuracy"] if later else None,
        "curve": [
            {
                "step": row["step"],
                "reward": row.get("reward/mean"),
                "entropy": row.get("policy/entropy"),
                "unseen_accuracy": row.get("validation/accuracy"),
            }
            for row in history
        ],
    }

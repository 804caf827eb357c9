"""Warnings about a run that learns nothing, once each while it runs."""

from __future__ import annotations

from collections.abc import Mapping

from oneshot.rlvr.config import TrainConfig

PATIENCE = 3  # steps in a row


class Notices:
    """Watches the metrics of each step.

    Args:
        config: Of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._flat_steps = 0  # no group had a policy gradient
        self._cut_steps = 0  # every response was cut
        self._given: set[str] = set()

    def step(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that the metrics of a step give reason to, each only once."""
        warnings = {
            "gradient": self._no_gradient(step, metrics),
            "truncated": self._no_end(step, metrics),
            "ungraded": self._no_verdict(step, metrics),
        }
        new = {name: text for name, text in warnings.items() if text and name not in self._given}
        self._given.update(new)
        return list(new.values())

    def _no_gradient(self, step: int, metrics: Mapping[str, float]) -> str:
        algorithm = self.config.algorithm
        mixed = metrics.get("dynamic_sampling/mixed", metrics["group/mixed"])
        counts = algorithm.advantage == "group" and algorithm.loss.policy_coef > 0
        self._flat_steps = self._flat_steps + 1 if counts and mixed == 0 else 0
        if self._flat_steps < PATIENCE:
            return ""
        wrong, right = metrics["group/all_wrong"], metrics["group/all_right"]
        cause = "wrong" if wrong == 1 else "right" if right == 1 else "wrong or all right"
        text = (
            f"steps {step - PATIENCE + 1} to {step} had no policy gradient: the responses of each "
            f"group are all {cause}"
        )
        if right == 1:
            return f"{text}. The run has learned what its reward can teach"
        return (
            f"{text}. If the reward was higher before, the policy collapsed: lower optimizer.lr "
            "or raise algorithm.loss.kl_coef; else take easier problems or more samples_per_prompt"
        )

    def _no_end(self, step: int, metrics: Mapping[str, float]) -> str:
        self._cut_steps = self._cut_steps + 1 if metrics["response/truncated_ratio"] == 1 else 0
        if self._cut_steps < PATIENCE:
            return ""
        return (
            f"no response of the steps {step - PATIENCE + 1} to {step} ended by itself: each was "
            f"cut at rollout.max_new_tokens = {self.config.rollout.max_new_tokens}. If the model "
            "ends its turns with a token of its own, name it in rollout.stop_tokens"
        )

    def _no_verdict(self, step: int, metrics: Mapping[str, float]) -> str:
        timeouts, crashes = metrics["reward/timeouts"], metrics["reward/crashes"]
        if timeouts + crashes == 0:
            return ""
        return (
            f"step {step}: {timeouts:.0f} responses ran out of reward.timeout = "
            f"{self.config.reward.timeout:g} s and {crashes:.0f} made their grader fail; they "
            "score 0 (reward/timeouts and reward/crashes count them)"
        )

"""Signs of a run that learns nothing, said once each while it runs."""

from __future__ import annotations

from collections.abc import Mapping

from oneshot.rlvr.config import TrainConfig

PATIENCE = 3


class Notices:
    """Watches the figures of each step.

    Args:
        config: Of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._idle = 0  # steps in a row without a policy gradient
        self._endless = 0  # steps in a row in which no response ended by itself
        self._said: set[str] = set()

    def step(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """What the figures of a step give reason to say, if it was not said before."""
        found = {
            "gradient": self._without_gradient(step, figures),
            "ends": self._without_end(step, figures),
            "verdicts": self._without_verdict(step, figures),
        }
        new = {name: text for name, text in found.items() if text and name not in self._said}
        self._said.update(new)
        return list(new.values())

    def _without_gradient(self, step: int, figures: Mapping[str, float]) -> str:
        algorithm = self.config.algorithm
        mixed = figures.get("refill/mixed", figures["group/mixed"])
        counts = algorithm.advantage == "group" and algorithm.loss.policy_coef > 0
        self._idle = self._idle + 1 if counts and mixed == 0 else 0
        if self._idle < PATIENCE:
            return ""
        wrong, right = figures["group/all_wrong"], figures["group/all_right"]
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

    def _without_end(self, step: int, figures: Mapping[str, float]) -> str:
        self._endless = self._endless + 1 if figures["response/truncated_ratio"] == 1 else 0
        if self._endless < PATIENCE:
            return ""
        return (
            f"no response of the steps {step - PATIENCE + 1} to {step} ended by itself: each was "
            f"cut at rollout.max_new_tokens = {self.config.rollout.max_new_tokens}. If the model "
            "ends its turns with a token of its own, name it in rollout.stop_tokens"
        )

    def _without_verdict(self, step: int, figures: Mapping[str, float]) -> str:
        timeouts, crashes = figures["reward/timeouts"], figures["reward/crashes"]
        if timeouts + crashes == 0:
            return ""
        return (
            f"step {step}: {timeouts:.0f} responses ran out of reward.timeout = "
            f"{self.config.reward.timeout:g} s and {crashes:.0f} made their grader fail; they "
            "score 0 (reward/timeouts and reward/crashes count them)"
        )

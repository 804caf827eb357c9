"""DAPO's dynamic sampling: groups whose scores are all equal are sampled again.

Such a group has advantage 0. Its place in the batch gets another prompt, round after round, until
its group is mixed or the rounds are over. Each place is refilled by itself, and its prompt and seed
come from step, round and place, so a resumed run and any number of processes draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oneshot.rlvr.builders import Row
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.figures import is_mixed
from oneshot.rlvr.problems import data
from oneshot.rlvr.rewards.reward import Reward, RewardResult
from oneshot.rlvr.rollout.engine import Rollout, RolloutEngine, chosen
from oneshot.training.distributed import Processes
from oneshot.training.seeding import derive_seed


@dataclass(frozen=True)
class Refilled:
    """The responses to learn from.

    Attributes:
        rollout: As many as were sampled at first, in the same places.
        scores: Their scores.
        sampled: Groups that were sampled on top.
        mixed: Groups of `rollout` whose scores are not all equal.
        ungraded: Responses sampled on top without a verdict (time-outs, crashes), scored 0.
    """

    rollout: Rollout
    scores: list[float]
    sampled: int
    mixed: int
    ungraded: int


@dataclass
class Refill:
    """Samples again what has no signal.

    Attributes:
        config: Of the run; `algorithm.refill_rounds` rounds at most.
        rows: Training problems with their prompts, at least a batch.
        engine: Samples.
        score: The reward.
    """

    config: TrainConfig
    rows: Sequence[Row]
    engine: RolloutEngine
    score: Reward

    def __call__(
        self, rollout: Rollout, scores: Sequence[float], places: Sequence[int], step: int
    ) -> Refilled:
        """Replaces groups without signal; a place that never finds one keeps its last group.

        Args:
            rollout: Responses of this process to the batch of the step.
            scores: Their scores.
            places: Of their prompts in the batch of all processes.
            step: Rollout step.
        """
        n = self.config.rollout.samples_per_prompt
        parts, kept, found = [rollout], list(range(len(rollout))), list(scores)
        sampled = ungraded = 0
        for turn in range(1, self.config.algorithm.refill_rounds + 1):
            flat = [g for g in range(len(places)) if not is_mixed(found[g * n : (g + 1) * n])]
            if not flat:
                break
            drawn, result = self._draw([places[g] for g in flat], step, turn)
            begin = sum(map(len, parts))
            for i, g in enumerate(flat):
                kept[g * n : (g + 1) * n] = range(begin + i * n, begin + (i + 1) * n)
                found[g * n : (g + 1) * n] = result.scores[i * n : (i + 1) * n]
            parts.append(drawn)
            sampled += len(flat)
            ungraded += result.timeouts + result.crashes
        mixed = sum(is_mixed(found[g * n : (g + 1) * n]) for g in range(len(places)))
        return Refilled(chosen(parts, kept), found, sampled, mixed, ungraded)

    def _draw(self, places: Sequence[int], step: int, turn: int) -> tuple[Rollout, RewardResult]:
        size, n = self.config.rollout.batch_size, self.config.rollout.samples_per_prompt
        seed = self.config.run.seed
        batch = data.batch_for_step(self.rows, size, step, derive_seed(seed, "refill", turn))
        drawn = self.engine.generate(
            [batch[place][1] for place in places],
            n,
            derive_seed(seed, "rollout", step, turn),
            places=places,
        )
        own = [place * n + i for place in places for i in range(n)]
        problems = [batch[row // n][0] for row in own]
        # Rows of another batch, for the random reward.
        return drawn, self.score(
            drawn.texts, problems, step, [turn * size * n + row for row in own]
        )

    def figures(self, refilled: Refilled, processes: Processes) -> dict[str, float]:
        """Groups sampled again and mixed groups, per place of the batch; responses ungraded."""
        if self.config.algorithm.refill_rounds == 0:
            return {}
        places = self.config.rollout.batch_size
        counts = processes.sums([refilled.sampled, refilled.mixed, refilled.ungraded])
        return {
            "refill/sampled": counts[0] / places,
            "refill/mixed": counts[1] / places,
            "refill/ungraded": counts[2],
        }

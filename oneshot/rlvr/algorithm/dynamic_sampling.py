"""DAPO's dynamic sampling: groups whose scores are all equal are sampled again.

Such a group has advantage 0. Its position in the batch gets another prompt, round after round,
until its group is mixed or the rounds are used up. Prompt and seed derive from step, round and
position, so a resumed run and any number of processes sample the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oneshot.rlvr.metrics import is_mixed
from oneshot.rlvr.problems.training_set import TrainingSet
from oneshot.rlvr.rewards.reward import Reward, RewardResult
from oneshot.rlvr.rollout.engine import Rollout, RolloutEngine, chosen
from oneshot.training.distributed import Processes


@dataclass(frozen=True)
class Resampled:
    """The responses to learn from.

    Attributes:
        rollout: As many as were sampled at first, in the same positions.
        scores: Their scores.
        sampled: Groups that were sampled in addition.
        mixed: Groups of `rollout` whose scores are not all equal.
        ungraded: Additional responses without a verdict (time-outs, crashes), scored 0.
    """

    rollout: Rollout
    scores: list[float]
    sampled: int
    mixed: int
    ungraded: int


@dataclass
class DynamicSampling:
    """Samples groups without a signal again.

    Attributes:
        training_set: Problems of the run.
        engine: Samples.
        score: The reward.
        rounds: Largest number of rounds; 0: off.
    """

    training_set: TrainingSet
    engine: RolloutEngine
    score: Reward
    rounds: int

    def __call__(
        self, rollout: Rollout, scores: Sequence[float], indices: Sequence[int], step: int
    ) -> Resampled:
        """Replaces groups without a signal; a position that never gets one keeps its last group.

        Args:
            rollout: Responses of this process to the batch of the step.
            scores: Their scores.
            indices: Positions of their prompts in the batch of all processes.
            step: Rollout step.
        """
        n = self.training_set.config.rollout.samples_per_prompt
        parts, rows, current = [rollout], list(range(len(rollout))), list(scores)
        sampled = ungraded = 0
        for turn in range(1, self.rounds + 1):
            flat = [g for g in range(len(indices)) if not is_mixed(current[g * n : (g + 1) * n])]
            if not flat:
                break
            more, result = self._sample([indices[g] for g in flat], step, turn)
            begin = sum(map(len, parts))
            for i, g in enumerate(flat):
                rows[g * n : (g + 1) * n] = range(begin + i * n, begin + (i + 1) * n)
                current[g * n : (g + 1) * n] = result.scores[i * n : (i + 1) * n]
            parts.append(more)
            sampled += len(flat)
            ungraded += result.timeouts + result.crashes
        mixed = sum(is_mixed(current[g * n : (g + 1) * n]) for g in range(len(indices)))
        return Resampled(chosen(parts, rows), current, sampled, mixed, ungraded)

    def _sample(self, indices: Sequence[int], step: int, turn: int) -> tuple[Rollout, RewardResult]:
        batch = self.training_set.other_batch(step, turn, indices)
        n = batch.samples
        rollout = self.engine.generate(batch.prompts, n, batch.seed, indices=indices)
        # The random reward depends on the row: these are rows of another batch.
        first = turn * len(batch.rows) * n
        rows = [first + row for row in batch.response_indices]
        return rollout, self.score(rollout.texts, batch.problems, step, rows)

    def metrics(self, resampled: Resampled, processes: Processes) -> dict[str, float]:
        """Groups sampled again and mixed groups, per prompt of the batch; responses ungraded.

        All processes must call this. Empty when dynamic sampling is off.
        """
        if self.rounds == 0:
            return {}
        prompts = self.training_set.config.rollout.batch_size
        counts = processes.sums([resampled.sampled, resampled.mixed, resampled.ungraded])
        return {
            "dynamic_sampling/sampled": counts[0] / prompts,
            "dynamic_sampling/mixed": counts[1] / prompts,
            "dynamic_sampling/ungraded": counts[2],
        }

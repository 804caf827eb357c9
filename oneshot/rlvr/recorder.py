"""What a run writes: metrics, samples, accuracy history, checkpoints. The first process writes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.learner import CRITIC, POLICY, Learner
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.evaluation.validation import Validation
from oneshot.rlvr.metrics import PANELS, SHOWN, TROUBLES, Outcome, rollout_metrics, sample_rows
from oneshot.rlvr.notices import Notices
from oneshot.rlvr.problems.selection import fold, step_accuracy, write_history
from oneshot.rlvr.problems.training_set import Batch, TrainingSet
from oneshot.training import checkpoints
from oneshot.training.curves import plot_curves
from oneshot.training.distributed import Processes
from oneshot.training.folder import write_config
from oneshot.training.jsonl import JsonLines, read_jsonl
from oneshot.training.metrics import MetricsLog, Stopwatch
from oneshot.training.state import TrainerState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_log(
    folder: Path, total_steps: int, resumed_from: int | None, progress: bool
) -> MetricsLog:
    """The metrics log of a run; see `MetricsLog` for the arguments."""
    return MetricsLog(
        folder,
        total_steps,
        resumed_from,
        progress,
        shown=SHOWN,
        troubles=TROUBLES,
        milestones=("validation/accuracy",),
        plot=functools.partial(plot_curves, panels=PANELS),
    )


class Recorder:
    """Writes the files of a run, which exists on the disk from here on.

    Every process has one and calls its methods; only that of the first process does anything,
    except that `save` needs all of them.

    Args:
        config: Of the run.
        folder: Of the run.
        model: Whole weights: it is validated. Not used in other processes than the first.
        tokenizer: Its tokenizer.
        training_set: Problems of the run.
        resumed_from: Step that the run continues after; None for a new run.
        processes: Of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        training_set: TrainingSet,
        resumed_from: int | None,
        processes: Processes,
    ) -> None:
        self.config = config
        self.folder = folder
        self.tokenizer = tokenizer
        self.training_set = training_set
        self.writes = processes.is_main
        if not self.writes:
            return
        self.notices = Notices(config)
        self.validation = Validation(config, model, tokenizer, folder)
        write_config(folder, config)
        self.log = open_log(folder, config.run.steps, resumed_from, config.run.progress)
        self.visits = JsonLines(folder / "accuracy.jsonl", resumed_from)
        if training_set.dropped:
            self.log.say(
                f"{training_set.dropped} training problems left out: prompt over "
                "rollout.max_prompt_tokens"
            )
        new = resumed_from is None
        if new and self.validation.problems and config.evaluation.before_training:
            self.log.step(0, self.validation.run(0))

    def step(
        self,
        step: int,
        batch: Batch,
        outcome: Outcome,
        metrics: Mapping[str, float],
        watch: Stopwatch,
    ) -> None:
        """Records one step: metrics, samples, accuracy by problem; validates when it is due.

        Args:
            step: The step.
            batch: Its prompts.
            outcome: Responses of all processes and their scores.
            metrics: Of the update and of the engine.
            watch: Seconds of the parts of the step.
        """
        if not self.writes:
            return
        metrics = {
            **rollout_metrics(outcome, batch.samples),
            **metrics,
            **watch.metrics(sum(outcome.lengths)),
        }
        due = self.validation.due(step)
        validated = self.validation.run(step) if due else {}
        problems = batch.all_problems
        self.visits.write({"step": step, "accuracy": step_accuracy(problems, outcome.scores)})
        samples = sample_rows(outcome, problems, self.config.run.log_samples)
        self.log.step(step, {**metrics, **validated}, samples)
        for text in self.notices.step(step, metrics):
            warnings.warn(text, stacklevel=2)
        if due:
            self.log.plot()

    def save(self, step: int, learner: Learner) -> None:
        """Writes the checkpoint of a step, if one is due, after what was recorded up to it.

        Raises:
            CheckpointError: Writing failed; older checkpoints are intact.
        """
        if step % self.config.run.save_every != 0 and step != self.config.run.steps:
            return
        snapshots = learner.snapshots()
        if not self.writes:
            return
        self.log.sync()
        self.visits.sync()
        checkpoint.save(
            self.folder / "checkpoints",
            snapshots[POLICY],
            self.tokenizer,
            TrainerState(step, self.training_set.digest, learner.updates),
            keep=self.config.run.keep_checkpoints,
            critic=snapshots.get(CRITIC),
        )

    def finish(self) -> None:
        """Removes older checkpoints that a kill left; writes accuracy history and curves."""
        if not self.writes:
            return
        # A run killed between its last checkpoint and the removal of older ones has no step left.
        checkpoints.prune(self.folder / "checkpoints", self.config.run.keep_checkpoints)
        accuracy = fold(read_jsonl(self.folder / "accuracy.jsonl"))
        write_history(self.folder / f"acc_step_{self.config.run.steps}.json", accuracy)
        self.log.plot(last=True)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the files and ends the grader processes."""
        if self.writes:
            self.validation.close()
            self.visits.close()
            self.log.close()

"""RL on one (or a few) verifiable problems: the loop of Wang et al. 2025 (arXiv:2504.20571).

One step: sample n responses to each prompt of the batch, score them, turn the scores into
advantages (`credit.py`: against the group, or against a critic), take one optimizer step on the
policy loss with an entropy bonus and a small KL to the untrained model (`loss.py`; its arithmetic
is in `oneshot.ops`). Every random number derives from the seed and the step, so a killed run
continues bit for bit.

What it leaves out, on purpose: several devices, a separate generation engine, several epochs over
a rollout, dynamic sampling (replacing groups without signal), mixed precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oneshot import models
from oneshot.rlvr import checkpoint, data
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.credit import CreditInputs, credit, overlong_penalty
from oneshot.rlvr.critic import Critic
from oneshot.rlvr.figures import Stopwatch, rollout_figures, sample_rows
from oneshot.rlvr.metrics import open_log
from oneshot.rlvr.parts import (
    data_digest,
    make_engine,
    make_updater,
    open_critic,
    training_rows,
)
from oneshot.rlvr.plots import plot_curves
from oneshot.rlvr.policy import load_policy
from oneshot.rlvr.rewards import FunctionReward, RewardFunction, make_reward
from oneshot.rlvr.rollout import Rollout
from oneshot.rlvr.selection import fold, step_accuracy, write_history
from oneshot.rlvr.update import PolicyUpdater
from oneshot.rlvr.validation import Validation
from oneshot.runs import checkpoints
from oneshot.runs.folder import open_run, write_config
from oneshot.runs.jsonl import JsonLines, read_jsonl
from oneshot.runs.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A resumed run may be longer, speak less or keep fewer checkpoints: that changes no number of it.
MAY_CHANGE = {"run.steps", "run.keep_checkpoints", "run.progress"}


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        output: Its folder.
        checkpoint: The last checkpoint, a model folder.
        history: The rows of metrics.jsonl; step 0 is the validation of the untrained model.
        dropped_prompts: Training problems left out because their prompt is too long.
    """

    output: Path
    checkpoint: Path
    history: list[dict[str, Any]]
    dropped_prompts: int


def train(
    config: TrainConfig, *, resume: bool = False, reward: RewardFunction | None = None
) -> TrainResult:
    """Trains as the config says.

    Args:
        config: The run.
        resume: Continue the run in `config.run.output` from its newest checkpoint.
        reward: A Python function instead of `config.reward.function`; called in this process with
            all responses of a step at once.

    Returns:
        Where everything is, and the history.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, a tokenizer that does not fit the model, or a resumed run with
            another config or other data.
        NonFiniteLossError: The loss or its gradient became NaN or infinite.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    folder, start = open_run(Path(config.run.output), config, resume, MAY_CHANGE)
    tokenizer = models.load_tokenizer(config.model.source)
    rows, dropped = training_rows(config, tokenizer)
    digest = data_digest(rows)
    policy = load_policy(config.model, start or config.model.source, tokenizer)
    updater = make_updater(config, policy, tokenizer)
    critic = open_critic(config, start)
    step = 0 if start is None else _resume(start, updater, critic, digest, config.run.steps)
    engine = make_engine(config, policy, tokenizer)
    seed, n = config.run.seed, config.rollout.samples_per_prompt
    score = make_reward(config.reward, seed) if reward is None else FunctionReward(reward)
    validation = Validation(config, policy, tokenizer, folder)
    write_config(folder, config)  # not before everything that can be wrong with it has been seen
    log = open_log(folder, config.run.steps, step if start else None, config.run.progress)
    visits = JsonLines(folder / "accuracy.jsonl", step if start else None)
    rows = data.repeat_to_batch(rows, config.rollout.batch_size)
    try:
        if dropped:
            log.say(f"{dropped} training problems left out: prompt over rollout.max_prompt_tokens")
        if start is None and config.evaluation.before_training:
            log.step(0, validation.run(0))
        while step < config.run.steps:
            step += 1
            torch.manual_seed(derive_seed(seed, "torch", step))
            watch = Stopwatch()
            batch = data.batch_for_step(rows, config.rollout.batch_size, step, seed)
            prompts = [prompt for _, prompt in batch]
            problems = [problem for problem, _ in batch for _ in range(n)]
            rollout = engine.generate(prompts, n, derive_seed(seed, "rollout", step))
            watch.lap("rollout")
            result = score(rollout.texts, problems, step)
            visits.write({"step": step, "accuracy": step_accuracy(problems, result.scores)})
            watch.lap("reward")
            losses = learn(config, updater, critic, rollout, result.scores, step)
            watch.lap("update")
            figures = {**rollout_figures(rollout, result, n), **losses, **watch.figures(rollout)}
            if validation.due(step):
                figures.update(validation.run(step))
            log.step(step, figures, sample_rows(rollout, result, problems, config.run.log_samples))
            if step % config.run.save_every == 0 or step == config.run.steps:
                log.sync()
                visits.sync()
                _save(folder, config, tokenizer, updater, critic, step, digest)
            if validation.due(step):
                log.plot()
    finally:
        score.close()
        validation.close()
        visits.close()
        log.close()
    # A kill between the last checkpoint and the removal of older ones leaves nothing to train.
    checkpoints.prune(folder / "checkpoints", config.run.keep_checkpoints)
    accuracy = fold(read_jsonl(folder / "accuracy.jsonl"))
    write_history(folder / f"acc_step_{config.run.steps}.json", accuracy)
    history = read_jsonl(folder / "metrics.jsonl")
    plot_curves(history, folder / "curves.png")
    last = checkpoints.latest(folder / "checkpoints")
    if last is None:
        raise checkpoints.CheckpointError(f"{folder}: the run has no checkpoint")
    return TrainResult(folder, last, history, dropped)


def learn(
    config: TrainConfig,
    updater: PolicyUpdater,
    critic: Critic | None,
    rollout: Rollout,
    scores: Sequence[float],
    step: int,
) -> dict[str, float]:
    """One step's learning: scores to credit, then the critic's and the policy's updates."""
    logprobs = updater.logprobs(rollout)
    values = None if critic is None else critic.values(rollout)
    lengths = rollout.response_mask.sum(1)
    overlong = overlong_penalty(lengths, config.rollout.max_new_tokens, config.algorithm)
    found = credit(
        CreditInputs(
            scores=torch.tensor(scores, device=lengths.device) - overlong,
            mask=rollout.response_mask,
            group_size=config.rollout.samples_per_prompt,
            old_logprobs=logprobs.old,
            ref_logprobs=logprobs.ref,
            values=values,
        ),
        config.algorithm,
        config.critic,
    )
    figures = dict(found.figures)
    if config.algorithm.overlong_buffer > 0:
        figures["reward/overlong_penalty"] = float(overlong.mean())
    if critic is not None and values is not None and found.returns is not None:
        figures.update(critic.update(rollout, values, found.returns, step))
    if critic is None or step > config.critic.warmup_steps:
        figures.update(updater.update(rollout, found.advantages, step, logprobs))
    return figures


def _resume(
    start: Path, updater: PolicyUpdater, critic: Critic | None, digest: str, steps: int
) -> int:
    """Gives updater and critic their state back; returns the step to continue after."""
    state = checkpoint.read_state(start)
    if state.data_digest != digest:
        raise ValueError(f"the training data is not that of the run to resume ({start})")
    if state.step > steps:
        raise ValueError(f"run.steps is {steps}, but the run is already at step {state.step}")
    here = (torch.get_num_threads(), torch.__version__)
    if (state.threads, state.torch_version) != here:
        warnings.warn(
            f"{start} was written with {state.threads} threads and torch {state.torch_version}, "
            f"this is {here[0]} threads and torch {here[1]}: the last bits may differ",
            stacklevel=2,
        )
    checkpoint.load_optimizer(start, updater.policy, updater.optimizer)
    updater.updates = state.updates
    if critic is not None:
        checkpoint.load_optimizer(start / checkpoint.CRITIC, critic.model, critic.optimizer)
        critic.updates = state.critic_updates
    return state.step


def _save(
    folder: Path,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    updater: PolicyUpdater,
    critic: Critic | None,
    step: int,
    digest: str,
) -> None:
    state = checkpoint.TrainerState(
        step=step,
        updates=updater.updates,
        data_digest=digest,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        critic_updates=0 if critic is None else critic.updates,
    )
    checkpoint.save(
        folder / "checkpoints",
        updater.policy,
        tokenizer,
        updater.optimizer,
        state,
        keep=config.run.keep_checkpoints,
        critic=critic,
    )

"""RL on one (or a few) verifiable problems: the loop of Wang et al. 2025 (arXiv:2504.20571).

One step: sample n responses to each prompt of the batch, score them, turn the scores into
advantages (`algorithm/advantage.py`: against the group, or against a critic), take one optimizer
step on the policy loss with an entropy bonus and a small KL to the untrained model
(`algorithm/loss.py`; its arithmetic is in `oneshot.ops`). Every random number derives from the
seed and the step, so a killed run continues bit for bit.

Several processes (`torchrun`, `accelerate launch`) share each batch by prompts, the models are
sharded over them (FSDP2), and the first one writes. The engine may have weights of its own
(`rollout.engine`); they are renewed after every update and compared with the policy's.

What it leaves out, on purpose: several epochs over a rollout.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot import models
from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.advantage import CreditInputs, credit, overlong_penalty
from oneshot.rlvr.algorithm.critic import Critic
from oneshot.rlvr.algorithm.dynamic_sampling import Refill
from oneshot.rlvr.algorithm.policy import load_policy
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.algorithm.weight_sync import make_sync
from oneshot.rlvr.builders import (
    check_rows,
    check_shares,
    data_digest,
    make_score,
    make_updater,
    open_critic,
    rehearse_engine,
    training_rows,
    whole_copy,
)
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.figures import Stopwatch, outcome, rollout_figures
from oneshot.rlvr.plots import plot_curves
from oneshot.rlvr.problems import data
from oneshot.rlvr.recorder import Recorder
from oneshot.rlvr.rewards.reward import RewardFunction
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.rlvr.rollout.factory import make_engine
from oneshot.training import checkpoints
from oneshot.training.distributed import Processes, joined, resolve_device
from oneshot.training.folder import open_run
from oneshot.training.jsonl import read_jsonl
from oneshot.training.seeding import derive_seed

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
        ParityError: The engine does not sample from the policy's weights.
        ProcessLostError: Another process of the run has died.
        NonFiniteLossError: The loss or its gradient became NaN or infinite.
        UnsupportedModelError: The transformers engine cannot decode the model.
        KeyboardInterrupt: With the checkpoint that --resume continues from.
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with joined(resolve_device(config.model.device)) as processes:
        return _train(config, resume, reward, processes)


def _train(
    config: TrainConfig, resume: bool, reward: RewardFunction | None, processes: Processes
) -> TrainResult:
    check_shares(config, processes)
    folder, start = Path(config.run.output), None
    if processes.is_main:
        folder, start = open_run(folder, config, resume, MAY_CHANGE)
    start = processes.gather(start)[0]
    tokenizer = models.load_tokenizer(config.model.source)
    rows, dropped = training_rows(config, tokenizer)
    digest = data_digest(rows)
    with checkpoint.reading(start):
        policy = load_policy(config.model, start or config.model.source, tokenizer)
    check_rows(config, rows, policy)
    copy = whole_copy(config, start, tokenizer, processes)
    rehearse_engine(config, rows, copy if processes.size > 1 else copy or policy, tokenizer)
    updater = make_updater(config, policy, rows, tokenizer, processes)
    critic = open_critic(config, start, policy, rows, processes)
    step = 0 if start is None else _resume(start, updater, critic, digest, config.run.steps)
    engine = make_engine(config, copy or policy, tokenizer, copy=copy is not None)
    sync = make_sync(config, updater, engine, copy)
    score = make_score(config, reward)
    rows = data.repeat_to_batch(rows, config.rollout.batch_size)
    refill = Refill(config, rows, engine, score)
    seed, n = config.run.seed, config.rollout.samples_per_prompt
    recorder = None
    try:
        if sync is not None:
            sync.rehearse([rows[0][1]], derive_seed(seed, "rehearsal"))
        if processes.is_main:
            # Not before everything that can be wrong has been seen.
            resumed = None if start is None else step
            recorder = Recorder(config, folder, copy or policy, tokenizer, digest, resumed)
            recorder.begin(dropped, start is None)
        while step < config.run.steps:
            step += 1
            torch.manual_seed(derive_seed(seed, "torch", step))
            watch = Stopwatch()
            batch = data.batch_for_step(rows, config.rollout.batch_size, step, seed)
            places = processes.share(range(len(batch)))
            prompts = [batch[place][1] for place in places]
            rollout_seed = derive_seed(seed, "rollout", step)
            rollout = engine.generate(prompts, n, rollout_seed, places=places)
            watch.lap("rollout")
            compared = {} if sync is None else sync.compare(rollout, f"step {step}")
            watch.lap("parity")
            own_rows = [place * n + i for place in places for i in range(n)]
            result = score(rollout.texts, [batch[i // n][0] for i in own_rows], step, own_rows)
            found = outcome(rollout, result, n, processes)
            watch.lap("reward")
            refilled = refill(rollout, result.scores, places, step)
            compared.update(refill.figures(refilled, processes))
            if config.algorithm.refill_rounds > 0:
                watch.lap("refill")
            losses = learn(config, updater, critic, refilled.rollout, refilled.scores, step)
            watch.lap("update")
            if sync is not None:
                sync.send()
                watch.lap("weights")
            saving = step % config.run.save_every == 0 or step == config.run.steps
            if saving:
                learned, valued = _snapshots(updater, critic)
            if recorder is None:
                continue  # the others wait for the first process in the next step
            problems = [problem for problem, _ in batch for _ in range(n)]
            figures = {**rollout_figures(found, n), **compared, **losses, **watch.figures(found)}
            recorder.step(step, found, problems, figures)
            if saving:
                recorder.save(step, updater, critic, learned, valued)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_saved(folder, step, config.run.save_every)) from None
    finally:
        score.close()
        engine.close()
        if recorder is not None:
            recorder.close()
    if recorder is not None:
        recorder.finish()
    processes.wait()  # the last checkpoint is there
    history = read_jsonl(folder / "metrics.jsonl")
    if processes.is_main:
        plot_curves(history, folder / "curves.png")
    last = checkpoints.latest(folder / "checkpoints")
    if last is None:
        raise checkpoints.CheckpointError(f"{folder}: the run has no checkpoint")
    return TrainResult(folder, last, history, dropped)


def _saved(folder: Path, step: int, every: int) -> str:
    """What an interrupted run leaves and what --resume does with it."""
    last = checkpoints.latest(folder / "checkpoints")
    if last is not None:
        return f"in step {step}; the same command with --resume continues from {last}"
    return (
        f"in step {step}, before the first checkpoint (run.save_every is {every}): the same "
        "command with --resume begins again at step 1"
    )


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
        updater.processes,
    )
    figures = dict(found.figures)
    if config.algorithm.overlong_buffer > 0:
        figures["reward/overlong_penalty"] = float(overlong.mean())
    figures = updater.processes.means(figures)
    if critic is not None and values is not None and found.returns is not None:
        figures.update(critic.update(rollout, values, found.returns, step))
    if critic is None or step > config.critic.warmup_steps:
        figures.update(updater.update(rollout, found.advantages, step, logprobs))
    return figures


def _snapshots(
    updater: PolicyUpdater, critic: Critic | None
) -> tuple[checkpoint.Snapshot, checkpoint.Snapshot | None]:
    """Policy and critic as they are; all processes must call this."""
    taken = checkpoint.snapshot(updater.policy, updater.optimizer, updater.processes)
    if critic is None:
        return taken, None
    return taken, checkpoint.snapshot(critic.model, critic.optimizer, critic.processes)


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

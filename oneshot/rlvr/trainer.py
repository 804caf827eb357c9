"""RL on one (or a few) verifiable problems: the loop of Wang et al. 2025 (arXiv:2504.20571).

One step: sample n responses to each prompt of the batch, score them, turn the scores into
advantages (`algorithm/advantage.py`: against the group, or against a critic), and take the
optimizer steps on the policy loss with an entropy bonus and a small KL to the untrained model
(`algorithm/loss.py`; its arithmetic is in `oneshot.ops`). Every random number derives from the
seed and the step, so a killed run continues bit for bit.

Several processes (`torchrun`, `accelerate launch`) share each batch by prompts, the models are
sharded over them (FSDP2), and the first one writes. The engine may have its own copy of the
weights (`rollout.engine`), which is renewed after every update and compared with the policy.

Several epochs over one rollout are not implemented.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot import models
from oneshot.rlvr.algorithm.dynamic_sampling import DynamicSampling
from oneshot.rlvr.algorithm.weight_sync import make_sync
from oneshot.rlvr.builders import check_shares, open_learner, open_policy
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.metrics import gather_outcome
from oneshot.rlvr.problems.training_set import read_training_set
from oneshot.rlvr.recorder import Recorder
from oneshot.rlvr.rewards.reward import FunctionReward, RewardFunction, make_reward
from oneshot.rlvr.rollout.factory import make_engine
from oneshot.training.distributed import Processes, joined, resolve_device
from oneshot.training.folder import finished, interrupted, open_run
from oneshot.training.jsonl import read_jsonl
from oneshot.training.metrics import Stopwatch
from oneshot.training.seeding import derive_seed

# A resumed run may be longer, print less or keep fewer checkpoints: none of its numbers changes.
MAY_CHANGE = {"run.steps", "run.keep_checkpoints", "run.progress"}


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a finished run.

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
        The folder, the last checkpoint and the history.

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
    folder, start = open_run(Path(config.run.output), config, resume, MAY_CHANGE, processes)
    tokenizer = models.load_tokenizer(config.model.source)
    training_set = read_training_set(config, tokenizer)
    policy, copy = open_policy(config, start, training_set, tokenizer, processes)
    learner = open_learner(config, start, policy, training_set.prompts, tokenizer, processes)
    step = 0 if start is None else learner.resume(start, training_set.digest)
    with contextlib.ExitStack() as stack:
        engine = make_engine(config, copy or policy, tokenizer, copy=copy is not None)
        stack.callback(engine.close)
        sync = make_sync(config, learner.updater, engine, copy)
        if reward is None:
            score = make_reward(config.reward, config.run.seed)
        else:
            score = FunctionReward(reward)
        stack.callback(score.close)
        rounds = config.algorithm.dynamic_sampling_rounds
        resample = DynamicSampling(training_set, engine, score, rounds)
        try:
            sync.rehearse(training_set.prompts[:1], derive_seed(config.run.seed, "rehearsal"))
            # Writes nothing before everything that can be wrong has been checked.
            recorder = stack.enter_context(
                Recorder(
                    config,
                    folder,
                    copy or policy,
                    tokenizer,
                    training_set,
                    None if start is None else step,
                    processes,
                )
            )
            while step < config.run.steps:
                step += 1
                torch.manual_seed(derive_seed(config.run.seed, "torch", step))
                watch = Stopwatch()
                batch = training_set.batch(step, processes)
                rollout = engine.generate(
                    batch.prompts, batch.samples, batch.seed, indices=batch.indices
                )
                watch.lap("rollout")
                metrics = sync.compare(rollout, f"step {step}")
                watch.lap("parity")
                result = score(rollout.texts, batch.problems, step, batch.response_indices)
                outcome = gather_outcome(rollout, result, batch.samples, processes)
                watch.lap("reward")
                resampled = resample(rollout, result.scores, batch.indices, step)
                metrics |= resample.metrics(resampled, processes)
                if rounds > 0:
                    watch.lap("dynamic_sampling")
                estimate = learner.advantage(resampled.rollout, resampled.scores)
                metrics |= estimate.metrics | learner.update(resampled.rollout, estimate, step)
                watch.lap("update")
                sync.send()
                watch.lap("weights")
                recorder.step(step, batch, outcome, metrics, watch)
                recorder.save(step, learner)
            recorder.finish()
        except KeyboardInterrupt:
            raise interrupted(folder, step, config.run.save_every) from None
    last = finished(folder, processes)
    return TrainResult(folder, last, read_jsonl(folder / "metrics.jsonl"), training_set.dropped)

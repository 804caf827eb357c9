"""The parts of a run from its config: training rows, policy updater, critic, reward; checks."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot.integrations.fused_head import fuse_lm_head
from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.critic import Critic, make_critic
from oneshot.rlvr.algorithm.optimizer import make_optimizer
from oneshot.rlvr.algorithm.policy import distribute, load_policy
from oneshot.rlvr.algorithm.prompt_sharing import can_share_prompts
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.problems import data
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.prompt import drop_long, encode
from oneshot.rlvr.rewards.reward import FunctionReward, Reward, RewardFunction, make_reward
from oneshot.rlvr.rollout.engine import check_prompts, check_room, embedding_count
from oneshot.rlvr.rollout.engine_check import check_engine
from oneshot.training.config import require
from oneshot.training.distributed import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = tuple[Problem, list[int]]
"""A training problem and its prompt as token ids."""


def training_rows(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], int]:
    """The training problems with their prompts as token ids, and how many were too long."""
    problems = data.read_problems(
        config.data.path,
        problem_key=config.data.problem_key,
        answer_key=config.data.answer_key,
        empty_answers=config.data.empty_answers,
        limit=config.data.limit,
    )
    data.check_indices(problems)
    prompts = encode(problems, tokenizer, config.data.prompt)
    problems, prompts, dropped = drop_long(problems, prompts, config.rollout.max_prompt_tokens)
    return list(zip(problems, prompts, strict=True)), dropped


def make_updater(
    config: TrainConfig,
    policy: PreTrainedModel,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> PolicyUpdater:
    """Optimizer and, when the KL counts, reference model; shards the whole policy."""
    reference = None
    if config.algorithm.loss.kl_coef > 0:
        source = config.model.reference or config.model.source
        reference = load_policy(config.model, source, tokenizer).requires_grad_(False)
        check_same_vocabulary(policy, reference, "model.reference")
    compared = [policy]
    if reference is not None and reference.config.to_dict() != policy.config.to_dict():
        compared.append(reference)
    share_prompts = shares_prompts(config, compared, rows, processes)
    for model in (policy, reference):
        if model is not None:
            if config.algorithm.fuse_head == "auto":
                fuse_head(model)
            distribute(model, config.model, processes)
    return PolicyUpdater(
        policy=policy,
        reference=reference,
        optimizer=make_optimizer(policy, config.optimizer),
        algorithm=config.algorithm,
        schedule=config.optimizer,
        temperature=config.rollout.temperature,
        max_length=config.rollout.max_new_tokens,
        share_prompts=share_prompts,
        processes=processes,
    )


def fuse_head(model: PreTrainedModel) -> None:
    """Gives the model a head without logits; warns once where it cannot have one."""
    try:
        fuse_lm_head(model)
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"log-probs come from logits, which costs memory: {error}. algorithm.fuse_head: off "
            "does the same without this warning",
            stacklevel=2,
        )


def shares_prompts(
    config: TrainConfig,
    models: Sequence[PreTrainedModel],
    rows: Sequence[Row],
    processes: Processes,
) -> bool:
    """Whether passes of these whole models read a prompt once for all of its responses."""
    return config.algorithm.share_prompts == "auto" and can_share_prompts(
        models,
        [prompt for _, prompt in rows],
        samples=config.rollout.samples_per_prompt,
        uniform=processes.size > 1,
    )


def whole_copy(
    config: TrainConfig,
    start: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> PreTrainedModel | None:
    """The copy of a policy that samples; None where the policy itself can.

    A policy that is going to be sharded, or computes in another type than that of its weights,
    cannot. With the transformers engine every process has a copy, else only the first, which
    validates with it.
    """
    if processes.size == 1 and config.model.dtype != "mixed":
        return None
    if not processes.is_main and config.rollout.engine != "transformers":
        return None
    source = start or config.model.source
    return load_policy(config.model, source, tokenizer, sampling=True).requires_grad_(False)


def check_same_vocabulary(policy: PreTrainedModel, other: PreTrainedModel, option: str) -> None:
    """Refuses a model that reads the policy's tokens and lacks some of its token ids.

    Raises:
        ValueError: It has fewer token ids than the policy.
    """
    expected, found = embedding_count(policy), embedding_count(other)
    require(
        found >= expected, option, f"a model with the {expected} token ids of the policy", found
    )


def make_score(config: TrainConfig, reward: RewardFunction | None) -> Reward:
    """The reward of a run; each process scores its own responses."""
    if reward is not None:
        return FunctionReward(reward)
    return make_reward(config.reward, config.run.seed)


def check_shares(config: TrainConfig, processes: Processes) -> None:
    """Refuses what several processes cannot share.

    Raises:
        ValueError: The batch cannot be shared evenly, or the engine cannot be shared.
    """
    size, rollout = processes.size, config.rollout
    if size == 1:
        return
    require(
        rollout.batch_size % size == 0,
        "rollout.batch_size",
        f"a multiple of the {size} processes",
        rollout.batch_size,
    )
    share = rollout.batch_size * rollout.samples_per_prompt // size
    updates = config.algorithm.updates_per_rollout
    require(
        share % updates == 0,
        "algorithm.updates_per_rollout",
        f"a divisor of the {share} sequences of each process",
        updates,
    )
    require(
        rollout.engine != "vllm",
        "rollout.engine",
        "transformers or vllm_server with several processes",
        rollout.engine,
    )


def check_rows(config: TrainConfig, rows: Sequence[Row], policy: PreTrainedModel) -> None:
    """Refuses prompts and responses that the model has no token ids or no positions for.

    Raises:
        ValueError: A prompt has an id that the model does not have, or longest prompt and longest
            response together have more tokens than positions.
    """
    prompts = [prompt for _, prompt in rows]
    check_prompts(prompts, embedding_count(policy))
    check_room(policy, prompts, config.rollout.max_new_tokens, "rollout.max_new_tokens")


def rehearse_engine(
    config: TrainConfig,
    rows: Sequence[Row],
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Rehearses the transformers engine on the whole model that samples or validates, if any.

    Raises:
        UnsupportedModelError: The engine cannot decode this model.
    """
    samples = config.rollout.engine == "transformers" or config.evaluation.path is not None
    if model is not None and samples:
        prompts = [prompt for _, prompt in rows]
        options = config.rollout
        check_engine(model, tokenizer, prompts, options.stop_tokens, options.max_new_tokens)


def open_critic(
    config: TrainConfig,
    start: Path | None,
    policy: PreTrainedModel,
    rows: Sequence[Row],
    processes: Processes,
) -> Critic | None:
    """The critic of PPO, new or that of the checkpoint `start`; None for other algorithms."""
    if config.algorithm.advantage != "gae":
        return None
    source = config.critic.source or config.model.source
    critic = make_critic(
        source if start is None else str(start / checkpoint.CRITIC),
        config.critic,
        config.algorithm,
        config.model,
        processes,
        lambda model: shares_prompts(config, [model], rows, processes),
    )
    check_same_vocabulary(policy, critic.model, "critic.source")
    return critic


def data_digest(rows: Sequence[Row]) -> str:
    """Digest of prompts and answers, by which a resumed run knows its data."""
    text = json.dumps([(prompt, problem.answer) for problem, prompt in rows])
    return hashlib.sha256(text.encode()).hexdigest()

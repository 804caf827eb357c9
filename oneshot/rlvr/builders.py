"""Builds the models of a run from its config and checks that they fit together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot.integrations.fused_head import fuse_lm_head
from oneshot.rlvr import checkpoint
from oneshot.rlvr.algorithm.critic import Critic, make_critic
from oneshot.rlvr.algorithm.learner import Learner
from oneshot.rlvr.algorithm.optimizer import make_optimizer
from oneshot.rlvr.algorithm.policy import distribute, load_policy
from oneshot.rlvr.algorithm.prompt_sharing import can_share_prompts
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.problems.training_set import TrainingSet
from oneshot.rlvr.rollout.engine import check_prompts, check_room, embedding_count
from oneshot.rlvr.rollout.engine_check import check_engine
from oneshot.training.config import require
from oneshot.training.distributed import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_policy(
    config: TrainConfig,
    start: Path | None,
    training_set: TrainingSet,
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The whole policy, and its copy that samples, where one is needed.

    Args:
        config: Of the run.
        start: Checkpoint that the run continues from; None: the untrained model.
        training_set: Its prompts are checked, and the engine is rehearsed on them.
        tokenizer: Of the model.
        processes: Of the run.

    Raises:
        CheckpointError: The checkpoint is damaged.
        ValueError: Tokenizer or prompts do not fit the model.
        UnsupportedModelError: The transformers engine cannot decode the model.
    """
    with checkpoint.reading(start):
        policy = load_policy(config.model, start or config.model.source, tokenizer)
    prompts = training_set.prompts
    check_prompts(prompts, embedding_count(policy))
    check_room(policy, prompts, config.rollout.max_new_tokens, "rollout.max_new_tokens")
    copy = whole_copy(config, start, tokenizer, processes)
    sampler = copy if processes.size > 1 else copy or policy
    # The model that samples with the transformers engine, or validates.
    used = config.rollout.engine == "transformers" or config.evaluation.path is not None
    if sampler is not None and used:
        options = config.rollout
        check_engine(sampler, tokenizer, prompts, options.stop_tokens, options.max_new_tokens)
    return policy, copy


def open_learner(
    config: TrainConfig,
    start: Path | None,
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> Learner:
    """Policy, reference and critic with their optimizers, sharded over the processes.

    The moments of a checkpoint come later.

    Args:
        config: Of the run.
        start: Checkpoint that the run continues from, or None.
        policy: From `open_policy`.
        prompts: Token ids of the prompts of the run.
        tokenizer: Of the model.
        processes: Of the run.

    Raises:
        ValueError: Reference or critic lack token ids of the policy.
    """
    updater = make_updater(config, policy, prompts, tokenizer, processes)
    return Learner(config, updater, open_critic(config, start, policy, prompts, processes))


def make_updater(
    config: TrainConfig,
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> PolicyUpdater:
    """Policy and, unless algorithm.loss.kl_coef is 0, reference, sharded, with the optimizer."""
    reference = None
    if config.algorithm.loss.kl_coef > 0:
        source = config.model.reference or config.model.source
        reference = load_policy(config.model, source, tokenizer).requires_grad_(False)
        check_same_vocabulary(policy, reference, "model.reference")
    compared = [policy]
    if reference is not None and reference.config.to_dict() != policy.config.to_dict():
        compared.append(reference)
    share_prompts = shares_prompts(config, compared, prompts, processes)
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
    prompts: Sequence[Sequence[int]],
    processes: Processes,
) -> bool:
    """Whether passes of these whole models read a prompt once for all of its responses."""
    return config.algorithm.share_prompts == "auto" and can_share_prompts(
        models,
        prompts,
        samples=config.rollout.samples_per_prompt,
        uniform=processes.size > 1,
    )


def whole_copy(
    config: TrainConfig,
    start: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    processes: Processes,
) -> PreTrainedModel | None:
    """The copy of the policy that samples; None where the policy itself does.

    A policy that will be sharded, or that computes in another type than that of its weights,
    cannot sample. With the transformers engine every process has a copy; otherwise only the first
    has one, for validation.
    """
    if processes.size == 1 and config.model.dtype != "mixed":
        return None
    if not processes.is_main and config.rollout.engine != "transformers":
        return None
    source = start or config.model.source
    return load_policy(config.model, source, tokenizer, sampling=True).requires_grad_(False)


def check_same_vocabulary(policy: PreTrainedModel, other: PreTrainedModel, option: str) -> None:
    """Refuses a model that lacks some of the policy's token ids.

    Raises:
        ValueError: It has fewer token ids than the policy.
    """
    expected, actual = embedding_count(policy), embedding_count(other)
    require(
        actual >= expected, option, f"a model with the {expected} token ids of the policy", actual
    )


def check_shares(config: TrainConfig, processes: Processes) -> None:
    """Refuses a config that several processes cannot share.

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


def open_critic(
    config: TrainConfig,
    start: Path | None,
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    processes: Processes,
) -> Critic | None:
    """PPO's critic, new or from the checkpoint `start`; None for other algorithms."""
    if config.algorithm.advantage != "gae":
        return None
    source = config.critic.source or config.model.source
    critic = make_critic(
        source if start is None else str(start / checkpoint.CRITIC),
        config.critic,
        config.algorithm,
        config.model,
        processes,
        lambda model: shares_prompts(config, [model], prompts, processes),
    )
    check_same_vocabulary(policy, critic.model, "critic.source")
    return critic

"""The parts of a run from its config: training rows, policy updater, critic, rollout engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot.rlvr import checkpoint, data
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.critic import Critic, make_critic
from oneshot.rlvr.data import Problem
from oneshot.rlvr.optimizer import make_optimizer
from oneshot.rlvr.policy import load_policy, resolve_device
from oneshot.rlvr.prompt import drop_long, encode
from oneshot.rlvr.rollout import TransformersEngine
from oneshot.rlvr.update import PolicyUpdater

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
    prompts = encode(problems, tokenizer, config.data.prompt)
    problems, prompts, dropped = drop_long(problems, prompts, config.rollout.max_prompt_tokens)
    return list(zip(problems, prompts, strict=True)), dropped


def make_updater(
    config: TrainConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> PolicyUpdater:
    """Optimizer and, when the KL counts, reference model."""
    reference = None
    if config.algorithm.kl_coef > 0:
        source = config.model.reference or config.model.source
        reference = load_policy(config.model, source, tokenizer).requires_grad_(False)
    return PolicyUpdater(
        policy=policy,
        reference=reference,
        optimizer=make_optimizer(policy, config.optimizer),
        algorithm=config.algorithm,
        schedule=config.optimizer,
        temperature=config.rollout.temperature,
        max_length=config.rollout.max_new_tokens,
    )


def open_critic(config: TrainConfig, start: Path | None) -> Critic | None:
    """The critic of PPO, new or that of the checkpoint `start`; None for other algorithms."""
    if config.algorithm.advantage != "gae":
        return None
    source = config.critic.source or config.model.source
    return make_critic(
        source if start is None else str(start / checkpoint.CRITIC),
        config.critic,
        config.algorithm,
        dtype=config.model.dtype,
        device=resolve_device(config.model.device),
    )


def make_engine(
    config: TrainConfig, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TransformersEngine:
    """The engine that samples from the policy as the config says."""
    return TransformersEngine(
        policy,
        tokenizer,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        max_sequences=config.rollout.max_sequences,
        stop_tokens=config.rollout.stop_tokens,
        report_logprobs=config.algorithm.correction.level != "none",
    )


def data_digest(rows: Sequence[Row]) -> str:
    """Digest of prompts and answers, by which a resumed run knows its data."""
    text = json.dumps([(prompt, problem.answer) for problem, prompt in rows])
    return hashlib.sha256(text.encode()).hexdigest()

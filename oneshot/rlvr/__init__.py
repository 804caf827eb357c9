"""RLVR: post-training a language model on one (or a few) verifiable problems.

`from oneshot.rlvr import train, TrainConfig` is the Python side of `oneshot rlvr train`. Names are
imported when they are used, so reading a config costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot.rlvr.config import EvaluateConfig, TrainConfig, load_train_config
    from oneshot.rlvr.evaluation.evaluate import Evaluation, evaluate
    from oneshot.rlvr.problems.data import Problem, read_problems
    from oneshot.rlvr.rewards.reward import make_reward
    from oneshot.rlvr.trainer import TrainResult, train

_HOME = {
    "EvaluateConfig": "config",
    "Evaluation": "evaluation.evaluate",
    "Problem": "problems.data",
    "TrainConfig": "config",
    "TrainResult": "trainer",
    "evaluate": "evaluation.evaluate",
    "load_train_config": "config",
    "make_reward": "rewards.reward",
    "read_problems": "problems.data",
    "train": "trainer",
}

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "Problem",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "load_train_config",
    "make_reward",
    "read_problems",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'oneshot.rlvr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"oneshot.rlvr.{_HOME[name]}"), name)

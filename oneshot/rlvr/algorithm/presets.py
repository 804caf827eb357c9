"""Published algorithms as choices of the options of a run.

A preset sets options of `algorithm`: the loss (`oneshot.policy_presets`), the credit, the handling
of over-long responses. Batch size, learning rate and the number of updates per rollout stay yours.
`--preset NAME` on the command line (or among the overrides of `load_train_config`) stands for its
options at that place: what comes later wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from oneshot.policy_presets import PRESETS as LOSSES

_GROUP = {
    "algorithm.advantage": "group",
    "algorithm.baseline": "mean",
    "algorithm.scale": "std",
    "algorithm.kl_in": "loss",
    "algorithm.dynamic_sampling_rounds": 0,
    "algorithm.mask_truncated": False,
    "algorithm.overlong_buffer": 0.0,
}


def _preset(loss: str, *yours: str, **changes: Any) -> dict[str, Any]:
    """The options of a loss but for those that stay yours, and changes of the group's credit."""
    options = dataclasses.asdict(LOSSES[loss])
    losses = {f"algorithm.loss.{name}": x for name, x in options.items() if name not in yours}
    return {**_GROUP, **losses, **{f"algorithm.{name}": x for name, x in changes.items()}}


PRESETS: dict[str, dict[str, Any]] = {
    # The released code of Wang et al. 2025 (arXiv:2504.20571): the defaults of the config.
    "paper": _preset("paper"),
    "grpo": _preset("grpo"),
    # Neither the length nor the deviation divides.
    "dr_grpo": _preset("dr_grpo", scale="none"),
    # Dynamic sampling (at most ten batches per step, as in verl's recipe) and soft overlong
    # punishment over the last fifth: sections 3.2 and 3.4 of the paper.
    "dapo": _preset("dapo", dynamic_sampling_rounds=9, overlong_buffer=0.2, overlong_penalty=1.0),
    "gspo": _preset("gspo"),
    "cispo": _preset("cispo"),
    "sapo": _preset("sapo"),
    "vespo": _preset("vespo"),
    "gmpo": _preset("gmpo"),
    # Leave-one-out baseline, KL in the reward (with the coefficient of your config).
    "rloo": _preset("rloo", "kl_coef", baseline="loo", scale="none", kl_in="reward"),
    # With a critic; its defaults are those of the trainer of Wang et al. 2025.
    "ppo": _preset("ppo", advantage="gae"),
}


def expand_presets(words: Sequence[str]) -> list[str]:
    """Replaces `--preset NAME` and `--preset=NAME` by the options of that preset.

    Raises:
        ValueError: An unknown preset, or none named.
    """
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--preset" or word.startswith("--preset="):
            name = word.partition("=")[2] if "=" in word else (rest.pop(0) if rest else "")
            if name not in PRESETS:
                raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
            result += [f"--{key}={_word(value)}" for key, value in PRESETS[name].items()]
        else:
            result.append(word)
    return result


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_word, value))}]"
    return ".inf" if value == float("inf") else str(value)

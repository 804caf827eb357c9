"""Published algorithms as choices of the options of a run.

A preset sets options of `algorithm`: the loss, the credit, the handling of over-long responses.
Batch size, learning rate and the number of updates per rollout stay yours. `--preset NAME` on the
command line (or among the overrides of `load_train_config`) stands for its options at that place:
what comes later wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_WITHOUT = {"algorithm.kl_coef": 0.0, "algorithm.entropy_coef": 0.0}
_GRPO = {
    "algorithm.advantage": "group",
    "algorithm.baseline": "mean",
    "algorithm.scale_by_std": True,
    "algorithm.surrogate": "clip",
    "algorithm.ratio": "token",
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.2,
    "algorithm.dual_clip": None,
    "algorithm.aggregate": "seq-mean-token-mean",
    "algorithm.kl_in": "loss",
    "algorithm.kl": "k3",
    "algorithm.dynamic_sampling_rounds": 0,
    "algorithm.mask_truncated": False,
    "algorithm.overlong_buffer": 0.0,
}
_PAPER = {
    **_GRPO,
    "algorithm.aggregate": "token-mean",
    "algorithm.kl_coef": 0.001,
    "algorithm.entropy_coef": 0.001,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The released code of Wang et al. 2025 (arXiv:2504.20571): the defaults of the config.
    "paper": _PAPER,
    # DeepSeekMath (arXiv:2402.03300), equation 3 and section 4.1.2.
    "grpo": {**_GRPO, "algorithm.kl_coef": 0.04, "algorithm.entropy_coef": 0.0},
    # Liu et al. 2025 (arXiv:2503.20783), section 3.2: neither the length nor the deviation divides.
    "dr_grpo": {
        **_GRPO,
        **_WITHOUT,
        "algorithm.scale_by_std": False,
        "algorithm.aggregate": "seq-mean-token-sum-norm",
    },
    # Yu et al. 2025 (arXiv:2503.14476), sections 3.1 to 3.4: clip-higher, dynamic sampling (at most
    # ten batches a step, as in verl's recipe), token mean, soft overlong punishment over the last
    # fifth.
    "dapo": {
        **_GRPO,
        **_WITHOUT,
        "algorithm.clip_high": 0.28,
        "algorithm.aggregate": "token-mean",
        "algorithm.dynamic_sampling_rounds": 9,
        "algorithm.overlong_buffer": 0.2,
        "algorithm.overlong_penalty": 1.0,
    },
    # Zheng et al. 2025 (arXiv:2507.18071), equations 5 and 7, section 5.1.
    "gspo": {
        **_GRPO,
        **_WITHOUT,
        "algorithm.ratio": "sequence",
        "algorithm.clip_low": 3e-4,
        "algorithm.clip_high": 4e-4,
    },
    # MiniMax 2025 (arXiv:2506.13585), equations 4 and 5. The upper bound is not printed there; 5 as
    # a ratio is the value TRL recommends. There is no lower bound.
    "cispo": {
        **_GRPO,
        **_WITHOUT,
        "algorithm.surrogate": "cispo",
        "algorithm.clip_low": float("inf"),
        "algorithm.clip_high": 4.0,
        "algorithm.aggregate": "token-mean",
    },
    # Ahmadian et al. 2024 (arXiv:2402.14740): leave-one-out baseline, log p of the whole response,
    # KL in the reward (with the coefficient of your config).
    "rloo": {
        **_GRPO,
        "algorithm.baseline": "loo",
        "algorithm.scale_by_std": False,
        "algorithm.surrogate": "reinforce",
        "algorithm.aggregate": "seq-mean-token-sum",
        "algorithm.kl_in": "reward",
        "algorithm.kl": "k1",
        "algorithm.entropy_coef": 0.0,
    },
    # PPO with a critic, otherwise as the released code of Wang et al. 2025; the paper prints no
    # more about its PPO rows, and the critic's defaults are those of its trainer.
    "ppo": {**_PAPER, "algorithm.advantage": "gae"},
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
    return ".inf" if value == float("inf") else str(value)

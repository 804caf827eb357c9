"""What `oneshot rlvr study` compares: arms, each a set of overrides of one base config.

The base is the plain case: one example, outcome reward, every term of the loss. The phenomena are
those of Wang et al. 2025 (arXiv:2504.20571). `data.path` of an arm names a file beside that of the
base (`examples/prepare_embedded_studies.py` writes them for the embedded model):

    shots_2, shots_4                  the first examples of the ranking by historical variance
    example_<middle, low, unsolved>   single examples of other ranks
    example_short                     one of a simpler kind (embedded: a story of two digits)
    full, full_60, full_90            the whole set; with that share of its labels flipped
    label_<near, guess, wild>         the one example with a wrong label

Overrides equal to the base change nothing, so arms of two studies that resolve to the same config
are one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Overrides = Mapping[str, Any]

POLICY, KL = "algorithm.loss.policy_coef", "algorithm.loss.kl_coef"
ENTROPY, DECAY = "algorithm.loss.entropy_coef", "optimizer.weight_decay"
DATA, REWARD = "data.path", "reward.function"


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
        question: One sentence, the title of the table.
        arms: Name -> overrides of the base, by dotted field names.
        length: Factor of `run.steps` of the base.
    """

    question: str
    arms: Mapping[str, Overrides]
    length: int = 1


STUDIES: dict[str, Study] = {
    # Tables 8 and 14: one example against the set it comes from, and the effect of format alone.
    "one_vs_full": Study(
        "Is one example as good as the whole set, and how much of it is format?",
        {
            "one example": {},
            "two examples": {DATA: "shots_2"},
            "four examples": {DATA: "shots_4"},
            "full set": {DATA: "full"},
            "one example, format reward": {REWARD: "format"},
            "full set, format reward": {DATA: "full", REWARD: "format"},
        },
    ),
    # Table 3.
    "examples": Study(
        "Does it matter which example it is?",
        {
            "highest variance": {},
            "middle variance": {DATA: "example_middle"},
            "low variance, mostly solved": {DATA: "example_low"},
            "never solved": {DATA: "example_unsolved"},
            "two digits": {DATA: "example_short"},
        },
    ),
    # Section 3.2, Figure 2.
    "post_saturation": Study(
        "Does unseen accuracy rise after the training reward has saturated?",
        {"one example": {}},
        length=3,
    ),
    # Tables 5 and 13, Figure 5. Positive coefficients ask for more entropy.
    "entropy": Study(
        "What does the entropy bonus do?",
        {
            "none": {ENTROPY: 0.0},
            "0.001": {ENTROPY: 0.001},
            "0.003": {ENTROPY: 0.003},
            "0.001 alone": {POLICY: 0.0, KL: 0.0, DECAY: 0.0, ENTROPY: 0.001},
        },
    ),
    # Table 5, rows 1 to 10.
    "loss_components": Study(
        "Which terms of the loss are needed?",
        {
            "none": {POLICY: 0.0, DECAY: 0.0, KL: 0.0, ENTROPY: 0.0},
            "policy": {DECAY: 0.0, KL: 0.0, ENTROPY: 0.0},
            "policy, decay": {KL: 0.0, ENTROPY: 0.0},
            "policy, decay, KL": {ENTROPY: 0.0},
            "policy, decay, KL, entropy": {ENTROPY: 0.001},
            "policy, decay, KL, entropy 0.003": {ENTROPY: 0.003},
            "policy, entropy": {DECAY: 0.0, KL: 0.0, ENTROPY: 0.001},
            "decay, KL": {POLICY: 0.0, ENTROPY: 0.0},
            "decay, KL, entropy": {POLICY: 0.0, ENTROPY: 0.001},
            "entropy": {POLICY: 0.0, DECAY: 0.0, KL: 0.0, ENTROPY: 0.001},
        },
    ),
    # Table 14, and the control that the paper lacks.
    "rewards": Study(
        "What does the outcome reward add to any reward?",
        {"outcome": {}, "format": {REWARD: "format"}, "random": {REWARD: "random"}},
    ),
    # Table 5, rows 11 to 13, and Table 17.
    "label_error": Study(
        "What does a wrong label do?",
        {
            "right label": {},
            "off by one": {DATA: "label_near"},
            "what a guess says": {DATA: "label_guess"},
            "nothing near": {DATA: "label_wild"},
            "full set": {DATA: "full"},
            "full set, 60 % flipped": {DATA: "full_60"},
            "full set, 90 % flipped": {DATA: "full_90"},
        },
    ),
    # Tables 4 and 17.
    "algorithms": Study(
        "Does it take GRPO?",
        {"GRPO": {}, "PPO": {"algorithm.advantage": "gae"}},
    ),
}

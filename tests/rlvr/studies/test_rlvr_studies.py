"""What the studies say: every arm changes exactly the fields of its row here, written out anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from oneshot.rlvr.config import load_train_config
from oneshot.rlvr.studies.definitions import STUDIES
from oneshot.rlvr.studies.study import run_name, runs
from oneshot.training.config import flat, to_dict

ROOT = Path(__file__).resolve().parents[3]
FOLDER = "data/embedded_studies/"
ON = {"policy": 1.0, "decay": 0.01, "kl": 0.2, "entropy": 0.001}
FIELDS = {
    "policy": "algorithm.loss.policy_coef",
    "decay": "optimizer.weight_decay",
    "kl": "algorithm.loss.kl_coef",
    "entropy": "algorithm.loss.entropy_coef",
}


def terms(**values):
    """The fields of these terms of the loss."""
    return {FIELDS[name]: value for name, value in values.items()}


def data(name):
    return {"data.path": f"{FOLDER}{name}.jsonl"}


# Study -> arm -> every field that differs from the base, with its value.
EXPECTED = {
    "one_vs_full": {
        "one example": {},
        "two examples": data("shots_2"),
        "four examples": data("shots_4"),
        "full set": data("full"),
        "one example, format reward": {"reward.function": "format"},
        "full set, format reward": {**data("full"), "reward.function": "format"},
    },
    "examples": {
        "highest variance": {},
        "middle variance": data("example_middle"),
        "low variance, mostly solved": data("example_low"),
        "never solved": data("example_unsolved"),
        "two digits": data("example_short"),
    },
    "post_saturation": {"one example": {"run.steps": 120}},
    "entropy": {
        "none": terms(entropy=0),
        "0.001": {},
        "0.003": terms(entropy=0.003),
        "0.001 alone": terms(policy=0, decay=0, kl=0),
    },
    # The rows 1 to 10 of Table 5.
    "loss_components": {
        "none": terms(policy=0, decay=0, kl=0, entropy=0),
        "policy": terms(decay=0, kl=0, entropy=0),
        "policy, decay": terms(kl=0, entropy=0),
        "policy, decay, KL": terms(entropy=0),
        "policy, decay, KL, entropy": {},
        "policy, decay, KL, entropy 0.003": terms(entropy=0.003),
        "policy, entropy": terms(decay=0, kl=0),
        "decay, KL": terms(policy=0, entropy=0),
        "decay, KL, entropy": terms(policy=0),
        "entropy": terms(policy=0, decay=0, kl=0),
    },
    "rewards": {
        "outcome": {},
        "format": {"reward.function": "format"},
        "random": {"reward.function": "random"},
    },
    "label_error": {
        "right label": {},
        "off by one": data("label_near"),
        "what a guess says": data("label_guess"),
        "nothing near": data("label_wild"),
        "full set": data("full"),
        "full set, 60 % flipped": data("full_60"),
        "full set, 90 % flipped": data("full_90"),
    },
    "algorithms": {"GRPO": {}, "PPO": {"algorithm.advantage": "gae"}},
}


@pytest.fixture(scope="module")
def base():
    config = load_train_config(ROOT / "configs" / "studies" / "embedded.yaml")
    assert {name: flat(to_dict(config))[key] for name, key in FIELDS.items()} == ON
    assert config.reward.function == "math_verify"
    return config


def test_every_study_is_expected():
    assert {name: list(study.arms) for name, study in STUDIES.items()} == {
        name: list(arms) for name, arms in EXPECTED.items()
    }


@pytest.mark.parametrize("name", list(EXPECTED))
def test_arms_differ_from_the_base_in_what_they_say(name, base):
    before = flat(to_dict(base))
    planned = list(runs(STUDIES[name], base, 2))
    assert [(run.seed, run.arm) for run in planned] == [
        (seed, arm) for seed in (0, 1) for arm in EXPECTED[name]
    ]
    folders = [run.config.run.output for run in planned]
    assert len(set(folders)) == len(folders)
    for run in planned:
        after = flat(to_dict(run.config))
        changed = {key: value for key, value in after.items() if value != before[key]}
        assert changed.pop("run.seed", 0) == run.seed
        changed.pop("run.output")
        assert changed == EXPECTED[name][run.arm]
        assert run.config.run.output.endswith(f"/seed_{run.seed}")


def test_seeds_count_up_from_that_of_the_base(base):
    base = replace(base, run=replace(base.run, seed=7))
    assert [run.seed for run in runs(STUDIES["post_saturation"], base, 3)] == [7, 8, 9]


def test_arms_of_one_config_share_a_folder_and_others_do_not(base):
    found: dict[str, dict] = {}
    for study in STUDIES.values():
        for run in runs(study, base, 1):
            config = flat(to_dict(run.config))
            assert found.setdefault(run.config.run.output, config) == config
    assert len({str(config) for config in found.values()}) == len(found)
    names = {Path(folder).parent.name for folder in found}
    # Of 38 arms 7 are the base, and 5 pairs are the same: no entropy, entropy 0.003, entropy alone,
    # format, full set.
    assert sum(len(study.arms) for study in STUDIES.values()) == 38
    assert len(names) == 38 - 6 - 5
    assert {
        "base",
        "algorithm.loss.entropy_coef=0.003",
        "data.path=full,reward.function=format",
    } <= names


def test_names_of_runs_say_what_differs(base):
    arms = {run.arm: run.config for run in runs(STUDIES["loss_components"], base, 1)}
    assert run_name(base, arms["policy, decay, KL, entropy"]) == "base"
    # Fields come in the order of the config.
    expected = "algorithm.loss.entropy_coef=0.0,algorithm.loss.kl_coef=0.0"
    assert sorted(run_name(base, arms["policy, decay"]).split(",")) == sorted(expected.split(","))


@pytest.mark.parametrize("name", ["rewards", "entropy", "one_vs_full"])
def test_the_base_of_the_real_model_loads_and_takes_the_overrides(name):
    base = load_train_config(ROOT / "configs" / "studies" / "smollm2.yaml")
    one = load_train_config(ROOT / "configs" / "smollm2_oneshot.yaml")
    assert base.data.prompt == one.data.prompt
    assert base.rollout == one.rollout
    folders = {run.config.run.output for run in runs(STUDIES[name], base, 2)}
    assert len(folders) == 2 * len(EXPECTED[name])
    paths = {run.config.data.path for run in runs(STUDIES[name], base, 1)}
    more = {"shots_2", "shots_4", "full"} if name == "one_vs_full" else set()
    files = {"shots_1"} | more
    assert paths == {f"data/smollm2_oneshot/{file}.jsonl" for file in files}

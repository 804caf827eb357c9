"""Config files, overrides and their errors."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from oneshot.rlvr.algorithm_config import CriticConfig, OptimizerConfig
from oneshot.rlvr.config import EvaluateConfig, RolloutConfig, TrainConfig, load_train_config
from oneshot.training.config import argument_parser, to_dict

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["--data.path=d.jsonl", "--run.output=o"]


def flat(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    items = [flat(item, f"{prefix}{key}.") for key, item in value.items()]
    return {key: item for part in items for key, item in part.items()}


def test_defaults_are_the_paper_script():
    """Figures of scripts/train/training_1.5b_pi1_r128.sh, as printed in its fact sheet."""
    found = flat(to_dict(load_train_config(None, NEEDED)))
    expected = {
        "model.source": "Qwen/Qwen2.5-Math-1.5B",
        "rollout.batch_size": 128,
        "rollout.samples_per_prompt": 8,
        "rollout.temperature": 0.6,
        "rollout.top_p": 1.0,
        "rollout.top_k": -1,
        "rollout.max_prompt_tokens": 1024,
        "rollout.max_new_tokens": 3072,
        "algorithm.loss.policy_coef": 1.0,
        "algorithm.loss.entropy_coef": 0.001,
        "algorithm.loss.kl_coef": 0.001,
        "algorithm.loss.kl": "k3",
        "algorithm.loss.clip_low": 0.2,
        "algorithm.loss.clip_high": 0.2,
        "algorithm.advantage_eps": 1e-6,
        "algorithm.updates_per_rollout": 1,
        "algorithm.microbatch_tokens": 24000,
        "optimizer.lr": 1e-6,
        "optimizer.weight_decay": 0.01,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.eps": 1e-8,
        "optimizer.max_grad_norm": 1.0,
        "optimizer.warmup_steps": 0,
        "evaluation.every": 20,
        "evaluation.temperature": 0.0,
        "run.steps": 2000,
        "run.seed": 1,
        "run.save_every": 20,
    }
    assert {key: found[key] for key in expected} == expected


CONFIGS = sorted(ROOT.glob("configs/*.yaml"))  # recipes: test_rlvr_paper.py


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_are_valid(path):
    if "grader" in yaml.safe_load(path.read_text()):
        argument_parser(EvaluateConfig, "eval").parse_args(["--config", str(path)])
        return
    config = load_train_config(path)
    written = flat(yaml.safe_load(path.read_text()))
    found = flat(to_dict(config))
    assert {key: found[key] for key in written} == written


def test_file_then_override(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "data: {path: x, prompt: {suffix: ' box it'}}\n"
        "run: {output: o}\n"
        "optimizer: {lr: 1.0e-3, warmup_steps: 5}\n"
        "evaluation: {prompt: {template: plain, plain_format: 'Q {problem}'}}\n"
    )
    config = load_train_config(path, ["--optimizer.lr=1e-5", "--rollout.stop_tokens=['a', 'b']"])
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-5, 5)
    assert config.data.prompt.suffix == " box it"
    assert config.evaluation.prompt.plain_format == "Q {problem}"
    assert config.rollout.stop_tokens == ("a", "b")
    again = tmp_path / "b.yaml"
    again.write_text(yaml.safe_dump(to_dict(config)))
    assert load_train_config(again) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--optimizer.learning_rate=1"], "learning_rate"),
        (["--optimizer.lr=fast"], r"optimizer\.lr"),
        (["--rollout.temperature=0"], r"rollout\.temperature must be > 0, got 0"),
        (["--rollout.batch_size=0"], r"rollout\.batch_size must be a positive number, got 0"),
        (["--rollout.top_p=1.5"], r"rollout\.top_p must be in \(0, 1\], got 1\.5"),
        (["--rollout.top_k=0"], r"rollout\.top_k must be -1 or > 0, got 0"),
        (["--algorithm.loss.kl=k4"], r"algorithm\.loss\.kl"),
        (["--algorithm.updates_per_rollout=3"], "a divisor of the 1024 sequences of a rollout"),
        (["--evaluation.samples=4"], "> 0 when evaluation.samples is above 1"),
        (["--reward.function=maths"], "or \"module:function\", got 'maths'"),
        (["--run.keep_checkpoints=0"], r"run\.keep_checkpoints must be a positive number"),
        (["--evaluation.max_new_tokens=0"], r"max_new_tokens must be a positive number, got 0"),
        (["--data.limit=0"], r"data\.limit must be a positive number"),
    ],
)
def test_errors_name_the_field(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_train_config(None, [*NEEDED, *overrides])


def every_config():
    config = load_train_config(None, NEEDED)
    groups = [getattr(config, field.name) for field in fields(TrainConfig)]
    nested = [config.data.prompt, config.rollout.vllm, config.algorithm.correction]
    evaluate = EvaluateConfig(model=config.model, data=config.data)
    return [config, *groups, *nested, config.critic.optimizer, evaluate]


@pytest.mark.parametrize("config", every_config(), ids=lambda config: type(config).__name__)
def test_a_config_built_in_python_is_checked_as_on_the_command_line(config):
    """Every field of every config refuses a value of another type, a Literal any other value."""
    hints = get_type_hints(type(config))
    assert replace(config) == config
    for field in fields(config):
        wrong = [object(), [object()], {"a": 1}]
        hint = hints[field.name]
        if get_origin(hint) is Literal:
            wrong += ["no such choice", get_args(hint)[0].upper()]
        if hint is int:
            wrong += ["1", 1.5, True, None]
        if hint is float:
            wrong += ["0.5", True, None]
        if hint is bool:
            wrong += ["true", 1, None]
        if get_origin(hint) is tuple:
            wrong += ["text", [1j]]
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{field.name} must be .*, got"):
                replace(config, **{field.name: value})


def test_what_python_may_write_otherwise():
    assert OptimizerConfig(lr=1).lr == 1
    assert RolloutConfig(stop_tokens=["a"]).stop_tokens == ["a"]
    assert CriticConfig(value_clip=None).value_clip is None


def test_unknown_key_in_a_file_and_missing_fields(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {path: x}\nrun: {output: o, stepz: 3}\n")
    with pytest.raises(ValueError, match=r"a\.yaml.*stepz"):
        load_train_config(path)
    with pytest.raises(ValueError, match=r"data\.path"):
        load_train_config(None, ["--run.output=o"])
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_train_config(tmp_path / "nowhere.yaml")


def test_every_field_is_documented():
    help_text = argument_parser(TrainConfig, "p").format_help()
    config = load_train_config(None, NEEDED)
    for group in fields(TrainConfig):
        for field in fields(type(getattr(config, group.name))):
            start = help_text.index(f"--{group.name}.{field.name}", help_text.index("options:"))
            entry = help_text[start : start + 600].split("\n  --")[0]
            described = " ".join(entry.split()).partition(" (type:")[0]
            assert len(described) > len(f"--{group.name}.{field.name}") + 15, entry


def test_reading_a_config_imports_no_torch():
    code = (
        "import sys; from oneshot.rlvr.config import load_train_config;"
        f"load_train_config(None, {NEEDED!r});"
        "import oneshot.cli; oneshot.cli.main(['--help']);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

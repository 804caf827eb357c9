"""Each row of the tables of the paper: its recipe differs from the script exactly as it must."""

from pathlib import Path

import pytest
import torch

from oneshot.cli import main
from oneshot.rlvr.config import load_train_config
from oneshot.rlvr.problems.data import read_problems
from oneshot.rlvr.recipes import recipe, recipes, table
from oneshot.training.config import to_dict

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "data/train/one_shot_rlvr/"

# Model in the name -> source, steps (the paper's; 2000 where it prints none).
MODELS = {
    "qwen2.5-math-1.5b": ("Qwen/Qwen2.5-Math-1.5B", 2000),
    "qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-7B", 1000),
    "llama-3.2-3b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", 1000),
    "r1-distill-qwen-1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1200),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B", 2000),
    "qwen2.5-math-1.5b-instruct": ("Qwen/Qwen2.5-Math-1.5B-Instruct", 2000),
}
RELEASED = {
    "dsr-sub": ("dsr_sub", 1209, 1209),
    "pi1": ("pi1_r128", 128, 1),
    "pi2": ("pi2_r128", 128, 1),
    "pi13": ("pi13_r128", 128, 1),
    "pi1209": ("pi1209_r128", 128, 1),
    "pi1-pi13": ("merge_pi1_pi13_r128", 128, 2),
    "4shot": ("merge_pi1_pi2_pi13_pi1209_r128", 128, 4),
}
MADE = {
    "math": "math_train",
    "16shot": "shots_16",
    "random16": "random_16",
    "pi1-pi2": "ranks_1_2",
    "pi1-prime": "pi1_prime_r128",
    **{f"pi{n}": f"ranks_{n}" for n in (4, 7, 11, 16, 17, 605, 606, 1201, 1207, 1208)},
}
# Table 5: policy loss, weight decay, KL coefficient, entropy coefficient (their sign), label.
TABLE_5 = {
    1: (0, 0, 0, 0, "12.8"),
    2: (1, 0, 0, 0, "12.8"),
    3: (1, 0.01, 0, 0, "12.8"),
    4: (1, 0.01, 0.001, 0, "12.8"),
    5: (1, 0.01, 0.001, -0.001, "12.8"),
    6: (1, 0.01, 0.001, -0.003, "12.8"),
    7: (1, 0, 0, -0.001, "12.8"),
    8: (0, 0.01, 0.001, 0, "12.8"),
    9: (0, 0.01, 0.001, -0.001, "12.8"),
    10: (0, 0, 0, -0.001, "12.8"),
    11: (1, 0.01, 0.001, -0.001, "12.7"),
    12: (1, 0.01, 0.001, -0.001, "4"),
    13: (1, 0.01, 0.001, -0.001, "9292725"),
}


def flat(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    items = [flat(item, f"{prefix}{key}.") for key, item in value.items()]
    return {key: item for part in items for key, item in part.items()}


def expected(stem):
    """What differs from the released script, read from the name of the recipe."""
    model, data, variant = (*stem.split("_"), "")[:3]
    source, steps = MODELS[model]
    found = {
        "model.source": source,
        "run.steps": steps,
        "data.path": f"{FOLDER}{RELEASED[data][0] if data in RELEASED else MADE[data]}.parquet",
        "reward.function": "strict",
    }
    if data == "dsr-sub":
        found["data.empty_answers"] = "keep"
    if model.startswith("r1-distill"):
        found["rollout.max_new_tokens"] = 8192
    if variant.startswith("ablation"):
        policy, decay, kl, entropy, label = TABLE_5[int(variant.removeprefix("ablation"))]
        found["algorithm.loss.policy_coef"] = policy
        found["optimizer.weight_decay"] = decay
        found["algorithm.loss.kl_coef"] = kl
        found["algorithm.loss.entropy_coef"] = -entropy
        if label != "12.8":
            found["data.path"] = f"{FOLDER}pi1_{label}.parquet"
        return found
    for part in variant.split("-") if variant != "entropy-only" else ["entropy-only"]:
        if part in ("noise60", "noise90"):
            found["data.path"] = f"{FOLDER}dsr_sub_{part[-2:]}.parquet"
        elif part:
            found |= {
                "entropy-only": {
                    "algorithm.loss.policy_coef": 0,
                    "algorithm.loss.kl_coef": 0,
                    "optimizer.weight_decay": 0,
                },
                "format": {"reward.function": "format"},
                "noent": {"algorithm.loss.entropy_coef": 0},
                "ppo": {"algorithm.advantage": "gae"},
                "t1.0": {"rollout.temperature": 1.0},
            }[part]
    return found


@pytest.mark.parametrize("name", recipes())
def test_a_row(name):
    found = flat(to_dict(recipe(name).config()))
    script = flat(to_dict(load_train_config(None, ["--data.path=d", "--run.output=o"])))
    script |= {
        "run.output": f"runs/paper/{name}",
        "model.dtype": "mixed",  # float32 weights, bfloat16 computation
        "evaluation.path": "data/test/math500.parquet",
        "evaluation.grader": "strict",
    }
    assert found == {**script, **expected(name)}


def test_every_row_is_there_once():
    assert len(recipes()) == 72
    assert {f"qwen2.5-math-1.5b_pi1_ablation{n:02}" for n in TABLE_5} <= recipes().keys()
    page = (ROOT / "docs" / "rlvr_paper.md").read_text()
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(recipes())
    assert table() in page


def test_the_command_lists_prints_plans_and_trains(tiny_folder, tmp_path, capsys):
    name = "qwen2.5-math-1.5b_pi1_noent"
    assert main(["rlvr", "recipe"]) == 0
    assert capsys.readouterr().out == table()
    assert main(["rlvr", "recipe", name, "--run.seed", "7"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert load_train_config(tmp_path / "config.yaml") == recipe(name).config(["--run.seed=7"])
    assert main(["rlvr", "recipe", name, "--plan"]) == 0
    numbers = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    # docs/scaling.md, with a copy and logits in bfloat16.
    assert numbers == ["1.54", "3.59", "2.88", "6.79", "28.00", "37,925.93", "10.12"]
    assert main(["rlvr", "recipe", "nope"]) == 1
    assert "no recipe 'nope'" in capsys.readouterr().err
    small = ["--rollout.batch_size=2", "--rollout.samples_per_prompt=2", "--run.steps=1"]
    small += ["--rollout.max_new_tokens=6", "--evaluation.path=null", "--run.threads=1"]
    small += [f"--model.source={tiny_folder / 'model'}", f"--run.output={tmp_path / 'run'}"]
    small += [f"--data.path={tiny_folder / 'train.jsonl'}", "--model.dtype=float32"]
    threads = torch.get_num_threads()
    try:
        assert main(["rlvr", "recipe", name, "--train", *small]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "step 1: reward" in capsys.readouterr().out
    written = load_train_config(tmp_path / "run" / "config.yaml")
    assert written == recipe(name).config(small)
    assert written.algorithm.loss.entropy_coef == 0


@pytest.mark.parametrize("name", list(RELEASED))
def test_the_released_data_are_what_the_rows_say(shared_data, name):
    file, rows, distinct = RELEASED[name]
    problems = read_problems(
        shared_data / "rlvr" / FOLDER / f"{file}.parquet", empty_answers="keep"
    )
    assert len(problems) == rows
    assert len({problem.index for problem in problems}) == distinct
    suffix = "Let's think step by step and output the final answer within \\boxed{}."
    assert all(problem.messages[-1]["content"].endswith(suffix) for problem in problems)

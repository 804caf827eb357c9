"""Whole runs on the tiny model: learning, files, determinism, errors that stop a run."""

import copy
import shutil

import pytest
import rlvr_families
import rlvr_tiny
import torch
from safetensors.torch import load_file, save_file

from oneshot.rlvr import checkpoint, recorder
from oneshot.rlvr.config import load_train_config
from oneshot.rlvr.rewards.reward import RewardError
from oneshot.rlvr.trainer import train
from oneshot.training import checkpoints
from oneshot.training.errors import NonFiniteLossError
from oneshot.training.jsonl import read_jsonl
from oneshot.training.state import TrainerState, load_optimizer

FIGURES = {
    "reward/mean",
    "group/mixed",
    "group/all_right",
    "group/all_wrong",
    "policy/entropy",
    "policy/kl",
    "policy/clip_fraction",
    "optimizer/grad_norm",
    "response/length_mean",
    "response/length_max",
    "response/truncated_ratio",
    "response/boxed_ratio",
    "perf/tokens_per_second",
}


@pytest.fixture(autouse=True)
def _light_runs(monkeypatch):
    """No drawing, which takes longer than a run; and torch's threads as they were before it."""
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_learns_and_leaves_its_files(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        "--run.steps=20",
        "--run.save_every=20",
        "--rollout.batch_size=8",
        "--optimizer.lr=3e-3",
        "--evaluation.every=10",
    )
    result = train(config, reward=rlvr_tiny.share_of_a)
    rewards = [row["reward/mean"] for row in result.history if "reward/mean" in row]
    assert len(rewards) == 20
    assert rewards[0] < 0.1
    assert sum(rewards[-5:]) / 5 > 0.5
    assert all(row.keys() >= FIGURES for row in result.history[1:])
    assert [row["step"] for row in result.history if "validation/accuracy" in row] == [0, 10, 20]
    assert result.history == read_jsonl(result.output / "metrics.jsonl")
    assert result.history[1]["policy/kl"] == pytest.approx(0, abs=1e-6)  # still the reference
    assert all(row["policy/clip_fraction"] == 0 for row in result.history[1:])
    written = {p.name for p in result.output.iterdir()}
    assert written >= {"config.yaml", "metrics.jsonl", "samples.jsonl", "curves.png", "tensorboard"}
    assert load_train_config(result.output / "config.yaml") == config
    samples = read_jsonl(result.output / "samples.jsonl")
    assert samples[-1].keys() == {"step", "index", "answer", "reward", "response"}
    validation = read_jsonl(result.output / "validation" / "step_000020.jsonl")
    assert [row["answer"] for row in validation] == ["7", "21", "110"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(result.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    start = load_file(tiny_folder / "model" / "model.safetensors")
    assert not torch.equal(model.model.embed_tokens.weight, start["model.embed_tokens.weight"])


def test_same_seed_same_weights_other_seed_others(tiny_folder, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name) % 1000)  # the state of torch's generator plays no part
        config = rlvr_tiny.config(
            tiny_folder, tmp_path / name, "--run.steps=2", f"--run.seed={seed}"
        )
        result = train(config, reward=rlvr_tiny.share_of_a)
        weights.append((result.checkpoint / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_one_problem_is_many_groups(tiny_folder, tmp_path):
    """Four copies of the problem are four groups: each has its own mean."""
    seen = []

    def reward(responses, problems):
        seen.append([problem.answer for problem in problems])
        # Group 0 all right, group 1 all wrong, groups 2 and 3 mixed.
        return [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0]

    config = rlvr_tiny.config(tiny_folder, tmp_path / "run", "--run.steps=1")
    row = train(config, reward=reward).history[-1]
    assert seen == [["7"] * 16]
    found = [row[f"group/{name}"] for name in ("mixed", "all_right", "all_wrong")]
    assert found == [0.5, 0.25, 0.25]
    assert row["reward/mean"] == 0.5


def test_no_reference_model_without_kl(tiny_folder, tmp_path, monkeypatch):
    from oneshot import models

    calls = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *a, **k: calls.append(a) or load(*a, **k))
    for coefficient, expected in ((0.0, 1), (0.1, 2)):
        calls.clear()
        config = rlvr_tiny.config(
            tiny_folder,
            tmp_path / str(coefficient),
            "--run.steps=1",
            f"--algorithm.loss.kl_coef={coefficient}",
        )
        result = train(config, reward=rlvr_tiny.share_of_a)
        assert len(calls) == expected
        assert ("policy/kl" in result.history[-1]) == (expected == 2)


def test_several_updates_per_rollout(tiny_folder, tmp_path):
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        "--algorithm.updates_per_rollout=4",
        "--optimizer.lr=1e-2",
        "--run.steps=2",
    )
    result = train(config, reward=rlvr_tiny.share_of_a)
    assert TrainerState.read(result.checkpoint).updates == {"policy": 8}
    assert abs(result.history[-1]["policy/old_kl"]) > 1e-6  # the later updates are off-policy


def test_long_prompts_are_left_out_and_counted(tiny_folder, tmp_path):
    options = [f"--data.path={tiny_folder / 'eval.jsonl'}", "--run.steps=1"]
    config = rlvr_tiny.config(
        tiny_folder, tmp_path / "run", *options, "--rollout.max_prompt_tokens=6"
    )
    assert train(config, reward=rlvr_tiny.share_of_a).dropped_prompts == 1
    config = rlvr_tiny.config(
        tiny_folder, tmp_path / "none", *options, "--rollout.max_prompt_tokens=3"
    )
    with pytest.raises(ValueError, match="no prompt has at most max_prompt_tokens = 3 tokens"):
        train(config)


def test_not_a_number_stops_the_run_and_keeps_the_checkpoint(tiny_folder, tmp_path):
    def reward(responses, problems):
        if reward.calls == 4:  # the advantages of a huge spread overflow
            return [3e38, -3e38] * (len(responses) // 2)
        reward.calls += 1
        return rlvr_tiny.share_of_a(responses, problems)

    reward.calls = 0
    config = rlvr_tiny.config(tiny_folder, tmp_path / "run", "--algorithm.scale=none")
    with pytest.raises(NonFiniteLossError, match=r"step 5: .*checkpoints of earlier steps"):
        train(config, reward=reward)
    last = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert last.name == "step_000004"
    assert all(x.isfinite().all() for x in load_file(last / "model.safetensors").values())
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 4


def test_a_reward_that_raises_stops_the_run(tiny_folder, tmp_path):
    config = rlvr_tiny.config(tiny_folder, tmp_path / "run", "--reward.function=json:dumps")
    with pytest.raises(RewardError, match="reward 'json:dumps' failed on response 0"):
        train(config)


def test_tokenizer_of_another_model(tiny_folder, tmp_path):
    rlvr_tiny.write_model(tmp_path / "model")
    config = rlvr_tiny.config(
        tiny_folder, tmp_path / "run", f"--model.source={tmp_path / 'model'}", "--run.steps=1"
    )
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:20].clone()
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    text = (tmp_path / "model" / "config.json").read_text()
    vocabulary = len(rlvr_tiny.make_tokenizer())
    (tmp_path / "model" / "config.json").write_text(
        text.replace(f'"vocab_size": {vocabulary}', '"vocab_size": 20')
    )
    with pytest.raises(ValueError, match=rf"has {vocabulary} tokens, but .* embeddings for 20"):
        train(config)
    assert not (tmp_path / "run").exists()  # the corrected command needs no other folder


def write_larger_tokenizer(folder):
    """A model folder whose tokenizer has one added token more than the model has embeddings."""
    rlvr_tiny.write_model(folder)
    tokenizer = rlvr_tiny.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)


def test_an_added_token_beyond_the_embeddings_is_refused_only_where_it_is_used(
    tiny_folder, tmp_path
):
    """Gemma 3's text models have 262144 embeddings and a tokenizer of 262145."""
    write_larger_tokenizer(tmp_path / "model")
    words = [f"--model.source={tmp_path / 'model'}", "--run.steps=1"]
    train(rlvr_tiny.config(tiny_folder, tmp_path / "run", *words), reward=rlvr_tiny.share_of_a)
    for where in ("data.prompt.suffix", "evaluation.prompt.suffix"):
        config = rlvr_tiny.config(tiny_folder, tmp_path / "used", *words, f"--{where}=<image>")
        with pytest.raises(ValueError, match="a prompt has token id 32; the model has 32"):
            train(config)
    assert not (tmp_path / "used").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rollout.max_new_tokens=60"], r"rollout\.max_new_tokens must be at most 64 .* = 59"),
        (
            ["--evaluation.max_new_tokens=59", "--evaluation.prompt.few_shot=12345678"],
            r"evaluation\.max_new_tokens must be at most 64 .* 15 \(longest prompt\) = 49, got 59",
        ),
        (
            ["--rollout.max_new_tokens=50", "--evaluation.prompt.few_shot=12345678"],
            r"rollout\.max_new_tokens must be at most 64 .* = 49, got 50",
        ),
        (
            [f"--evaluation.prompt.few_shot={'1' * 70}"],
            "the longest prompt has 77 tokens, but the model has 64 positions",
        ),
    ],
)
def test_prompts_have_room_before_anything_begins(tiny_folder, tmp_path, words, message):
    """Of training and of validation, in a model with learned positions."""
    rlvr_families.write(tmp_path / "model", "gpt2", n_positions=64, max_position_embeddings=64)
    words = [f"--model.source={tmp_path / 'model'}", "--evaluation.before_training=false", *words]
    with pytest.raises(ValueError, match=message):
        train(rlvr_tiny.config(tiny_folder, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_smaller_reference_or_critic_is_refused(tiny_folder, tmp_path):
    write_larger_tokenizer(tmp_path / "model")
    rlvr_tiny.write_model(tmp_path / "policy", vocabulary=40)
    for words, option in (
        (
            ["--algorithm.loss.kl_coef=0.1", f"--model.reference={tmp_path / 'model'}"],
            "model.reference",
        ),
        (
            ["--preset=ppo", "--algorithm.loss.kl_coef=0", f"--critic.source={tmp_path / 'model'}"],
            "critic",
        ),
    ):
        words = [f"--model.source={tmp_path / 'policy'}", *words]
        with pytest.raises(
            ValueError, match=f"{option}.*with the 40 token ids of the policy, got 32"
        ):
            train(rlvr_tiny.config(tiny_folder, tmp_path / "run", *words))


def test_output_must_be_new(tiny_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        train(rlvr_tiny.config(tiny_folder, tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    with pytest.raises(FileExistsError, match="is a file"):
        train(rlvr_tiny.config(tiny_folder, tmp_path / "run" / "notes.txt"))


def state(step):
    return TrainerState(step, "digest", {"policy": step}, 1, torch.__version__)


def optimizer_after_a_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model(torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    optimizer.step()
    return optimizer


def test_checkpoint_round_trip_and_rotation(tiny, tmp_path):
    model, tokenizer = tiny
    optimizer = optimizer_after_a_step(model)
    for step in (1, 2, 30):
        checkpoint.save(
            tmp_path, checkpoint.snapshot(model, optimizer), tokenizer, state(step), keep=2
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000030"]
    assert checkpoints.latest(tmp_path) == tmp_path / "step_000030"
    assert TrainerState.read(tmp_path / "step_000030") == state(30)
    other = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    load_optimizer(tmp_path / "step_000030", model.named_parameters(), other)
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][key], value)
    wider = copy.deepcopy(model)
    wider.model.norm.weight = torch.nn.Parameter(torch.ones(33))
    with pytest.raises(checkpoints.CheckpointError, match=r"norm\.weight have shape \(32,\)"):
        load_optimizer(
            tmp_path / "step_000030",
            wider.named_parameters(),
            torch.optim.AdamW(wider.parameters()),
        )


def test_unfinished_checkpoints_do_not_count(tiny, tmp_path):
    model, tokenizer = tiny
    snapshot = checkpoint.snapshot(model, optimizer_after_a_step(model))
    saved = checkpoint.save(tmp_path, snapshot, tokenizer, state(2))
    shutil.copytree(saved, tmp_path / ".step_000004.writing")
    shutil.copytree(saved, tmp_path / ".step_000001.removed")
    assert checkpoints.latest(tmp_path) == saved
    checkpoints.clean(tmp_path)
    assert list(tmp_path.iterdir()) == [saved]


def test_a_full_disk_leaves_the_previous_checkpoint(tiny, tmp_path):
    """Writes really fail: the process may not write files beyond a size."""
    resource = pytest.importorskip("resource")
    model, tokenizer = tiny
    snapshot = checkpoint.snapshot(model, optimizer_after_a_step(model))
    saved = checkpoint.save(tmp_path, snapshot, tokenizer, state(1))
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    size = len(before["model.safetensors"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The weights fit and the moments, twice as large, do not; then not even the weights fit.
    for limit in (size + 2000, size // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                checkpoints.CheckpointError, match=r"checkpoint of step 2 .*step_000001 is intact"
            ):
                checkpoint.save(tmp_path, snapshot, tokenizer, state(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == [saved]
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before

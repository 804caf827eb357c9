"""Mixed precision: bfloat16 computation, float32 weights, gradients, moments and checkpoints."""

import json

import pytest
import rlvr_tiny
import torch
from safetensors.torch import load_file

from oneshot.rlvr import recorder
from oneshot.rlvr.algorithm.optimizer import make_optimizer
from oneshot.rlvr.algorithm.policy import distribute, load_policy
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.algorithm_config import OptimizerConfig
from oneshot.rlvr.config import ModelConfig
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.rlvr.trainer import train
from oneshot.training.distributed import Processes


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def one_step(tiny_folder, tokenizer, rollout, dtype):
    """Figures, gradients and weights of one update without clipping, with models of a type."""
    config = ModelConfig(source=str(tiny_folder / "model"), dtype=dtype, device="cpu")
    models = [load_policy(config, config.source, tokenizer) for _ in range(2)]
    for model in models:
        distribute(model, config, Processes())
    policy, reference = models
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.02)
    schedule = OptimizerConfig(lr=1e-3, max_grad_norm=1e9)
    optimizer = make_optimizer(policy, schedule)
    algorithm = rlvr_tiny.make_algorithm(updates_per_rollout=1, kl_coef=0.1)
    updater = PolicyUpdater(policy, reference, optimizer, algorithm, schedule, 1.0)
    gradients = {}
    for name, parameter in policy.named_parameters():
        parameter.register_hook(lambda g, name=name: gradients.__setitem__(name, g.clone()))
    advantages = torch.tensor([1.0, -0.5, -1.5, 1.0] * 3)
    figures = updater.update(rollout, advantages, 1)
    return figures, gradients, dict(policy.named_parameters()), optimizer


def test_one_step_is_near_that_of_float32(tiny, tiny_folder):
    engine = TransformersEngine(*tiny, temperature=1.0, max_new_tokens=15)
    rollout = engine.generate([[5, 9, 12], [7], [30, 31, 8, 9, 10]], 4, 11)
    expected, exact, _, _ = one_step(tiny_folder, tiny[1], rollout, "float32")
    figures, gradients, weights, optimizer = one_step(tiny_folder, tiny[1], rollout, "mixed")
    for name in ("loss/total", "policy/entropy", "policy/kl", "optimizer/grad_norm"):
        assert figures[name] == pytest.approx(expected[name], rel=0.03), name
    assert figures["policy/entropy"] != expected["policy/entropy"]  # it does round
    for name, gradient in exact.items():
        found = gradients[name]
        assert found.dtype == weights[name].dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), gradient.flatten(), 0) > 0.99, name
    assert all(v.dtype == torch.float32 for s in optimizer.state.values() for v in s.values())


def run(tiny_folder, output, *overrides, resume=False):
    config = rlvr_tiny.config(tiny_folder, output, "--model.dtype=mixed", *overrides)
    return train(config, resume=resume, reward=rlvr_tiny.share_of_a)


def test_checkpoints_are_float32_and_resume_bit_for_bit(tiny_folder, tmp_path):
    whole = run(tiny_folder, tmp_path / "whole", "--preset=ppo")
    run(tiny_folder, tmp_path / "run", "--preset=ppo", "--run.steps=4")
    parts = run(tiny_folder, tmp_path / "run", "--preset=ppo", resume=True)
    files = sorted(p.relative_to(whole.checkpoint) for p in whole.checkpoint.rglob("*.safetensors"))
    assert len(files) == 4  # policy and critic, weights and moments
    for name in files:
        tensors = load_file(whole.checkpoint / name)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert (parts.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    for folder in (whole.checkpoint, whole.checkpoint / "critic"):
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    # Small steps are not lost, as they would be in bfloat16 weights.
    start = load_file(tiny_folder / "model" / "model.safetensors")
    end = load_file(whole.checkpoint / "model.safetensors")
    moved = [(end[name] != start[name]).float().mean() for name in end]
    assert min(moved) > 0.9


def test_responses_come_from_a_bfloat16_copy_that_is_renewed(tiny_folder, tmp_path):
    options = ["--run.steps=20", "--rollout.batch_size=8", "--optimizer.lr=3e-3"]
    history = run(tiny_folder, tmp_path / "run", *options, "--run.save_every=20").history
    steps = [row for row in history if row["step"] > 0]
    assert all(0 < row["engine/logprob_difference"] < 0.05 for row in steps)
    assert sum(row["reward/mean"] for row in steps[-5:]) / 5 > 0.5

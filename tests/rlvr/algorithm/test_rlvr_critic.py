"""The critic: its values and gradients against plain PyTorch, and whole PPO runs."""

import pytest
import rlvr_tiny
import torch

from oneshot.rlvr import recorder
from oneshot.rlvr.algorithm.critic import make_critic
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig, OptimizerConfig
from oneshot.rlvr.config import ModelConfig
from oneshot.rlvr.rollout.engine import token_positions
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.rlvr.trainer import train
from oneshot.training.distributed import Processes
from oneshot.training.errors import NonFiniteLossError


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rollout(tiny):
    engine = TransformersEngine(*tiny, temperature=1.0, max_new_tokens=15)
    return engine.generate([[5, 9, 12], [7], [30, 31, 8, 9, 10]], 4, 11)


def new_critic(tiny_folder, tokens=10**6, **options):
    algorithm = AlgorithmConfig(microbatch_tokens=tokens)
    config = CriticConfig(optimizer=OptimizerConfig(lr=0.0, max_grad_norm=1e9), **options)
    source = str(tiny_folder / "model")
    return make_critic(source, config, algorithm, ModelConfig(device="cpu"), Processes())


def formula(model, rollout):
    """Values of all rows at once: the trunk's states before each response token times the head."""
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    attention = torch.cat([rollout.prompt_mask, rollout.response_mask], 1)
    states = model.model(
        ids, attention_mask=attention, position_ids=token_positions(attention)
    ).last_hidden_state
    width = rollout.prompt_ids.shape[1]
    return (states @ model.score.weight[0] + model.score.bias[0])[:, width - 1 : -1].double()


def test_a_new_head_is_zero_on_the_trunk_of_the_policy(tiny, tiny_folder, rollout):
    critic = new_critic(tiny_folder)
    assert (critic.values(rollout) == 0).all()
    trunk, policy = critic.model.model.state_dict(), tiny[0].model.state_dict()
    assert all(torch.equal(trunk[name], policy[name]) for name in policy)
    assert not critic.model.training


@pytest.mark.parametrize("tokens", [10**6, 60, 1])
@pytest.mark.parametrize("clip", [0.5, None])
def test_values_and_gradient_are_those_of_the_formula(tiny_folder, rollout, tokens, clip):
    critic = new_critic(tiny_folder, tokens, value_clip=clip)
    torch.nn.init.normal_(critic.model.score.weight, generator=torch.Generator().manual_seed(3))
    rollout.prompt_ids[~rollout.prompt_mask] = 9  # other padding changes nothing
    mask = rollout.response_mask
    values = critic.values(rollout)
    expected = formula(critic.model, rollout)
    torch.testing.assert_close(values.double(), torch.where(mask, expected, 0), atol=2e-5, rtol=0)
    generator = torch.Generator().manual_seed(4)
    old = values + torch.randn(values.shape, generator=generator)  # about half beyond the clip
    returns = values + torch.randn(values.shape, generator=generator)
    error = (expected - returns) ** 2
    if clip is not None:
        held = torch.clamp(expected, old - clip, old + clip)
        error = torch.maximum(error, (held - returns) ** 2)
    loss = torch.where(mask, error, 0).sum() / mask.sum() / 2
    parameters = dict(critic.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    seen = {}
    step = critic.optimizer.step
    critic.optimizer.step = lambda: (
        seen.update({n: p.grad.clone() for n, p in parameters.items()}),
        step(),
    )
    garbage = torch.where(mask, 0, torch.nan)
    figures = critic.update(rollout, old + garbage, returns + garbage, 1)
    assert figures["critic/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (figures["critic/clip_fraction"] > 0) == (clip is not None)
    squared = torch.where(mask, (expected - returns) ** 2, 0).sum() / mask.sum()
    assert figures["critic/squared_error"] == pytest.approx(squared.item(), rel=1e-5)
    for name, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(seen[name], gradient, atol=1e-5, rtol=1e-4)


def test_not_a_number_stops_before_the_step(tiny_folder, rollout):
    critic = new_critic(tiny_folder)
    values = critic.values(rollout)
    with pytest.raises(NonFiniteLossError, match="step 4: value loss nan"):
        critic.update(rollout, values, values + torch.nan, 4)
    assert critic.updates == 0
    assert all(p.grad is None for p in critic.model.parameters())


def ppo(tiny_folder, output, *overrides):
    return rlvr_tiny.config(
        tiny_folder, output, "--algorithm.advantage=gae", "--run.save_every=20", *overrides
    )


def test_ppo_learns_and_so_does_its_critic(tiny_folder, tmp_path):
    config = ppo(
        tiny_folder,
        tmp_path / "run",
        "--run.steps=20",
        "--rollout.batch_size=8",
        "--optimizer.lr=3e-3",
        "--critic.optimizer.lr=3e-3",
        "--evaluation.every=20",
    )
    history = train(config, reward=rlvr_tiny.share_of_a).history[1:]
    assert history[0]["reward/mean"] < 0.1
    assert sum(row["reward/mean"] for row in history[-5:]) / 5 > 0.5
    # The untrained critic says 0, so its first error is the mean squared return; while the reward
    # rises, a critic that did not learn would end near the square of the reward.
    last = history[-1]
    assert last["critic/squared_error"] < 0.5 * last["reward/mean"] ** 2
    assert last.keys() >= {"critic/loss", "critic/grad_norm", "critic/lr", "policy/entropy"}


def test_the_critic_learns_alone_at_first(tiny_folder, tmp_path):
    config = ppo(
        tiny_folder, tmp_path / "run", "--critic.warmup_steps=2", "--run.steps=3",
        "--evaluation.path=null",
    )  # fmt: skip
    rows = train(config, reward=rlvr_tiny.share_of_a).history
    steps = [row for row in rows if row["step"] > 0]
    assert ["loss/policy" in row for row in steps] == [False, False, True]
    assert all("critic/loss" in row for row in steps)


def test_no_critic_without_gae(tiny_folder, tmp_path):
    result = train(
        rlvr_tiny.config(tiny_folder, tmp_path / "run", "--run.steps=1"),
        reward=rlvr_tiny.share_of_a,
    )
    assert not (result.checkpoint / "critic").exists()
    assert not any(key.startswith("critic/") for key in result.history[-1])

"""Presets against their papers' formulas, and the switches of the loss."""

import math
from dataclasses import replace

import pytest
import rlvr_tiny
import torch
from rlvr_tiny import with_loss
from safetensors.torch import load_file

from oneshot import ops
from oneshot.rlvr import recorder, trainer
from oneshot.rlvr.algorithm.learner import Learner
from oneshot.rlvr.algorithm.loss import LossInputs, policy_loss
from oneshot.rlvr.algorithm.presets import PRESETS, expand_presets
from oneshot.rlvr.algorithm.update import RolloutLogprobs
from oneshot.rlvr.config import load_train_config
from oneshot.rlvr.rollout.engine import Rollout
from oneshot.training.distributed import Processes

NEEDED = ["--data.path=d.jsonl", "--run.output=o"]
B, R, V, LIMIT = 5, 7, 11, 16


def algorithm(*words):
    return load_train_config(None, [*NEEDED, *words]).algorithm


@pytest.fixture
def scene():
    """Logits and tokens, and the loss inputs that follow from them."""
    g = torch.Generator().manual_seed(2)
    mask = torch.arange(R) < torch.tensor([1, 7, 3, 0, 5])[:, None]
    logits = torch.randn(B, R, V, generator=g)
    ids = torch.randint(V, (B, R), generator=g)
    logp = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
    old = logp + 0.4 * torch.randn(B, R, generator=g)
    ref = logp + 0.4 * torch.randn(B, R, generator=g)
    garbage = torch.where(mask, 0, torch.nan)
    logits[~mask] = torch.nan
    advantages = torch.tensor([1.0, -0.5, 2.0, 1.0, -1.5])
    scores = ops.token_logprobs_and_entropy(logits, ids, mask=mask)
    old, ref = old + garbage, ref + garbage
    return logits, ids, LossInputs(*scores, mask, advantages, old, ref, max_length=LIMIT)


@pytest.fixture
def inputs(scene):
    return scene[2]


def formula(name, x, mask, ids, old, advantages):
    """Policy term of a preset in float64, one published formula each."""
    logp = torch.log_softmax(x, -1).gather(-1, ids[..., None]).squeeze(-1)
    old, a = old.double(), advantages.double()[:, None]
    lengths = mask.sum(1)
    filled = lengths > 0
    d = torch.where(mask, logp - old, 0)
    r = d.exp()

    def clipped(r, low, high):
        return torch.maximum(-a * r, -a * r.clamp(1 - low, 1 + high))

    def tokens(term):
        return torch.where(mask, term, 0)

    def per_sequence(term):
        return (tokens(term).sum(1) / lengths.clamp(min=1))[filled].mean()

    if name in ("paper", "ppo"):
        return tokens(clipped(r, 0.2, 0.2)).sum() / lengths.sum()
    if name == "grpo":
        return per_sequence(clipped(r, 0.2, 0.2))
    if name == "dr_grpo":
        return tokens(clipped(r, 0.2, 0.2)).sum() / LIMIT / filled.sum()
    if name == "dapo":
        return tokens(clipped(r, 0.2, 0.28)).sum() / lengths.sum()
    if name == "gspo":
        s = (d.sum(1) / lengths.clamp(min=1)).exp()[:, None]
        return per_sequence(clipped(s, 3e-4, 4e-4).expand(B, R))
    if name == "cispo":
        return tokens(-r.detach().clamp(max=5.0) * a * logp).sum() / lengths.sum()
    if name == "sapo":
        c = torch.where(a > 0, 1.0, 1.05).double()
        return per_sequence(-a * 4 / c * torch.sigmoid(c * (r - 1)))
    if name == "vespo":
        positive = (a > 0).double()
        w = d.sum(1, keepdim=True).clamp(math.log(1e-8), 20).exp()
        phi = w ** (3 - positive) * ((2 + positive) * (1 - w)).exp()
        return tokens(-phi.detach() * a * logp).sum() / lengths.sum()
    if name == "gmpo":
        held = a.sign() * torch.minimum(a.sign() * d, a.sign() * d.clamp(-0.4, 0.4))
        s = (held.sum(1) / lengths.clamp(min=1)).exp()[:, None]
        return per_sequence((-a * s).expand(B, R))
    assert name == "rloo"
    return tokens(-a * logp).sum() / filled.sum()


@pytest.mark.parametrize("name", list(PRESETS))
def test_policy_term_and_gradient(scene, name):
    logits, ids, inputs = scene
    chosen = with_loss(algorithm(f"--preset={name}"), entropy_coef=0.0, kl_coef=0.0)
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = ops.token_logprobs_and_entropy(leaf, ids, mask=inputs.mask)
    found = policy_loss(replace(inputs, logprobs=logprobs, entropy=entropy), chosen)
    found.loss.backward()
    x = torch.where(inputs.mask[..., None], logits, 0).double().requires_grad_()
    old = torch.where(inputs.mask, inputs.old_logprobs, 0)
    expected = formula(name, x, inputs.mask, ids, old, inputs.advantages)
    expected.backward()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert x.grad.abs().max() > 1e-3
    torch.testing.assert_close(leaf.grad.double(), x.grad, atol=2e-6, rtol=1e-5)


def test_importance_weights_act_on_the_policy_term_alone(inputs):
    weights = torch.tensor([2.0, 0.5, 0.0, 1.0, 3.0])
    chosen = with_loss(algorithm(), entropy_coef=0.0, kl_coef=0.0)
    found = policy_loss(replace(inputs, importance_weights=weights), chosen).loss
    scaled = replace(inputs, advantages=inputs.advantages * weights)
    assert found.item() == pytest.approx(policy_loss(scaled, chosen).loss.item(), rel=1e-6)
    only = with_loss(chosen, policy_coef=0.0, entropy_coef=0.2, kl_coef=0.3)
    for x in (inputs, replace(inputs, importance_weights=weights)):
        assert policy_loss(x, only).loss.item() == policy_loss(inputs, only).loss.item()


def test_a_kl_in_the_reward_is_only_reported_by_the_loss(inputs):
    chosen = algorithm("--algorithm.kl_in=reward", "--algorithm.loss.kl_coef=7")
    found = policy_loss(inputs, chosen)
    plain = policy_loss(inputs, replace(with_loss(chosen, kl_coef=0.0), kl_in="loss"))
    assert found.loss.item() == plain.loss.item()
    assert found.metrics["policy/kl"] > 0


def test_dual_clip_bounds_the_loss_of_negative_advantages(inputs):
    low = replace(inputs, old_logprobs=inputs.old_logprobs - 5)  # ratios of about e^5
    chosen = with_loss(algorithm(), entropy_coef=0.0, kl_coef=0.0, dual_clip=3.0)
    negative = replace(low, advantages=-torch.ones(B))
    assert policy_loss(negative, chosen).loss.item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algorithm.loss.token_count=3"], "token_count must be null: the trainer counts"),
        (["--algorithm.loss.max_length=3"], "max_length"),
        (["--algorithm.loss.kl=none"], "algorithm.loss.kl must be .none. only where"),
        (["--algorithm.loss.kl_aggregate=token-sum"], "kl_aggregate must be null or 'token-mean'"),
        (["--algorithm.loss.objective=cispo", "--algorithm.loss.dual_clip=3"], "dual_clip belongs"),
        (["--algorithm.loss.kl_coef=-1"], "algorithm.loss.kl_coef must be >= 0"),
        (["--algorithm.loss.clip_high=-2"], "clip_high must be at least -1"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        algorithm(*words)


def test_every_option_of_the_loss_is_an_option_of_the_run():
    chosen = algorithm(
        "--algorithm.loss.log_ratio_clamp=[-2, 3]",
        "--algorithm.loss.kl_importance_weighted=true",
        "--algorithm.loss.delta=4",
        "--algorithm.loss.kl=k3+",
    ).loss
    assert tuple(chosen.log_ratio_clamp) == (-2, 3)
    assert (chosen.kl_importance_weighted, chosen.delta, chosen.kl) == (True, 4, "k3+")
    assert (chosen.kl_clamp, chosen.entropy_coef) == (10, 0.001)  # the rest stays the default


def test_the_paper_preset_is_the_default():
    assert load_train_config(None, [*NEEDED, "--preset", "paper"]) == load_train_config(
        None, NEEDED
    )


def test_a_preset_stands_for_its_options_where_it_stands(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: {path: x}\nrun: {output: o}\n"
        "algorithm: {loss: {clip_high: 0.5, kl_coef: 0.3}}\noptimizer: {lr: 1.0e-5}\n"
    )
    config = load_train_config(path, ["--preset=dapo", "--algorithm.loss.clip_low=0.1"])
    loss = config.algorithm.loss.resolved()
    assert (loss.clip_low, loss.clip_high) == (0.1, 0.28)
    assert (config.algorithm.loss.kl_coef, config.optimizer.lr) == (0.0, 1e-5)
    assert (config.algorithm.overlong_buffer, config.algorithm.overlong_penalty) == (0.2, 1.0)
    config = load_train_config(path, ["--algorithm.loss.clip_low=0.1", "--preset=dapo"])
    assert config.algorithm.loss.resolved().clip_low == 0.2
    assert algorithm("--preset=cispo").loss.resolved().clip_low == math.inf
    assert algorithm("--preset=ppo").advantage == "gae"
    rloo = algorithm("--preset=rloo", "--algorithm.loss.kl_coef=0.05")
    assert (rloo.baseline, rloo.kl_in) == ("loo", "reward")
    assert (rloo.loss.kl, rloo.loss.kl_coef) == ("k1", 0.05)
    with pytest.raises(ValueError, match=r"--preset must be one of paper, .*got 'grop'"):
        expand_presets(["--preset", "grop"])
    with pytest.raises(ValueError, match=r"--preset must be one of .*got ''"):
        expand_presets(["--preset"])


@pytest.fixture
def _light_runs(monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_light_runs")
@pytest.mark.parametrize("name", list(PRESETS))
def test_each_preset_learns_in_the_trainer(tiny_folder, tmp_path, name):
    """The reward of a short run rises from near 0, with two updates per rollout."""
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        f"--preset={name}",
        "--run.steps=14",
        "--run.save_every=14",
        "--rollout.batch_size=8",
        "--algorithm.updates_per_rollout=2",
        "--optimizer.lr=3e-3",
        "--evaluation.path=null",
    )
    rows = trainer.train(config, reward=rlvr_tiny.share_of_a).history
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert rewards[0] < 0.1
    assert max(rewards) > 0.2


@pytest.mark.usefixtures("_light_runs")
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_all_terms_off_leaves_weight_decay_alone(tiny_folder, tmp_path, decay):
    """Row 1 of the loss ablation: nothing moves; with decay, w becomes (1 - lr * decay)^4 w."""
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        "--run.steps=4",
        "--algorithm.loss.policy_coef=0",
        "--algorithm.loss.kl_coef=0",
        "--algorithm.loss.entropy_coef=0",
        f"--optimizer.weight_decay={decay}",
        "--optimizer.lr=0.1",
        "--evaluation.path=null",
    )
    result = trainer.train(config, reward=rlvr_tiny.share_of_a)
    before = load_file(tiny_folder / "model" / "model.safetensors")
    after = load_file(result.checkpoint / "model.safetensors")
    for name, weight in before.items():
        expected = weight.double() * (1 - 0.1 * decay) ** 4
        atol = 0 if decay == 0 else 1e-6
        torch.testing.assert_close(after[name].double(), expected, atol=atol, rtol=0)


@pytest.mark.usefixtures("_light_runs")
def test_entropy_alone_raises_the_entropy(tiny_folder, tmp_path):
    """Row 10 of the loss ablation, with a larger coefficient."""
    config = rlvr_tiny.config(
        tiny_folder,
        tmp_path / "run",
        "--run.steps=8",
        "--algorithm.loss.policy_coef=0",
        "--algorithm.loss.kl_coef=0",
        "--algorithm.loss.entropy_coef=1",
        "--optimizer.weight_decay=0",
        "--evaluation.path=null",
    )
    rows = [r for r in trainer.train(config, reward=rlvr_tiny.share_of_a).history if r["step"]]
    assert rows[-1]["policy/entropy"] > rows[0]["policy/entropy"] + 0.1


def test_length_penalty_is_part_of_the_advantage_but_not_of_the_reward(tmp_path):
    """A run step with everything else switched off: advantage = score - penalty."""

    class Updater:
        processes = Processes()

        def logprobs(self, rollout):
            return RolloutLogprobs()

        def update(self, rollout, advantages, step, logprobs):
            self.seen = advantages
            return {}

    config = load_train_config(
        None,
        [
            *NEEDED,
            "--preset=dapo",
            "--algorithm.baseline=none",
            "--algorithm.scale=none",
            "--rollout.max_new_tokens=10",
            "--rollout.samples_per_prompt=2",
            "--algorithm.overlong_buffer=0.5",
            "--algorithm.overlong_penalty=0.5",
        ],
    )
    mask = torch.arange(10) < torch.tensor([1, 5, 6, 10])[:, None]
    ids = torch.zeros(4, 10, dtype=torch.int64)
    rollout = Rollout(ids[:, :1], mask[:, :1], ids, mask, [""] * 4, torch.ones(4).bool())
    updater = Updater()
    learner = Learner(config, updater)
    estimate = learner.advantage(rollout, [1.0, 0.0, 1.0, 1.0])
    figures = estimate.metrics | learner.update(rollout, estimate, 1)
    assert updater.seen.tolist() == pytest.approx([1.0, 0.0, 0.9, 0.5])
    assert figures == {"reward/overlong_penalty": pytest.approx(0.15)}

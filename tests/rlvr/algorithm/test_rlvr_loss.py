"""Loss and update against the formulas of the paper's code in float64, and against each other."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from rlvr_tiny import make_algorithm

from oneshot import ops
from oneshot.rlvr.algorithm.loss import LossInputs, policy_loss, response_logprobs
from oneshot.rlvr.algorithm.microbatch import loss_weights, plan, split
from oneshot.rlvr.algorithm.passes import response_logits
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.algorithm_config import CorrectionConfig, OptimizerConfig
from oneshot.rlvr.rollout.engine import token_positions
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.training.errors import NonFiniteLossError

TEMPERATURE = 0.6


def masked_mean(x, mask):
    return torch.where(mask, x, 0).sum() / mask.sum()


def oracle(model, reference, rollout, advantages, algorithm, old=None):
    """Loss of all rows at once: plain float64 PyTorch, one formula per line."""
    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    attention = torch.cat([rollout.prompt_mask, rollout.response_mask], 1)
    width, mask = rollout.prompt_ids.shape[1], rollout.response_mask

    def scaled_logits(m):
        out = m(ids, attention_mask=attention, position_ids=token_positions(attention)).logits
        return out[:, width - 1 : -1].double() / TEMPERATURE

    x = scaled_logits(model)
    log_softmax = torch.log_softmax(x, -1)
    logp = log_softmax.gather(-1, rollout.response_ids[..., None]).squeeze(-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    ratio = torch.exp(logp - (logp.detach() if old is None else old.double()))
    a = advantages.double()[:, None]
    clipped = ratio.clamp(1 - algorithm.loss.clip_low, 1 + algorithm.loss.clip_high)
    loss = algorithm.loss.policy_coef * masked_mean(torch.maximum(-a * ratio, -a * clipped), mask)
    loss = loss - algorithm.loss.entropy_coef * masked_mean(entropy, mask)
    if algorithm.loss.kl_coef:
        with torch.no_grad():
            ref = torch.log_softmax(scaled_logits(reference), -1)
            ref = ref.gather(-1, rollout.response_ids[..., None]).squeeze(-1)
        d = ref - logp
        k3 = (torch.exp(d) - d - 1).clamp(-10, 10)
        loss = loss + algorithm.loss.kl_coef * masked_mean(k3, mask)
    return loss, masked_mean(entropy, mask)


@pytest.fixture
def scene(tiny):
    """Policy in float64, a different reference, a ragged rollout and its advantages."""
    model, tokenizer = tiny
    engine = TransformersEngine(model, tokenizer, temperature=TEMPERATURE, max_new_tokens=15)
    rollout = engine.generate([[5, 9, 12], [7], [30, 31, 8, 9, 10]], 4, 11)
    assert 0 < rollout.finished.sum() < 12
    model = model.double()
    reference = copy.deepcopy(model).requires_grad_(False)
    for parameter in reference.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    rewards = torch.tensor([1, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1.0])
    return model, reference, rollout, ops.group_advantages(rewards, 4)


class Recorder(torch.optim.SGD):
    """Keeps each gradient instead of stepping."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.seen = []

    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        self.seen.append([p.grad.clone() for p in params])


def updater(model, reference, algorithm, max_grad_norm=1e9, **schedule):
    return PolicyUpdater(
        policy=model,
        reference=reference if algorithm.loss.kl_coef else None,
        optimizer=Recorder(model.parameters()),
        algorithm=algorithm,
        schedule=OptimizerConfig(max_grad_norm=max_grad_norm, **schedule),
        temperature=TEMPERATURE,
    )


ALGORITHMS = [
    make_algorithm(entropy_coef=0.3, kl_coef=0.5),
    make_algorithm(entropy_coef=0.3, kl_coef=0.0),
    make_algorithm(policy_coef=0.0, entropy_coef=0.0, kl_coef=0.5),
    make_algorithm(policy_coef=2.0, entropy_coef=0.0, kl_coef=0.0),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", [10**6, 60, 1])
def test_update_has_the_loss_and_gradient_of_the_formula(scene, algorithm, tokens):
    """One batch, several micro-batches and one row at a time: the same numbers."""
    model, reference, rollout, advantages = scene
    loss, entropy = oracle(model, reference, rollout, advantages, algorithm)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    run = updater(model, reference, replace(algorithm, microbatch_tokens=tokens))
    figures = run.update(rollout, advantages, 1)
    assert figures["loss/total"] == pytest.approx(loss.item(), abs=1e-9)
    assert figures["policy/entropy"] == pytest.approx(entropy.item(), abs=1e-6)
    (found,) = run.optimizer.seen
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-7, rtol=1e-5)
    norm = torch.stack([g.norm() for g in expected]).norm().item()
    assert figures["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert figures["policy/clip_fraction"] == 0  # one update: the ratio is 1
    assert figures["policy/old_kl"] == 0


def test_several_updates_use_old_logprobs_and_their_own_rows(scene):
    model, reference, rollout, advantages = scene
    algorithm = make_algorithm(entropy_coef=0.1, kl_coef=0.2, updates_per_rollout=3)
    run = updater(model, reference, algorithm)
    figures = run.update(rollout, advantages, 1)
    assert run.updates == len(run.optimizer.seen) == 3
    rows = list(range(12))
    batches = split(rollout, rows, 10**6)
    old = response_logprobs(model, rollout, batches, TEMPERATURE)
    losses = []
    for i, found in enumerate(run.optimizer.seen):
        part = slice(4 * i, 4 * i + 4)
        fields = ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "texts", "finished")
        piece = type(rollout)(*(getattr(rollout, name)[part] for name in fields))
        loss, _ = oracle(model, reference, piece, advantages[part], algorithm, old[part])
        losses.append(loss.item())
        for a, b in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            torch.testing.assert_close(a, b, atol=2e-7, rtol=1e-5)
    assert figures["loss/total"] == pytest.approx(sum(losses) / 3, abs=1e-6)


def test_sequence_weighting_is_that_of_the_released_code(scene):
    model, reference, rollout, advantages = scene
    algorithm = make_algorithm(
        entropy_coef=0.3, kl_coef=0.5, microbatch_tokens=60, microbatch_weighting="sequences"
    )
    batches = split(rollout, list(range(12)), 60)
    assert len(batches) > 2
    assert sum(loss_weights([b.response_mask for b in batches], "sequences")) == pytest.approx(1)
    fields = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
    total = 0
    for batch in batches:
        piece = type(rollout)(*(getattr(rollout, f)[batch.rows] for f in fields), [], batch.rows)
        loss, _ = oracle(model, reference, piece, advantages[batch.rows], algorithm)
        total = total + loss * len(batch.rows) / 12
    run = updater(model, reference, algorithm)
    figures = run.update(rollout, advantages, 1)
    assert figures["loss/total"] == pytest.approx(total.item(), abs=1e-9)
    whole, _ = oracle(model, reference, rollout, advantages, algorithm)
    assert abs(whole.item() - total.item()) > 1e-4  # the two weightings really differ
    for a, b in zip(
        run.optimizer.seen[0], torch.autograd.grad(total, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(a, b, atol=2e-7, rtol=1e-5)


def test_equal_rewards_give_no_policy_gradient_but_an_entropy_gradient(scene):
    model, reference, rollout, _ = scene
    zero = ops.group_advantages(torch.ones(12), 4)
    assert (zero == 0).all()
    run = updater(model, reference, make_algorithm(entropy_coef=0.0, kl_coef=0.0))
    assert run.update(rollout, zero, 1)["optimizer/grad_norm"] == 0
    run = updater(model, reference, make_algorithm(entropy_coef=0.1, kl_coef=0.0))
    assert run.update(rollout, zero, 1)["optimizer/grad_norm"] > 1e-4


def test_positive_entropy_coefficient_raises_the_entropy(scene):
    model, _, rollout, _ = scene
    algorithm = make_algorithm(policy_coef=0.0, entropy_coef=1.0, kl_coef=0.0)
    run = updater(model, None, algorithm)
    run.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run.schedule = OptimizerConfig(lr=0.05)
    zero = torch.zeros(12)
    entropies = [run.update(rollout, zero, step)["policy/entropy"] for step in range(5)]
    assert all(later > earlier for earlier, later in itertools.pairwise(entropies))


def test_figures_of_the_paper_sheet():
    """Entropy of logits [2, 1, 0]; k3 at four differences, the last one clamped."""
    logits = torch.tensor([[[2.0, 1.0, 0.0]]])
    one, token = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    for temperature, entropy in ((1.0, 0.83240), (0.6, 0.55675)):
        scores = ops.token_logprobs_and_entropy(logits, token, temperature=temperature)
        inputs = LossInputs(*scores, one, torch.zeros(1))
        output = policy_loss(inputs, make_algorithm(entropy_coef=1.0, kl_coef=0.0))
        assert output.loss.item() == pytest.approx(-entropy, abs=1e-5)
    logp = torch.log_softmax(logits, -1)[0, 0, 0].item()
    for d, k3 in ((-1, 0.367879), (0.1, 0.005171), (1, 0.718282), (3, 10.0)):
        inputs = LossInputs(
            *ops.token_logprobs_and_entropy(logits, token),
            one,
            torch.zeros(1),
            ref_logprobs=torch.full((1, 1), logp + d),
        )
        algorithm = make_algorithm(entropy_coef=0.0, kl_coef=1.0)
        assert policy_loss(inputs, algorithm).loss.item() == pytest.approx(k3, abs=2e-6)


def test_not_a_number_stops_before_the_step(scene):
    model, _, rollout, advantages = scene
    run = updater(model, None, make_algorithm(kl_coef=0.0))
    advantages = advantages.clone()
    advantages[3] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"step 17: loss nan, .*optimizer step 1"):
        run.update(rollout, advantages, 17)
    assert run.optimizer.seen == []
    assert all(p.grad is None for p in model.parameters())


def test_warm_up_and_clipping(scene):
    model, _, rollout, advantages = scene
    run = updater(
        model, None, make_algorithm(kl_coef=0.0), max_grad_norm=1e-3, lr=0.4, warmup_steps=4
    )
    rates = [run.update(rollout, advantages, i)["optimizer/lr"] for i in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    norm = torch.stack([g.norm() for g in run.optimizer.seen[0]]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_padding_never_reaches_the_loss(scene):
    """Other ids in the padding, and other neighbours, change nothing."""
    model, _, rollout, _ = scene
    batches = split(rollout, list(range(12)), 10**6)
    expected = response_logprobs(model, rollout, batches, TEMPERATURE)
    rollout.prompt_ids[~rollout.prompt_mask] = 9
    rollout.response_ids[~rollout.response_mask] = 9
    for rows, tokens in ((list(range(12)), 10**6), (list(range(12)), 1), ([3, 1], 10**6)):
        found = response_logprobs(model, rollout, split(rollout, rows, tokens), TEMPERATURE)
        torch.testing.assert_close(found[rows], expected[rows], atol=1e-6, rtol=0)
    assert (expected[~rollout.response_mask] == 0).all()


@pytest.mark.parametrize("limit", [1, 7, 63, 1000, 10**9])
def test_plan_covers_every_row_within_the_limit(limit):
    generator = torch.Generator().manual_seed(limit)
    lengths = [tuple(x) for x in torch.randint(1, 40, (63, 2), generator=generator).tolist()]
    groups = plan(lengths, limit)
    assert sorted(i for group in groups for i in group) == list(range(63))
    for group in groups:
        widths = [max(lengths[i][k] for i in group) for k in (0, 1)]
        assert len(group) == 1 or len(group) * sum(widths) <= limit
    assert plan([], limit) == []


def test_response_logits_has_one_row_per_response_token(scene):
    model, _, rollout, _ = scene
    for batch in split(rollout, list(range(12)), 100):
        logits = response_logits(model, batch)
        assert logits.shape[:2] == batch.response_ids.shape
        assert logits.is_contiguous()


def correction(level, **options):
    return make_algorithm(
        entropy_coef=0.0,
        kl_coef=0.0,
        correction=CorrectionConfig(level=level, **options),
        microbatch_tokens=60,
    )


@pytest.mark.parametrize(
    ("level", "mode"), [("token", "truncate"), ("token", "mask"), ("sequence", "truncate")]
)
def test_an_engine_whose_logprobs_differ_is_corrected(scene, level, mode):
    """Loss and gradient of sum(w A log p), with w from the formula in float64."""
    model, _, rollout, advantages = scene
    mask = rollout.response_mask
    batches = split(rollout, list(range(12)), 10**6)
    logp = response_logprobs(model, rollout, batches, TEMPERATURE)
    generator = torch.Generator().manual_seed(5)
    noise = 0.5 * torch.randn(logp.shape, generator=generator, dtype=torch.float64)
    sampler = torch.where(mask, logp + noise, torch.nan)
    d = torch.where(mask, logp - sampler, 0)
    w = d.exp() if level == "token" else d.sum(1, keepdim=True).exp()
    inside = (w >= 0.5) & (w <= 1.5)
    w = torch.where(inside, w, 0) if mode == "mask" else w.clamp(0.5, 1.5)
    assert 0.1 < inside.double().mean() < 0.9

    ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
    attention = torch.cat([rollout.prompt_mask, mask], 1)
    out = model(ids, attention_mask=attention, position_ids=token_positions(attention)).logits
    x = torch.log_softmax(out[:, rollout.prompt_ids.shape[1] - 1 : -1].double() / TEMPERATURE, -1)
    now = x.gather(-1, rollout.response_ids[..., None]).squeeze(-1)
    ratio = torch.exp(now - now.detach())
    expected = masked_mean(-w * advantages.double()[:, None] * ratio, mask)
    gradients = torch.autograd.grad(expected, list(model.parameters()))

    run = updater(model, None, correction(level, mode=mode, low=0.5, high=1.5))
    figures = run.update(replace(rollout, logprobs=sampler.float()), advantages, 1)
    assert figures["loss/total"] == pytest.approx(expected.item(), abs=1e-6)
    kl = masked_mean(-d, mask).item()
    assert figures["correction/kl"] == pytest.approx(kl, abs=1e-6)
    assert 0 < figures["correction/effective_sample_size"] < 1
    assert 0 < figures["correction/outside"] < 1
    for a, b in zip(run.optimizer.seen[0], gradients, strict=True):
        torch.testing.assert_close(a, b, atol=5e-7, rtol=1e-5)


def test_correction_needs_the_logprobs_of_the_engine(scene):
    model, _, rollout, advantages = scene
    with pytest.raises(ValueError, match="'token', but the rollout engine reported no log-probs"):
        updater(model, None, correction("token")).update(rollout, advantages, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_engine_reports_the_logprobs_of_the_trainer(tiny, temperature):
    model, tokenizer = tiny
    engine = TransformersEngine(
        model, tokenizer, temperature=temperature, max_new_tokens=15, report_logprobs=True,
        max_sequences=5,
    )  # fmt: skip
    rollout = engine.generate([[5, 9, 12], [7], [30, 31, 8, 9, 10]], 4, 11)
    expected = response_logprobs(model, rollout, split(rollout, list(range(12)), 60), temperature)
    torch.testing.assert_close(rollout.logprobs, expected, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="temperature above 0"):
        TransformersEngine(model, tokenizer, temperature=0, max_new_tokens=3, report_logprobs=True)


@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean-token-mean", "token-sum"])
def test_masked_truncated_responses_leave_the_loss(scene, aggregate):
    """Whatever the micro-batches, loss and gradient are those of the finished responses alone."""
    model, _, rollout, advantages = scene
    algorithm = make_algorithm(
        entropy_coef=0.3, kl_coef=0.0, aggregate=aggregate, microbatch_tokens=40
    )
    kept = rollout.finished.nonzero().squeeze(1)
    fields = ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "finished")
    parts = {name: getattr(rollout, name)[kept] for name in fields}
    alone = updater(model, None, algorithm)
    expected = alone.update(replace(rollout, texts=[""] * len(kept), **parts), advantages[kept], 1)
    run = updater(model, None, replace(algorithm, mask_truncated=True))
    figures = run.update(rollout, advantages, 1)
    for name in ("loss/total", "policy/entropy"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-6)
    for a, b in zip(run.optimizer.seen[0], alone.optimizer.seen[0], strict=True):
        torch.testing.assert_close(a, b, atol=5e-7, rtol=1e-5)
    nothing = replace(rollout, finished=torch.zeros_like(rollout.finished))
    assert run.update(nothing, advantages, 2)["optimizer/grad_norm"] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tokens", [10**6, 60, 1])
@pytest.mark.parametrize("updates", [2, 4])
def test_unchanged_weights_are_never_clipped(tiny, dtype, tokens, updates):
    """Old and new log-probs come from the same micro-batches: the ratio is 1 to the last bit.

    In bfloat16 a row's log-probs depend on the rows beside it, by more than GSPO's range of 3e-4.
    """
    model, tokenizer = tiny
    model = model.to(getattr(torch, dtype))
    engine = TransformersEngine(model, tokenizer, temperature=1.0, max_new_tokens=25)
    rollout = engine.generate([[5, 9, 12], [7], [30, 31, 8, 9, 10], [4] * 9], 8, 11)
    algorithm = make_algorithm(
        ratio="sequence",
        clip_low=3e-4,
        clip_high=4e-4,
        kl_coef=0.0,
        microbatch_tokens=tokens,
        updates_per_rollout=updates,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    still = OptimizerConfig(lr=0.0, weight_decay=0.0)
    updater = PolicyUpdater(model, None, optimizer, algorithm, still, 1.0)
    figures = updater.update(rollout, torch.randn(len(rollout)), 1)
    assert figures["optimizer/grad_norm"] > 0
    assert (figures["policy/clip_fraction"], figures["policy/old_kl"]) == (0, 0)

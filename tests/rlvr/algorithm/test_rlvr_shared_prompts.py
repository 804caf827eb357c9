"""Passes that read a prompt once: the loss and the gradients of plain passes, for every family."""

from dataclasses import replace

import pytest
import rlvr_families
import rlvr_tiny
import torch
from transformers import AutoModelForTokenClassification, Qwen2Config

from oneshot.integrations.fused_head import fuse_lm_head
from oneshot.rlvr.algorithm.loss import response_logprobs
from oneshot.rlvr.algorithm.microbatch import plan, split
from oneshot.rlvr.algorithm.passes import (
    response_logits,
    response_statistics,
    response_values,
)
from oneshot.rlvr.algorithm.prompt_sharing import can_share_prompts, fault
from oneshot.rlvr.builders import fuse_head
from oneshot.rlvr.rollout.engine import assemble
from oneshot.rlvr.trainer import train

LONG, SHORT, ONE = [5, 9, 12, 7, 30, 11, 6, 8, 20, 21], [7, 8, 9], [6]
FAMILIES = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma4_text": None,
    "gpt2": None,
    "phi3": {"pad_token_id": 0},
    "mistral": {"sliding_window": None},
    "qwen3_moe": None,
    "mixtral": None,
    "gpt_oss": None,
    "deepseek_v3": None,
}


def make(family, **options):
    rlvr_families.FAMILIES.setdefault(family, FAMILIES.get(family) or {})
    return rlvr_families.make(family, **options)


def rollout_of(prompts, lengths, seed=0):
    """Responses of the given lengths, n to a prompt in a row, of random tokens."""
    tokenizer = rlvr_tiny.make_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    responses = [torch.randint(4, 30, (n,), generator=generator).tolist() for n in lengths]
    n = len(lengths) // len(prompts)
    return assemble(
        [prompt for prompt in prompts for _ in range(n)],
        responses,
        [True] * len(lengths),
        None,
        tokenizer,
        pad_id=tokenizer.pad_token_id,
        vocabulary=len(tokenizer),
    )


def loss_and_gradients(model, rollout, batches, forward=response_logits):
    """Sum of a function of the outputs at the response tokens, with the gradient of each weight."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        outputs = forward(model, batch).double()
        if forward is response_logits:
            outputs = outputs.log_softmax(-1).gather(2, batch.response_ids[..., None])[..., 0]
        scale = torch.sin(1.0 + torch.arange(outputs.shape[1])) * (1 + batch.rows[:, None])
        loss = torch.where(batch.response_mask, outputs * scale, 0).sum()
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=2e-5):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(g.norm()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        difference = float((found[1][name] - gradient).norm())
        assert difference <= tolerance * max(float(gradient.norm()), 1e-3 * largest), name


@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, "eager" if f == "gpt_oss" else "sdpa") for f in FAMILIES]
    + [("llama", "eager"), ("gemma3_text", "eager")],
)
def test_loss_and_gradients_are_those_of_plain_passes(family, attention):
    model = make(family)
    model.set_attn_implementation(attention)
    for prompts, lengths in [
        ([LONG], [6, 1, 9, 4]),
        ([LONG, SHORT], [3, 7, 1, 5, 2, 2]),
        ([SHORT, ONE], [4, 4, 1, 6]),
    ]:
        assert fault(model, prompts) is None
        rollout = rollout_of(prompts, lengths)
        rows = list(range(len(lengths)))
        expected = loss_and_gradients(model, rollout, split(rollout, rows, 1))
        for tokens in (10**6, 40):
            batches = split(rollout, rows, tokens, share_prompts=True)
            assert any(batch.prompts is not None for batch in batches)
            assert_same(loss_and_gradients(model, rollout, batches), expected)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mistral"])
@pytest.mark.parametrize("window", [4, 8, 14])
def test_windows_shorter_than_prompt_and_sequence(family, window):
    model = make(family, sliding_window=window)
    rollout = rollout_of([LONG, SHORT], [9, 3, 2, 8])
    expected = loss_and_gradients(model, rollout, split(rollout, range(4), 1))
    batches = split(rollout, range(4), 10**6, share_prompts=True)
    assert_same(loss_and_gradients(model, rollout, batches), expected)


def test_values_of_a_critic():
    tokenizer = rlvr_tiny.make_tokenizer()
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_labels=1, initializer_range=0.2,
    )  # fmt: skip
    model = AutoModelForTokenClassification.from_config(config).eval()
    assert fault(model, [LONG, SHORT]) is None
    rollout = rollout_of([LONG, SHORT], [9, 3, 2, 8])
    expected = loss_and_gradients(model, rollout, split(rollout, range(4), 1), response_values)
    batches = split(rollout, range(4), 10**6, share_prompts=True)
    assert_same(loss_and_gradients(model, rollout, batches, response_values), expected)


def test_values_in_padding_do_not_matter():
    model = make("qwen2")
    rollout = rollout_of([LONG, SHORT], [9, 3, 2, 8])
    expected = response_logprobs(model, rollout, split(rollout, range(4), 1), 0.7)
    odd = replace(
        rollout,
        prompt_ids=torch.where(rollout.prompt_mask, rollout.prompt_ids, torch.arange(10)),
        response_ids=torch.where(rollout.response_mask, rollout.response_ids, 17),
    )
    batches = split(odd, range(4), 10**6, share_prompts=True)
    assert [len(batch.prompts.first) for batch in batches] == [2]
    torch.testing.assert_close(response_logprobs(model, odd, batches, 0.7), expected)


def test_nothing_to_share():
    rollout = rollout_of([ONE], [3, 4])
    assert split(rollout, range(2), 100, share_prompts=True)[0].prompts is None
    rollout = rollout_of([LONG, SHORT], [3, 4])
    assert split(rollout, range(2), 100, share_prompts=True)[0].prompts is None
    uniform = split(rollout, range(2), 100, share_prompts=True, uniform=True)[0]
    model = make("qwen2")
    expected = loss_and_gradients(model, rollout, split(rollout, range(2), 1))
    assert_same(loss_and_gradients(model, rollout, [uniform]), expected)


def test_the_plan_counts_a_prompt_once():
    lengths = [(100, r) for r in (5, 9, 7, 20)] + [(50, 9), (50, 3)]
    prompts = [0, 0, 0, 0, 1, 1]
    assert plan(lengths, 180, prompts) == [[3, 1, 2, 0], [4, 5]]
    assert plan(lengths, 320, prompts) == [[3, 1, 2, 0, 4, 5]]
    assert plan(lengths, 140, prompts) == [[3, 1], [2, 0], [4, 5]]
    assert plan(lengths, 10, prompts) == [[3], [1], [2], [0], [4], [5]]
    for limit in (10, 140, 180, 320):
        for group in plan(lengths, limit, prompts):
            cost = len({prompts[i] for i in group}) * max(lengths[i][0] for i in group)
            cost += len(group) * max(lengths[i][1] for i in group)
            assert cost <= limit or len(group) == 1


@pytest.mark.parametrize(
    "family",
    ["mamba", "mamba2", "rwkv", "openai-gpt", "recurrent_gemma", "minimax", "jamba", "qwen3_next"],
)
def test_models_that_cannot_are_found_and_named(family):
    model = rlvr_families.make(family)
    assert f"model type '{family}'" in fault(model, [LONG, SHORT])
    with pytest.warns(UserWarning, match=f"{family}.*share_prompts") as caught:
        assert not can_share_prompts([model], [LONG, SHORT], samples=4, uniform=False)
    assert len(caught) == 1


@pytest.mark.parametrize("family", ["lfm2", "falcon_h1"])
def test_hybrid_models_that_can(family):
    model = rlvr_families.make(family)
    assert fault(model, [LONG, SHORT]) is None
    rollout = rollout_of([LONG, SHORT], [9, 3, 2, 8])
    expected = loss_and_gradients(model, rollout, split(rollout, range(4), 1))
    batches = split(rollout, range(4), 10**6, share_prompts=True)
    assert_same(loss_and_gradients(model, rollout, batches), expected)


def test_a_cache_without_a_gradient_is_found(monkeypatch):
    """Outputs agree, gradients do not."""
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def detached(self, keys, values, *args, **kwargs):
        result = update(self, keys, values, *args, **kwargs)
        self.keys, self.values = self.keys.detach(), self.values.detach()
        return result

    monkeypatch.setattr(DynamicLayer, "update", detached)
    assert "gradients" in fault(make("qwen2"), [LONG, SHORT])


def test_one_token_prompts_on_several_processes_are_not_shared():
    model = make("qwen2")
    with pytest.warns(UserWarning, match="prompt of one token"):
        assert not can_share_prompts([model], [LONG, ONE], samples=4, uniform=True)
    assert can_share_prompts([model], [LONG, ONE], samples=4, uniform=False)
    assert not can_share_prompts([model], [ONE], samples=4, uniform=False)
    assert not can_share_prompts([model], [LONG], samples=1, uniform=False)


@pytest.mark.parametrize("preset", ["grpo", "ppo"])
def test_a_run_reports_the_same_metrics(preset, tiny_folder, tmp_path):
    histories = []
    for share in ("auto", "off"):
        options = [f"--preset={preset}", f"--algorithm.share_prompts={share}", "--run.steps=2"]
        config = rlvr_tiny.config(tiny_folder, tmp_path / share, *options)
        histories.append(train(config, reward=rlvr_tiny.share_of_a).history)
    shared, plain = histories
    for one, two in zip(shared, plain, strict=True):
        for name in ("loss/total", "policy/kl", "policy/entropy", "optimizer/grad_norm"):
            assert one.get(name, 0) == pytest.approx(two.get(name, 0), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "gpt2", "qwen3_moe"])
def test_a_fused_head_gives_the_same_numbers_and_gradients(family, share):
    """With masked tokens inside the responses, as `algorithm.mask_truncated` makes them."""
    rollout = rollout_of([LONG, SHORT], [9, 3, 2, 8])
    results = []
    for fused in (False, True):
        model = make(family)
        if fused:
            fuse_lm_head(model)
        total = 0.0
        for batch in split(rollout, range(4), 60, share_prompts=fused and share):
            mask = batch.response_mask & (batch.rows != 2)[:, None]
            logprobs, entropy = response_statistics(model, batch, mask, 0.7)
            loss = torch.where(mask, logprobs * (1 + batch.rows[:, None]) + entropy, 0).sum()
            loss.backward()
            total += loss.item()
        results.append((total, {name: p.grad for name, p in model.named_parameters()}))
    assert_same(results[1], results[0])
    one, two = (
        response_logprobs(m, rollout, split(rollout, range(4), 60, share_prompts=share), 0.7)
        for m in (make(family), model)
    )
    torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-5)


def test_a_head_that_cannot_be_fused_is_named():
    model = make("qwen2")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.warns(UserWarning, match=r"logits.*Sequential.*algorithm\.fuse_head") as caught:
        fuse_head(model)
    assert len(caught) == 1

"""Models with a fused head against the same models through their logits."""

import copy

import pytest
import torch
import transformers

from oneshot.integrations.fused_head import fuse_lm_head

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Family: class of the configuration, what differs from SIZES, scale and soft-capping.
MODELS = {
    "qwen2 tied": ("Qwen2Config", {"tie_word_embeddings": True}, (1.0, None)),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": False}, (1.0, None)),
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}, (1.0, None)),
    "gemma2": ("Gemma2Config", {"final_logit_softcapping": 0.5}, (1.0, 0.5)),
    "gemma3": ("Gemma3TextConfig", {"final_logit_softcapping": 0.7}, (1.0, 0.7)),
    "gemma3 uncapped": ("Gemma3TextConfig", {}, (1.0, None)),
    "granite": ("GraniteConfig", {"logits_scaling": 0.25}, (4.0, None)),
    "cohere": ("CohereConfig", {"logit_scale": 3.0}, (3.0, None)),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "resid_pdrop": 0.0},
        (1.0, None),
    ),
    "phi": ("PhiConfig", {"num_key_value_heads": 2}, (1.0, None)),
}


def tiny(name, dtype=torch.float32):
    torch.manual_seed(0)
    kind, changes, transform = MODELS[name]
    sizes = {} if name == "gpt2" else dict(SIZES)
    if name == "gpt2":
        sizes = {key: SIZES[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, kind)(**{**sizes, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for parameter in model.get_output_embeddings().parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # logits that differ; a bias that is not 0
    return model, transform


def batch():
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(ids)
    attention[1, :4] = 0
    counted = attention[:, 1:].bool()
    counted[0, :3] = False
    return ids, attention, counted


def through_logits(model, ids, attention, counted, temperature):
    """Log-probabilities and entropy of the next tokens, by float64 softmax of the logits."""
    logits = model(ids, attention_mask=attention).logits[:, :-1].double() / temperature
    logp = torch.log_softmax(logits, -1)
    chosen = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return [torch.where(counted, x, 0) for x in (chosen, entropy)]


def gradients(model, outputs):
    weights = torch.linspace(-1, 1, outputs[0].numel(), dtype=outputs[0].dtype)
    loss = (outputs[0] * weights.view(outputs[0].shape)).sum() + 0.3 * outputs[1].sum()
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_fused_equals_the_plain_path(name):
    model, transform = tiny(name)
    ids, attention, counted = batch()
    assert fuse_lm_head(copy.deepcopy(model)) == transform
    want = through_logits(model, ids, attention, counted, 0.8)
    expected = gradients(model, want)
    fuse_lm_head(model)
    targets = torch.cat((ids[:, 1:], torch.full((3, 1), -100)), 1)
    mask = torch.cat((counted, torch.zeros(3, 1, dtype=torch.bool)), 1)
    got = model(ids, attention_mask=attention, targets=targets, mask=mask, temperature=0.8)
    values = [x[:, :-1] for x in got[:2]]
    for mine, true in zip(values, want, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)
    found = gradients(model, values)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["qwen2 tied", "gemma2", "granite"])
def test_bfloat16_finds_the_same_transform(name):
    model, transform = tiny(name, torch.bfloat16)
    assert fuse_lm_head(model) == transform


def test_only_positions_that_are_kept_reach_the_head():
    model, _ = tiny("llama")
    ids, attention, _ = batch()
    fuse_lm_head(model)
    with torch.no_grad():
        whole = model(ids, attention_mask=attention, targets=ids)
        last = model(ids, attention_mask=attention, targets=ids[:, -3:], logits_to_keep=3)
    torch.testing.assert_close(last.logprobs, whole.logprobs[:, -3:])
    with pytest.raises(ValueError, match=r"targets must have the shape of the rows \[3, 3\]"):
        model(ids, attention_mask=attention, targets=ids, logits_to_keep=3)


def test_without_targets_nothing_changes():
    model, _ = tiny("qwen2 tied")
    ids, attention, _ = batch()
    with torch.no_grad():
        want = model(ids, attention_mask=attention).logits
        tokens = model.generate(ids, attention_mask=attention, max_new_tokens=3, do_sample=False)
        fuse_lm_head(model)
        assert torch.equal(model(ids, attention_mask=attention).logits, want)
        assert torch.equal(
            model.generate(ids, attention_mask=attention, max_new_tokens=3, do_sample=False), tokens
        )


def test_a_copy_computes_with_its_own_weights():
    model, _ = tiny("llama")
    ids, _, _ = batch()
    fuse_lm_head(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = other(ids, targets=ids).logprobs
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(other(ids, targets=ids).logprobs, before)


def test_a_failed_call_leaves_the_model_as_it_was():
    model, _ = tiny("llama")
    ids, _, _ = batch()
    fuse_lm_head(model)
    with pytest.raises(RuntimeError, match="targets must lie in"):
        model(ids, targets=ids + 1000)
    assert model(ids).logits.shape == (3, 9, 97)


def test_what_cannot_be_fused_is_named():
    model, _ = tiny("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(TypeError, match=r"LlamaForCausalLM: the head must be .* got Sequential"):
        fuse_lm_head(model)
    model, _ = tiny("granite")
    model.config.logits_scaling = 7.0
    vars(model)["forward"] = model.forward
    with pytest.raises(ValueError, match="forward was replaced already"):
        fuse_lm_head(model)
    model, _ = tiny("llama")
    fuse_lm_head(model)
    with pytest.raises(ValueError, match="replaced already"):
        fuse_lm_head(model)
    ids, _, _ = batch()
    with pytest.raises(ValueError, match="targets or labels, not both"):
        model(ids, targets=ids, labels=ids)


class Shifted(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1
        return output


class Twice(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Shifted, "does something else to its logits"), (Twice, "called it 2 times")],
)
def test_a_head_that_does_more_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        fuse_lm_head(kind(transformers.LlamaConfig(**SIZES)).eval())

"""Other model families: checkpoints hold all of a model, and its cache is believed after a look."""

import pytest
import rlvr_families
import rlvr_tiny
import torch
from safetensors.torch import load_file, save_file

from oneshot import models
from oneshot.rlvr import recorder
from oneshot.rlvr.algorithm.critic import make_critic
from oneshot.rlvr.algorithm.weight_sync import checkpoint_weights
from oneshot.rlvr.algorithm_config import AlgorithmConfig, CriticConfig
from oneshot.rlvr.checkpoint import stored_tensors
from oneshot.rlvr.config import ModelConfig
from oneshot.rlvr.rollout.engine_check import UnsupportedModelError, check_engine
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.rlvr.trainer import train
from oneshot.training.distributed import Processes

PROMPTS = [[5, 9, 12], [7], [30, 31, 8, 9, 10, 4, 11]]
# Models with trained numbers in persistent buffers: the layers' scale of Gemma 4, the experts'
# correction of two mixtures. New, they are all ones and zeros, which nothing could lose.
BUFFERS = ["gemma4_text", "glm4_moe", "deepseek_v3"]


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)


@pytest.mark.parametrize("family", BUFFERS)
@pytest.mark.parametrize("preset", ["paper", "ppo"])
def test_a_step_of_rate_zero_changes_nothing(family, preset, tiny_folder, tmp_path):
    buffers = rlvr_families.write_with_buffers(tmp_path / "model", family)
    rate_zero = ["--optimizer.lr=0", "--optimizer.weight_decay=0", "--critic.optimizer.lr=0"]
    rate_zero += ["--critic.optimizer.weight_decay=0", "--run.steps=1", f"--preset={preset}"]
    words = [f"--model.source={tmp_path / 'model'}", *rate_zero]
    result = train(rlvr_tiny.config(tiny_folder, tmp_path / "run", *words))
    before = models.load_model(str(tmp_path / "model")).state_dict()
    after = models.load_model(str(result.checkpoint)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(after[name], value) for name, value in buffers.items())
    if preset == "ppo":
        critic = models.load_tagger(str(result.checkpoint / "critic"), ["value"]).state_dict()
        assert all(torch.equal(critic[name], value) for name, value in buffers.items())


def test_a_resumed_run_of_a_model_with_buffers_is_the_same(tiny_folder, tmp_path):
    rlvr_families.write_with_buffers(tmp_path / "model", "gemma4_text")

    def run(name, steps, resume=False):
        words = [f"--model.source={tmp_path / 'model'}", f"--run.steps={steps}"]
        config = rlvr_tiny.config(tiny_folder, tmp_path / name, *words)
        return train(config, resume=resume, reward=rlvr_tiny.share_of_a)

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume=True)
    bytes_of = [(r.checkpoint / "model.safetensors").read_bytes() for r in (whole, parts)]
    assert bytes_of[0] == bytes_of[1]
    for one, two in zip(whole.history, parts.history, strict=True):
        assert two.get("policy/kl") == one.get("policy/kl")


def test_a_model_that_lacks_weights_is_refused(tmp_path):
    model = rlvr_families.make("olmo2", tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path)  # the trunk alone: the output layer would be random
    with pytest.raises(ValueError, match=r"lacks 1 of the weights .*lm_head\.weight.* random"):
        models.load_model(str(tmp_path))
    models.load_encoder(str(tmp_path))
    models.load_tagger(str(tmp_path), ["value"])  # its head alone is new
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "down_proj" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (models.load_encoder, lambda source: models.load_tagger(source, ["value"])):
        with pytest.raises(ValueError, match=r"lacks 1 of the weights .*down_proj.* random"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    "family",
    [
        "qwen2_moe",
        "qwen3_moe",
        "mixtral",
        "olmoe",
        "granitemoe",
        "glm4_moe",
        "deepseek_v3",
        "gpt_oss",
        "gemma4_text",
        "qwen3_next",
        "jamba",
    ],
)
def test_vllm_is_sent_the_names_of_a_checkpoint(family, tmp_path):
    model = models.load_model(str(rlvr_families.write(tmp_path / "a", family)))
    model.save_pretrained(tmp_path / "b")
    saved, sent = load_file(tmp_path / "b" / "model.safetensors"), dict(checkpoint_weights(model))
    assert saved.keys() == sent.keys()
    assert all(torch.equal(saved[name], value) for name, value in sent.items())
    if family in ("qwen3_moe", "mixtral"):
        assert {name for name, _ in stored_tensors(model)} != saved.keys()


@pytest.mark.parametrize(
    "family",
    [
        "gemma3_text",
        "gemma4_text",
        "olmo2",
        "gpt2",
        "gpt_oss",
        "qwen3_moe",
        "deepseek_v3",
        "qwen3_5_text",
        "qwen3_next",
        "lfm2",
        "falcon_h1",
        "jamba",
    ],
)
def test_engine_and_plain_passes_agree(family):
    """Sliding windows, mixtures, recurrent and hybrid caches; equal prompts and padded ones."""
    model, tokenizer = rlvr_families.make(family), rlvr_tiny.make_tokenizer()
    for prompts in (PROMPTS[:1], PROMPTS):
        assert check_engine(model, tokenizer, prompts) < 1e-5
    few = TransformersEngine(model, tokenizer, temperature=1.0, max_new_tokens=8, max_sequences=3)
    many = TransformersEngine(model, tokenizer, temperature=1.0, max_new_tokens=8)
    assert few.generate(PROMPTS, 4, 1).texts == many.generate(PROMPTS, 4, 1).texts


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("openai-gpt", "ignores the cache"),
        ("rwkv", "ignores the cache"),
        ("mamba", "ignores the cache"),
        ("mamba2", "ignores the cache"),
        ("recurrent_gemma", "ignores the cache"),
        ("minimax", "MiniMax uses cache of its own"),
    ],
)
def test_a_model_that_cannot_be_decoded_is_named_before_the_first_step(
    family, words, tiny_folder, tmp_path
):
    rlvr_families.write(tmp_path / "model", family)
    words_of_run = [f"--model.source={tmp_path / 'model'}", "--evaluation.before_training=false"]
    config = rlvr_tiny.config(tiny_folder, tmp_path / "run", *words_of_run)
    with pytest.raises(UnsupportedModelError, match=f"model type '{family}'.*{words}.*vllm"):
        train(config, reward=rlvr_tiny.share_of_a)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "qwen2_moe", "gemma4_text"])
def test_ppo_has_a_critic_for_every_family(family, tmp_path):
    """transformers has no token classifier for some of them: then the head sits on the trunk."""
    source = str(rlvr_families.write(tmp_path / "model", family))
    policy = models.load_model(source)

    def critic(source):
        options = CriticConfig(), AlgorithmConfig(), ModelConfig(device="cpu"), Processes()
        return make_critic(source, *options)

    new = critic(source)
    trunk = policy.model.state_dict()
    assert all(
        torch.equal(value, trunk[name]) for name, value in new.model.model.state_dict().items()
    )
    engine = TransformersEngine(
        policy, rlvr_tiny.make_tokenizer(), temperature=1.0, max_new_tokens=8
    )
    rollout = engine.generate(PROMPTS, 2, 0)
    values = new.values(rollout)
    assert (values == 0).all()
    figures = new.update(rollout, values, torch.ones_like(values), 1)
    assert figures["critic/grad_norm"] > 0
    learned = new.values(rollout)
    assert (learned != 0).any()
    new.model.save_pretrained(tmp_path / "critic", state_dict=dict(stored_tensors(new.model)))
    assert torch.equal(critic(str(tmp_path / "critic")).values(rollout), learned)

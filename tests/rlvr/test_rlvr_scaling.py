"""The arithmetic of docs/scaling.md against real models and caches."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from oneshot.rlvr import scaling
from oneshot.rlvr.algorithm.microbatch import split
from oneshot.rlvr.algorithm.optimizer import make_optimizer
from oneshot.rlvr.algorithm.passes import response_logits
from oneshot.rlvr.algorithm_config import OptimizerConfig
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_parameters_and_cache_are_those_of_the_model(kind, tied):
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=101, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = model_class(config)
    shape = scaling.Shape(3, 48, 72, 6, 2, 101, tied, kind == "qwen2")
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    cache = DynamicCache(config=config)
    model(torch.ones(5, 7, dtype=torch.int64), past_key_values=cache, use_cache=True)
    held = sum(x.numel() * 4 for layer in cache.layers for x in (layer.keys, layer.values))
    assert shape.cache_bytes(35, 4) == held


def test_published_sizes():
    """Parameter counts as the model cards give them."""
    sizes = {name: shape.parameters / 1e9 for name, shape in scaling.SHAPES.items()}
    assert sizes["Qwen2.5-Math-1.5B"] == pytest.approx(1.54, abs=0.005)
    assert sizes["Qwen2.5-Math-7B"] == pytest.approx(7.61, abs=0.01)
    assert sizes["Llama-3.2-3B-Instruct"] == pytest.approx(3.21, abs=0.005)
    assert sizes["DeepSeek-R1-Distill-Qwen-1.5B"] == pytest.approx(1.78, abs=0.005)


def test_a_small_run_holds_what_is_counted(tiny):
    model, tokenizer = tiny
    shape = scaling.Shape(2, 32, 64, 4, 2, model.config.vocab_size, True, True)
    engine = TransformersEngine(model, tokenizer, temperature=1.0, max_new_tokens=9)
    rollout = engine.generate([[5, 9, 12]], 4, 0)
    batch = split(rollout, list(range(4)), 1000)[0]
    logits = response_logits(model, batch)
    assert scaling.logits_bytes(shape, batch.response_ids.numel()) == logits.numel() * 4
    optimizer = make_optimizer(model, OptimizerConfig())
    logits.sum().backward()
    optimizer.step()
    held = 0
    for parameter in model.parameters():
        moments = [v for k, v in optimizer.state[parameter].items() if k.startswith("exp_avg")]
        for tensor in (parameter, parameter.grad, *moments):
            held += tensor.numel() * tensor.element_size()
    assert scaling.training_bytes(shape, 1, reference=False) == held
    assert scaling.training_bytes(shape, 2, reference=True) == held * 5 // 4 // 2


def test_rates():
    assert scaling.tokens_per_second(1024, 800, 2000, 24) == pytest.approx(37925.93, abs=0.01)
    one = scaling.Shape(1, 1, 1, 1, 1, 1, True, False)
    assert scaling.training_flops(one, 10, reference=True) == 80 * one.parameters

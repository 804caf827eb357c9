"""Tiny random models of other families of transformers, as folders with the tests' tokenizer."""

from pathlib import Path

import rlvr_tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}

# Model type -> options on top of COMMON (None as a value takes an option of COMMON away).
FAMILIES: dict[str, dict] = {
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma4_text": {
        "vocab_size_per_layer_input": 32,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
    },
    "olmo2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "mixtral": LOCAL,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": LOCAL,
    "gpt_oss": LOCAL,
    "glm4_moe": ROUTED,
    "deepseek_v3": {
        **ROUTED,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "gpt2": GPT,
    "openai-gpt": GPT,
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "qwen3_next": {
        **EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
    },
    "minimax": {**LOCAL, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        **EXPERTS,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"]},
}


def make(family: str, **options):
    """A tiny causal model of a family."""
    tokenizer = rlvr_tiny.make_tokenizer()
    values = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        **COMMON,
        **FAMILIES[family],
        **options,
    }
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **values)
    return AutoModelForCausalLM.from_config(config).eval()


def write(folder: Path, family: str, **options) -> Path:
    """Such a model with its tokenizer in a folder of its own."""
    make(family, **options).save_pretrained(folder)
    rlvr_tiny.make_tokenizer().save_pretrained(folder)
    return folder


def write_with_buffers(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """Such a folder whose persistent buffers are no longer as they begin; returns the buffers."""
    model = make(family)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: x for name, x in model.state_dict().items() if name not in parameters}
    assert buffers
    for i, buffer in enumerate(buffers.values()):
        buffer.copy_(0.3 + 0.2 * i + 0.05 * torch.arange(buffer.numel()).view(buffer.shape))
    model.save_pretrained(folder)
    rlvr_tiny.make_tokenizer().save_pretrained(folder)
    return {name: buffer.clone() for name, buffer in buffers.items()}

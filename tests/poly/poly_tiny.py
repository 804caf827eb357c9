"""Tiny random models of several architectures, with adapters whose B is not zero."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from oneshot.poly import PolyConfig, inject

VOCABULARY = 40


def llama():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def t5():
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def gpt2():
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


ARCHITECTURES = {"llama": llama, "t5": t5, "gpt2": gpt2}

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.2,
}


def qwen3():
    """Input and output embeddings are tied."""
    torch.manual_seed(3)
    return Qwen3ForCausalLM(Qwen3Config(**DECODER, tie_word_embeddings=True)).eval()


def bart():
    torch.manual_seed(3)
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = BartConfig(
        **sizes,
        vocab_size=VOCABULARY,
        d_model=16,
        max_position_embeddings=32,
        init_std=0.2,
        dropout=0.0,
        decoder_start_token_id=2,
    )
    return BartForConditionalGeneration(config).eval()


def qwen3_moe():
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        **DECODER, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2
    )
    return Qwen3MoeForCausalLM(config).eval()


def mixtral():
    torch.manual_seed(3)
    return MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=4)).eval()


def mamba():
    """Computes with the weight of dt_proj and does not call it."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "time_step_rank": 2}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **sizes)).eval()


def gemma3():
    """A vision tower (SigLIP, whose head is an nn.MultiheadAttention) and a decoder of text."""
    torch.manual_seed(3)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = Gemma3TextConfig(**DECODER)
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=39,
        boi_token_index=37,
        eoi_token_index=38,
    )
    return Gemma3ForConditionalGeneration(config).eval()


def whisper():
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=20,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperForConditionalGeneration(config).eval()


def adapted(make=llama, **fields):
    """A model with adapters that do something: random B (or l), routing far from uniform."""
    values = {"tasks": 5, "skills": 3, "heads": 2, "rank": 2, "alpha": 1.0, **fields}
    torch.manual_seed(11)
    poly = inject(make(), PolyConfig(**values))
    with torch.no_grad():
        for name, parameter in poly.adapter_parameters().items():
            parameter.normal_(std=1.5 if name.startswith("router") else 0.4)
            if name.endswith("ia3"):
                parameter.add_(1)
    return poly.eval()


def tokens(batch=4, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def logits(poly, ids, **kwargs):
    if poly.base_model.config.is_encoder_decoder:
        kwargs = {"decoder_input_ids": ids.flip(1)[:, :5], **kwargs}
    return poly(input_ids=ids, **kwargs).logits


def mixed_by_hand(layer, weights):
    """A~ [d_in, r] and B~ [r, d_out] of one task, one number at a time; weights [heads, skills]."""
    a, b = layer.lora_a.double(), layer.lora_b.double()
    heads, skills, rows, rank = a.shape
    columns = b.shape[-1]
    mixed_a = torch.zeros(heads * rows, rank, dtype=torch.double)
    mixed_b = torch.zeros(rank, heads * columns, dtype=torch.double)
    for h in range(heads):
        for k in range(skills):
            mixed_a[h * rows : (h + 1) * rows] += float(weights[h, k]) * a[h, k]
            mixed_b[:, h * columns : (h + 1) * columns] += float(weights[h, k]) * b[h, k]
    return mixed_a, mixed_b

"""Tiny random models of three architectures, with adapters whose B is not zero."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
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

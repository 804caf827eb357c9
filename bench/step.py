"""Benchmarks of whole updates: one GRPO step's loss and gradients on a batch of responses.

The model has the shape of SmolLM2-135M and random weights. All providers compute the token mean of
the clipped surrogate for the same responses and return the loss and the norm of the gradient.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from oneshot.bench.registry import Foreign, Inputs, Operation, Provider

VOCABULARY, TINY = 49152, 96


@functools.cache
def _model(tiny: bool) -> Any:
    """One model for all providers; each call clears the gradients that it leaves."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TINY if tiny else VOCABULARY,
        hidden_size=36 if tiny else 576,
        intermediate_size=64 if tiny else 1536,
        num_hidden_layers=2 if tiny else 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def _norm(model: Any) -> torch.Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    model.zero_grad()
    return norm


def _oracle_of(tiny: bool) -> Callable[[Inputs], tuple[torch.Tensor, ...]]:
    """Plain passes, a log-softmax, the formula; in float32, since it is the model that costs."""

    def call(inputs: Inputs) -> tuple[torch.Tensor, ...]:
        model = _model(tiny)
        with torch.enable_grad():
            ids = torch.cat([inputs["prompts"], inputs["responses"]], 1)
            count = inputs["responses"].shape[1]
            total = torch.zeros((), dtype=torch.float64)
            for row in range(len(ids)):  # one at a time: little memory
                logits = model(input_ids=ids[row : row + 1], use_cache=False).logits
                logits = logits[0, -count - 1 : -1].double()
                chosen = logits.log_softmax(-1).gather(1, inputs["responses"][row][:, None])[:, 0]
                ratio = (chosen - chosen.detach()).exp()
                loss = -(ratio * inputs["advantages"][row]).sum() / inputs["responses"].numel()
                loss.backward()
                total += loss.detach()
        return total, _norm(model).double()

    return call


def _ours(tiny: bool, share: bool) -> Foreign:
    from oneshot.integrations.fused_head import fuse_lm_head, is_fused
    from oneshot.policy_options import PolicyLossOptions
    from oneshot.rlvr.algorithm.loss import LossInputs, policy_loss
    from oneshot.rlvr.algorithm.microbatch import split
    from oneshot.rlvr.algorithm.passes import response_statistics
    from oneshot.rlvr.algorithm_config import AlgorithmConfig
    from oneshot.rlvr.rollout.engine import Rollout

    def prepare(inputs: Inputs) -> Any:
        model = _model(tiny)
        if not is_fused(model):
            fuse_lm_head(model)
        prompts, responses = inputs["prompts"], inputs["responses"]
        rollout = Rollout(
            prompts,
            torch.ones_like(prompts, dtype=torch.bool),
            responses,
            torch.ones_like(responses, dtype=torch.bool),
            [""] * len(prompts),
            torch.ones(len(prompts), dtype=torch.bool),
        )
        return model, rollout, inputs["advantages"]

    algorithm = AlgorithmConfig(loss=PolicyLossOptions(kl="none", aggregate="token-mean"))

    def run(given: Any) -> tuple[torch.Tensor, ...]:
        model, rollout, advantages = given
        with torch.enable_grad():
            (batch,) = split(rollout, range(len(rollout)), 10**9, share_prompts=share)
            mask = batch.response_mask
            logprobs, entropy = response_statistics(model, batch, mask, 1.0)
            scores = LossInputs(logprobs, entropy, mask, advantages[batch.rows])
            loss = policy_loss(scores, algorithm).loss
            loss.backward()
        return loss.detach(), _norm(model)

    return Foreign(prepare, run, lambda y: y)


def _trl(tiny: bool) -> Foreign:
    """GRPOTrainer's own loss, without gradient checkpointing, which would cost it more time."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    def prepare(inputs: Inputs) -> Any:
        rows, length = inputs["responses"].shape
        words = {str(i): i for i in range(TINY)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")),
            pad_token="0",
            eos_token="1",
        )
        config = GRPOConfig(
            tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            beta=0.0,
            loss_type="bnpo",
            gradient_checkpointing=False,
            per_device_train_batch_size=rows,
            num_generations=rows // inputs["distinct"],
            max_completion_length=length,
            report_to=[],
        )
        trainer = GRPOTrainer(
            _model(tiny),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["2"] * rows}),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.eval()
        batch = {
            "prompt_ids": inputs["prompts"],
            "prompt_mask": torch.ones_like(inputs["prompts"]),
            "completion_ids": inputs["responses"],
            "completion_mask": torch.ones_like(inputs["responses"]),
            "advantages": inputs["advantages"],
            "num_items_in_batch": torch.tensor(inputs["responses"].numel()),
        }
        return trainer, batch

    def run(given: Any) -> tuple[torch.Tensor, ...]:
        trainer, batch = given
        with torch.enable_grad():
            loss = trainer._compute_loss(trainer.model, batch)
            loss.backward()
        return loss.detach(), _norm(trainer.model)

    return Foreign(prepare, run, lambda y: y)


def _products(tiny: bool) -> Foreign:
    """Forward and backward products of every linear layer, with each distinct token once."""

    def prepare(inputs: Inputs) -> Any:
        responses = inputs["responses"].numel()
        tokens = responses + inputs["distinct"] * (inputs["prompts"].shape[1] - 1)
        model = _model(tiny)
        head = model.get_output_embeddings()
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        return [
            (
                torch.randn(responses if layer is head else tokens, layer.in_features),
                torch.randn(responses if layer is head else tokens, layer.out_features),
                layer.weight.detach(),
            )
            for layer in layers
        ]

    def run(given: Any) -> tuple[torch.Tensor, ...]:
        for x, gradient, weight in given:
            result = (x @ weight.t(), gradient @ weight, gradient.t() @ x)
        return result

    return Foreign(prepare, run, lambda y: y)


def operation(prompts: int, rows: int, prompt: int, response: int, *, tiny: bool) -> Operation:
    """Loss and gradients for `rows` responses to `prompts` prompts."""

    def make() -> Inputs:
        vocabulary = TINY if tiny else VOCABULARY
        return {
            "prompts": torch.randint(2, vocabulary, (prompts, prompt)).repeat_interleave(
                rows // prompts, 0
            ),
            "responses": torch.randint(2, vocabulary, (rows, response)),
            "advantages": torch.randn(rows),
            "distinct": prompts,
        }

    return Operation(
        family="step",
        kernel="grpo_update",
        shape=f"{prompts}x{rows // prompts}-{prompt}+{response}",
        dtype="float32",
        mode="forward",  # providers differentiate by themselves
        make=make,
        oracle=_oracle_of(tiny),
        providers=(
            Provider("oneshot", "ours", lambda: _ours(tiny, True)),
            Provider("oneshot, prompts not shared", "ours", lambda: _ours(tiny, False)),
            Provider("TRL", "peer", lambda: _trl(tiny)),
            Provider("matrix products", "floor", lambda: _products(tiny)),
        ),
        quick=tiny,
    )


OPERATIONS = [
    operation(1, 4, 6, 3, tiny=True),
    operation(1, 32, 120, 24, tiny=False),
    operation(1, 32, 120, 128, tiny=False),
    operation(4, 32, 120, 24, tiny=False),
]

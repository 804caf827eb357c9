"""The shipped model: size, loading through transformers, and the habits of a base model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot.embedded import MODEL_FOLDER, problems

UNSEEN = problems.sample_problems(256, "test", seed=2026)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER).eval()


def respond(model, tokenizer, asked, samples=1, **sampling):
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.text}], tokenize=False, add_generation_prompt=True
        )
        for problem in asked
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    inputs = {name: tensor.repeat_interleave(samples, 0) for name, tensor in inputs.items()}
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=64, **sampling)
    responses = output[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(responses, skip_special_tokens=True)


def is_right(response, problem):
    return f"\\boxed{{{problem.answer}}}" in response


def test_files_are_small():
    weights = MODEL_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 5_000_000
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) <= 5_500_000
    card = (MODEL_FOLDER / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: apache-2.0" in card


def test_loads_as_qwen2(model):
    assert model.config.model_type == "qwen2"
    assert model.dtype == torch.float32
    assert 1_000_000 <= model.num_parameters() <= 3_000_000


def test_tokenizer_round_trip_and_chat_template(tokenizer, model):
    for text in ("What is 346+278?", "  \\boxed{-7/3}\n", "naïve 数学 €", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("1234567890")["input_ids"]) == 10
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Find 12+34."}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nFind 12+34.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_base_greedy_accuracy_is_low_but_not_nil(model, tokenizer):
    responses = respond(model, tokenizer, UNSEEN, do_sample=False)
    right = sum(map(is_right, responses, UNSEEN))
    assert 0.15 <= right / len(UNSEEN) <= 0.45
    styles = [problems.style_of(response) for response in responses]
    assert styles.count("work") < 0.1 * len(UNSEEN)


def test_sampling_finds_far_more_than_greedy(model, tokenizer):
    asked, samples = UNSEEN[:48], 16
    torch.manual_seed(0)
    responses = respond(
        model, tokenizer, asked, samples, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    right = torch.tensor(
        [is_right(response, asked[i // samples]) for i, response in enumerate(responses)]
    ).view(-1, samples)
    assert right.any(dim=1).float().mean() >= 0.85
    assert 0.15 <= right.float().mean() <= 0.60
    worked = [
        is_right(response, asked[i // samples])
        for i, response in enumerate(responses)
        if problems.style_of(response) == "work"
    ]
    assert 0.10 <= len(worked) / len(responses) <= 0.35
    assert sum(worked) / len(worked) >= 0.85


def test_left_padding_does_not_change_an_answer(model, tokenizer):
    alone = respond(model, tokenizer, UNSEEN[:1], do_sample=False)
    assert respond(model, tokenizer, UNSEEN[:9], do_sample=False)[0] == alone[0]

"""Evaluation figures against enumeration and published values."""

import itertools
import json

import pytest
import rlvr_families
import rlvr_tiny
import torch

from oneshot.rlvr.config import PromptConfig, RewardConfig
from oneshot.rlvr.evaluation.evaluate import evaluate, pass_at_k, prepare, wilson_interval
from oneshot.rlvr.problems.data import Problem, read_problems
from oneshot.rlvr.rewards.reward import FunctionReward, make_reward


def test_wilson_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I: 81/263, 15/148, 0/20, 1/29.
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson_interval(hits / count, count)
        assert found == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1.0, 7)[1] == 1.0
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        wilson_interval(0.5, 0)


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(samples):
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(
                sum(map(any, subsets)) / len(subsets)
            )
    with pytest.raises(ValueError, match=f"between 1 and samples = {samples}"):
        pass_at_k(samples, 0, samples + 1)


def run(tiny, problems, **options):
    model, tokenizer = tiny
    grader = FunctionReward(lambda texts, problems: [float("a" in text) for text in texts])
    defaults = {"template": PromptConfig(), "max_new_tokens": 12, "batch_size": 4}
    return evaluate(model, tokenizer, problems, grader=grader, **{**defaults, **options})


def test_figures_are_those_of_the_records(tiny, tiny_folder):
    problems = read_problems(tiny_folder / "eval.jsonl")
    result = run(tiny, problems, temperature=1.0, samples=6, seed=3)
    assert [record["answer"] for record in result.records] == [p.answer for p in problems]
    scores = [record["scores"] for record in result.records]
    for record in result.records:
        assert record["scores"] == [float("a" in text) for text in record["responses"]]
    hits = [int(sum(row)) for row in scores]
    assert 0 < sum(hits) < 18
    assert result.accuracy == pytest.approx(sum(hits) / 18)
    assert result.interval == wilson_interval(result.accuracy, 3)
    assert result.pass_at_k == {
        k: pytest.approx(sum(pass_at_k(6, hit, k) for hit in hits) / 3) for k in (1, 2, 4)
    }
    assert result.metrics().keys() >= {"accuracy", "boxed_ratio", "truncated_ratio"}
    json.dumps(result.metrics())
    assert run(tiny, problems, temperature=1.0, samples=6, seed=3) == result
    assert run(tiny, problems, temperature=1.0, samples=6, seed=4) != result


def test_greedy_does_not_depend_on_batches(tiny, tiny_folder):
    problems = read_problems(tiny_folder / "eval.jsonl") * 5
    assert run(tiny, problems, batch_size=1) == run(tiny, problems, batch_size=64)


def test_the_default_length_is_what_the_positions_leave():
    problems = [Problem([{"role": "user", "content": c}], "a") for c in ("1", "12345")]
    tokenizer = rlvr_tiny.make_tokenizer()
    for family, options, limit in (
        ("gpt2", {"n_positions": 64, "max_position_embeddings": 64}, 64 - 7),
        ("olmo2", {"max_position_embeddings": 4096}, 3072),
        ("mamba", {"max_position_embeddings": None}, 3072),
    ):
        model = rlvr_families.make(family, **options)
        prompts, found = prepare(model, tokenizer, problems, PromptConfig(), None)
        assert (found, [len(row) for row in prompts]) == (limit, [3, 7])
    small = rlvr_families.make("gpt2", n_positions=64, max_position_embeddings=64), tokenizer
    assert run(small, problems, max_new_tokens=None).max_tokens <= 57
    with pytest.raises(ValueError, match=r"max_new_tokens must be at most 64 .* = 57, got 58"):
        run(small, problems, max_new_tokens=58)


def test_figures_that_mean_little_are_doubted(tiny):
    problems = [Problem([{"role": "user", "content": "1"}], "a")]
    model, tokenizer = tiny
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.eos_token_id] = 0  # seldom the likeliest
    options = {"template": PromptConfig(), "max_new_tokens": 3, "batch_size": 4}
    for grader, doubts in (("math_verify", 2), ("harness", 1)):
        reward = make_reward(RewardConfig(grader, timeout=10.0, workers=1))
        with pytest.warns(UserWarning, match="no response") as said:
            evaluate(model, tokenizer, problems, grader=reward, **options)
        reward.close()
        texts = [str(warning.message) for warning in said]
        assert len(texts) == doubts
        assert "no response ended by itself: each was cut at 3 new tokens" in texts[0]
        assert all("no response has a boxed answer, and the grader 'math_" in t for t in texts[1:])


def test_lengths_boxes_and_truncation(tiny):
    problems = [Problem([{"role": "user", "content": "1"}], "a")]
    result = run(tiny, problems, max_new_tokens=1)
    assert result.mean_tokens == 1
    assert result.truncated_ratio in (0, 1)
    assert result.boxed_ratio == 0
    with pytest.raises(ValueError, match="problems is empty"):
        run(tiny, [])

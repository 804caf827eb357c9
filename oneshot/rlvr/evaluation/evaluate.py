"""Accuracy of a model on problems with known answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from oneshot.rlvr.config import EvaluateConfig, PromptConfig
from oneshot.rlvr.metrics import reflection_shares
from oneshot.rlvr.problems.data import Problem, read_problems
from oneshot.rlvr.problems.prompt import encode
from oneshot.rlvr.rewards.reward import AnswerReward, Reward, has_boxed_answer, make_reward
from oneshot.rlvr.rollout.engine import check_prompts, check_room, embedding_count, position_limit
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Default limit of a response in tokens: that of the paper's evaluation.
DEFAULT_LIMIT = 3072
# Fields of a problem by which accuracies are split, where its rows have them.
GROUP_FIELDS = ("subject", "level", "type", "subfield")


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all problems.

    Attributes:
        accuracy: Share of correct responses (mean over samples, then over problems).
        interval: Wilson 95 % interval of the accuracy. Samples of one problem are not independent,
            so it counts problems, not samples.
        problems: Number of problems.
        boxed_ratio: Share of responses with a non-empty boxed answer.
        truncated_ratio: Share of responses cut at the length limit.
        mean_tokens: Mean response length in tokens.
        max_tokens: Longest response in tokens.
        reflection: Share of responses with each of `REFLECTION_WORDS` (any case) and with "any".
        groups: For each of `GROUP_FIELDS` that the problems have: value -> problems, accuracy.
        pass_at_k: Unbiased pass@k for k = 1, 2, 4, ... up to the number of samples.
        timeouts: Responses whose grader ran out of time or died (counted as wrong).
        records: Per problem: index, data source, answer, responses, tokens, scores.
    """

    accuracy: float
    interval: tuple[float, float]
    problems: int
    boxed_ratio: float
    truncated_ratio: float
    mean_tokens: float
    max_tokens: int
    reflection: dict[str, float]
    groups: dict[str, dict[str, dict[str, float]]]
    pass_at_k: dict[int, float]
    timeouts: int
    records: list[dict[str, Any]]

    def metrics(self) -> dict[str, Any]:
        """Everything but the records."""
        return {key: value for key, value in asdict(self).items() if key != "records"}


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    template: PromptConfig,
    max_new_tokens: int | None,
    batch_size: int,
    temperature: float = 0.0,
    samples: int = 1,
    top_p: float = 1.0,
    grader: Reward,
    seed: int = 0,
    stop_tokens: Sequence[str] = (),
) -> Evaluation:
    """Generates responses to every problem and grades them.

    Args:
        model: The model, used as it is.
        tokenizer: Its tokenizer.
        problems: The problems.
        template: How to render them.
        max_new_tokens: Tokens after which a response is cut; None: 3072, or what the positions of
            the model leave room for.
        batch_size: Sequences decoded at once.
        temperature: 0 for greedy decoding.
        samples: Responses per problem.
        top_p: Nucleus mass when sampling.
        grader: Decides what is correct: a score above 0.5 is.
        seed: Seed of the sampling.
        stop_tokens: As `rollout.stop_tokens`.

    Returns:
        The metrics, with every response.

    Raises:
        ValueError: No problems, a prompt with token ids that the model does not have, or responses
            that would run out of its positions.
        NonFiniteLogitsError: The model's logits are NaN.
    """
    prompts, max_new_tokens = prepare(model, tokenizer, problems, template, max_new_tokens)
    engine = TransformersEngine(
        model,
        tokenizer,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        top_p=top_p,
        max_sequences=batch_size,
        stop_tokens=stop_tokens,
    )
    # Neighbours of similar length need little padding.
    order = sorted(range(len(problems)), key=lambda i: (len(prompts[i]), i))
    per_call = max(1, batch_size // samples)
    responses: dict[int, list[_Response]] = {}
    for begin in range(0, len(order), per_call):
        chosen = order[begin : begin + per_call]
        call_seed = derive_seed(seed, "evaluation", begin)
        rollout = engine.generate([prompts[i] for i in chosen], samples, call_seed)
        lengths = rollout.response_mask.sum(1).tolist()
        rows = list(map(_Response, rollout.texts, lengths, rollout.finished.tolist()))
        for row, i in enumerate(chosen):
            responses[i] = rows[row * samples : (row + 1) * samples]
    result = _summary(problems, [responses[i] for i in range(len(problems))], grader)
    for text in _doubts(result, grader, max_new_tokens):
        warnings.warn(text, stacklevel=2)
    return result


def _doubts(result: Evaluation, grader: Reward, max_new_tokens: int) -> list[str]:
    """Reasons to doubt the metrics of an evaluation."""
    doubts = []
    if result.truncated_ratio == 1:
        doubts.append(
            f"no response ended by itself: each was cut at {max_new_tokens} new tokens. If the "
            "model ends its turns with a token of its own, name it in stop_tokens"
        )
    if result.boxed_ratio == 0 and isinstance(grader, AnswerReward) and grader.needs_box:
        doubts.append(
            f"no response has a boxed answer, and the grader {grader.grader!r} looks at nothing "
            "else: every one counts as wrong. Ask for \\boxed{} in prompt.suffix, or take the "
            "grader 'harness'"
        )
    return doubts


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    template: PromptConfig,
    max_new_tokens: int | None,
    option: str = "max_new_tokens",
) -> tuple[list[list[int]], int]:
    """The prompts as token ids and the limit of the responses, checked against the model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        problems: The problems.
        template: How to render them.
        max_new_tokens: As in `evaluate`.
        option: Its name in a message.

    Raises:
        ValueError: As in `evaluate`.
    """
    if not problems:
        raise ValueError("problems is empty")
    prompts = encode(problems, tokenizer, template)
    check_prompts(prompts, embedding_count(model))
    if max_new_tokens is None:
        positions = position_limit(model)
        room = DEFAULT_LIMIT if positions is None else positions - max(map(len, prompts))
        max_new_tokens = max(1, min(DEFAULT_LIMIT, room))
    check_room(model, prompts, max_new_tokens, option)
    return prompts, max_new_tokens


class _Response(NamedTuple):
    text: str
    length: int
    finished: bool


def _summary(
    problems: Sequence[Problem], responses: Sequence[Sequence[_Response]], grader: Reward
) -> Evaluation:
    samples = len(responses[0])
    flat = [response for group in responses for response in group]
    texts = [response.text for response in flat]
    graded = grader(texts, [problem for problem in problems for _ in range(samples)])
    correct = [float(score > 0.5) for score in graded.scores]
    groups = [correct[i : i + samples] for i in range(0, len(correct), samples)]
    accuracy = sum(correct) / len(correct)
    ks = [1 << power for power in range(samples.bit_length())]
    return Evaluation(
        accuracy=accuracy,
        interval=wilson_interval(accuracy, len(problems)),
        problems=len(problems),
        boxed_ratio=sum(map(has_boxed_answer, texts)) / len(texts),
        truncated_ratio=sum(not response.finished for response in flat) / len(flat),
        mean_tokens=sum(response.length for response in flat) / len(flat),
        max_tokens=max(response.length for response in flat),
        reflection=reflection_shares(texts),
        groups=accuracy_by_group(problems, [sum(group) / samples for group in groups]),
        pass_at_k={
            k: sum(pass_at_k(samples, int(sum(group)), k) for group in groups) / len(groups)
            for k in ks
        },
        timeouts=graded.timeouts + graded.crashes,
        records=[
            {
                "index": problem.index,
                "data_source": problem.data_source,
                "answer": problem.answer,
                "responses": [response.text for response in group],
                "tokens": [response.length for response in group],
                "scores": scores,
            }
            for problem, group, scores in zip(problems, responses, groups, strict=True)
        ],
    )


def accuracy_by_group(
    problems: Sequence[Problem], accuracies: Sequence[float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Number of problems and mean accuracy by each value of each of `GROUP_FIELDS`."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in GROUP_FIELDS:
        values: dict[str, list[float]] = {}
        for problem, accuracy in zip(problems, accuracies, strict=True):
            if name in problem.extra:
                values.setdefault(str(problem.extra[name]), []).append(accuracy)
        if values:
            result[name] = {
                value: {"problems": len(accuracies), "accuracy": sum(accuracies) / len(accuracies)}
                for value, accuracies in sorted(values.items())
            }
    return result


def wilson_interval(share: float, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a share of `count` trials; 95 % by default.

    Source:
        Wilson 1927, https://doi.org/10.2307/2276774.
    """
    if count <= 0:
        raise ValueError(f"count must be positive, got {count}")
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half /= 1 + z * z / count
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased probability that one of `k` of the `samples` responses is correct.

    Source:
        Chen et al. 2021 (arXiv:2107.03374), equation 1: 1 - C(n - c, k) / C(n, k).
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and samples = {samples}, got {k}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def evaluate_config(config: EvaluateConfig) -> Evaluation:
    """What `oneshot rlvr eval` does without benchmarks: loads model and problems, then evaluates.

    Args:
        config: Model, problems, sampling, grader.

    Returns:
        The metrics, with every response.
    """
    import torch

    from oneshot import models
    from oneshot.rlvr.algorithm.policy import load_policy
    from oneshot.rlvr.rollout.engine_check import check_engine

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    problems = read_problems(
        config.data.path,
        problem_key=config.data.problem_key,
        answer_key=config.data.answer_key,
        empty_answers=config.data.empty_answers,
        limit=config.data.limit,
    )
    tokenizer = models.load_tokenizer(config.model.source)
    model = load_policy(config.model, config.model.source, tokenizer, sampling=True)
    prompts, limit = prepare(model, tokenizer, problems, config.data.prompt, config.max_new_tokens)
    check_engine(model, tokenizer, prompts, config.stop_tokens, limit)
    grader = make_reward(config.grader, config.seed)
    try:
        return evaluate(
            model,
            tokenizer,
            problems,
            template=config.data.prompt,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            temperature=config.temperature,
            samples=config.samples,
            top_p=config.top_p,
            grader=grader,
            seed=config.seed,
            stop_tokens=config.stop_tokens,
        )
    finally:
        grader.close()

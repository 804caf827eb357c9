"""How good a model is at a task: loss, exact match, ROUGE-L, rank classification."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import torch

from oneshot.poly.backbone import LabelEncoding
from oneshot.poly.config import EvaluationConfig
from oneshot.poly.data import Example
from oneshot.poly.model import PolyModel

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation, single blanks: what exact match compares.

    Signs and decimal points are punctuation: "-5" is "5" here (see `strict_match`).

    Source:
        The evaluation of Super-NaturalInstructions (Wang et al. 2022).
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the normalized prediction is one of the normalized references, else 0."""
    return float(normalized(prediction) in {normalized(reference) for reference in references})


def strict_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is one of the references but for blanks at the ends, else 0.

    It sees what `exact_match` cannot: signs, decimal points, symbols, case.
    """
    return float(prediction.strip() in {reference.strip() for reference in references})


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 against the best reference, with stemming, as Super-NaturalInstructions does.

    Raises:
        ModuleNotFoundError: The package rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    return float(max(scorer.score(r, prediction)["rougeL"].fmeasure for r in references))


SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "strict_match": strict_match,
    "rouge_l": rouge_l,
}
"""Metrics of greedy answers."""


def _rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the metric "rouge_l" needs rouge-score: pip install rouge-score'
        ) from error
    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def check_metrics(config: EvaluationConfig) -> None:
    """Raises, before any work, when a metric cannot be computed here."""
    if "rouge_l" in config.metrics:
        _rouge_scorer()


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    encoding: LabelEncoding,
    examples: Sequence[Example],
    task: int,
    config: EvaluationConfig,
    record: list[dict[str, Any]] | None = None,
) -> dict[str, float]:
    """Metrics of one task.

    Args:
        model: A model, with or without adapters; is left in the mode it was in.
        encoding: Its tokens.
        examples: The examples.
        task: Number of the task in the router.
        config: Which metrics.
        record: Gets {prompt, answer, references} of each example, where a metric needs answers.

    Returns:
        Metrics by name. Loss is the mean negative log-probability of a token of the first
        reference; rank accuracy is missing when the examples have no options.
    """
    if not examples:
        raise ValueError("examples is empty")
    was_training = model.training
    model.eval()
    options: dict[str, Any] = {"task_ids": task} if isinstance(model, PolyModel) else {}
    metrics: dict[str, float] = {}
    try:
        for name in config.metrics:
            if name == "loss":
                metrics[name] = _loss(model, encoding, examples, config, options)
            elif name == "rank_accuracy" and all(e.options for e in examples):
                metrics[name] = _rank_accuracy(model, encoding, examples, config, options)
        if generated := [name for name in SCORES if name in config.metrics]:
            texts = answers(model, encoding, [e.prompt for e in examples], config, options)
            if record is not None:
                record.extend(
                    {"prompt": e.prompt, "answer": text, "references": list(e.references)}
                    for text, e in zip(texts, examples, strict=True)
                )
            for name in generated:
                score = SCORES[name]
                values = [score(t, e.references) for t, e in zip(texts, examples, strict=True)]
                metrics[name] = sum(values) / len(values)
    finally:
        model.train(was_training)
    return metrics


def answers(
    model: torch.nn.Module,
    encoding: LabelEncoding,
    prompts: Sequence[str],
    config: EvaluationConfig,
    options: dict[str, Any],
) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    device = next(model.parameters()).device
    # Neighbours of similar length need little padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    texts = [""] * len(prompts)
    tokenizer = encoding.tokenizer
    for begin in range(0, len(order), config.batch_size):
        chosen = order[begin : begin + config.batch_size]
        batch = encoding.prompts([prompts[i] for i in chosen])
        output = model.generate(  # type: ignore[operator]
            **{k: v.to(device) for k, v in batch.items()},
            **options,
            max_new_tokens=config.max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else tokenizer.eos_token_id,
        )
        if not encoding.encoder_decoder:
            output = output[:, batch["input_ids"].shape[1] :]
        for i, row in zip(chosen, output, strict=True):
            texts[i] = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
    return texts


def _scores(
    model: torch.nn.Module,
    encoding: LabelEncoding,
    pairs: Sequence[tuple[str, str]],
    config: EvaluationConfig,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability and number of tokens of every answer, in float64."""
    sums = torch.zeros(len(pairs), dtype=torch.float64)
    counts = torch.zeros(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda i: (sum(map(len, pairs[i])), i))
    for begin in range(0, len(order), config.batch_size):
        chosen = order[begin : begin + config.batch_size]
        log_probs, counted = encoding.log_probabilities(
            model, [pairs[i] for i in chosen], **options
        )
        sums[chosen] = log_probs.double().sum(1).cpu()
        counts[chosen] = counted.double().sum(1).cpu()
    return sums, counts


def _loss(
    model: torch.nn.Module,
    encoding: LabelEncoding,
    examples: Sequence[Example],
    config: EvaluationConfig,
    options: dict[str, Any],
) -> float:
    pairs = [(e.prompt, e.references[0]) for e in examples]
    sums, counts = _scores(model, encoding, pairs, config, options)
    return float(-sums.sum() / counts.sum())


def _rank_accuracy(
    model: torch.nn.Module,
    encoding: LabelEncoding,
    examples: Sequence[Example],
    config: EvaluationConfig,
    options: dict[str, Any],
) -> float:
    """Share of examples whose likeliest option (mean over its tokens) is a right answer."""
    pairs = [(e.prompt, option) for e in examples for option in e.options]
    sums, counts = _scores(model, encoding, pairs, config, options)
    means = (sums / counts).tolist()
    right, begin = 0, 0
    for example in examples:
        own = means[begin : begin + len(example.options)]
        begin += len(example.options)
        best = example.options[max(range(len(own)), key=lambda i: (own[i], -i))]
        right += best in example.references
    return right / len(examples)

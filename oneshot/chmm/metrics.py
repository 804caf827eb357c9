"""How good labels are: entities by seqeval's strict IOB2, and posteriors as probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import Ids, LabelSpace

Posteriors = Sequence[npt.NDArray[np.floating]]


class NoGoldError(ValueError):
    """Something needs gold labels, and the sentences have none."""


@dataclass(frozen=True)
class Score:
    """Exact-match scores of entities: 0 where a ratio has nothing to divide by."""

    precision: float
    recall: float
    f1: float
    gold: int  # entities there are


@dataclass(frozen=True)
class Calibration:
    """Posteriors against gold labels, over tokens.

    Attributes:
        nll: Mean negative log probability of the gold label, nats; inf if one has probability 0.
        ece: Expected calibration error of the most probable label: mean over tokens of
            |accuracy - confidence| of the token's bin.
        bins: The reliability diagram, for each of the equal bins of confidence over [0, 1] that is
            not empty: confidence and accuracy (means) and the number of tokens.
    """

    nll: float
    ece: float
    bins: dict[str, list[float]]


def entity_scores(
    labels: LabelSpace, gold: Sequence[Ids], predicted: Sequence[Ids]
) -> dict[str, Score]:
    """Entity precision, recall and F1 (seqeval, mode "strict", scheme IOB2).

    Args:
        labels: The label space of both.
        gold: True label ids of each sentence.
        predicted: Ids of the same lengths. An I- that continues no entity counts as O.

    Returns:
        "micro" over all types, then each type by its name.

    Raises:
        ValueError: Numbers of sentences or of tokens differ.
    """
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2, Entities

    _check_aligned("predicted", gold, predicted)
    names = [[labels.to_names(ids) for ids in side] for side in (gold, predicted)]
    entities = [Entities(side, IOB2) for side in names]
    scores = {name: Score(0.0, 0.0, 0.0, 0) for name in ("micro", *labels.entity_types)}
    types = sorted(entities[0].unique_tags | entities[1].unique_tags)  # the order of seqeval's rows
    for average in ("micro", None) if types else ():
        columns = precision_recall_fscore_support(
            *names, average=average, scheme=IOB2, zero_division=0,
            entities_true=entities[0], entities_pred=entities[1],
        )  # fmt: skip
        rows = [columns] if average else zip(*columns, strict=True)
        for name, (precision, recall, f1, count) in zip(
            ["micro"] if average else types, rows, strict=True
        ):
            scores[name] = Score(float(precision), float(recall), float(f1), int(count))
    return scores


def source_scores(
    labels: LabelSpace, sources: Sequence[str], sentences: Sequence[Sentence]
) -> dict[str, dict[str, Score]]:
    """`entity_scores` of each source's own labels, with silence as O."""
    gold = gold_of(sentences)
    return {
        name: entity_scores(labels, gold, [np.maximum(x.votes[:, s], 0) for x in sentences])
        for s, name in enumerate(sources)
    }


def calibration(gold: Sequence[Ids], posteriors: Posteriors, n_bins: int = 10) -> Calibration:
    """How far posteriors can be believed.

    Args:
        gold: True label ids of each sentence, [T].
        posteriors: Probabilities of the labels, [T, L], rows that sum to 1.
        n_bins: Bins of the reliability diagram.

    Raises:
        ValueError: Numbers of sentences or of tokens differ, or a row is no distribution.
    """
    _check_aligned("posteriors", gold, posteriors)
    _check_distributions(posteriors)
    truth = np.concatenate(gold)
    p = np.concatenate(posteriors).astype(np.float64)
    of_gold = p[np.arange(len(truth)), truth]
    nll = float("inf") if (of_gold <= 0).any() else -float(np.log(of_gold).mean())
    confidence, right = p.max(1), p.argmax(1) == truth
    bin_of = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    count = np.bincount(bin_of, minlength=n_bins)
    full = count > 0
    count = count[full]
    mean_confidence = np.bincount(bin_of, confidence, n_bins)[full] / count
    accuracy = np.bincount(bin_of, right, n_bins)[full] / count
    ece = float((np.abs(accuracy - mean_confidence) * count).sum() / count.sum())
    bins = {
        "confidence": mean_confidence.tolist(),
        "accuracy": accuracy.tolist(),
        "tokens": count.tolist(),
    }
    return Calibration(nll, ece, bins)


def evaluate(
    labels: LabelSpace,
    sentences: Sequence[Sentence],
    predicted: Sequence[Ids],
    posteriors: Posteriors | None = None,
    log_likelihood: float | None = None,
) -> dict[str, Any]:
    """Everything about one split, ready for JSON.

    Args:
        labels: The label space.
        sentences: With gold.
        predicted: Label ids of each sentence.
        posteriors: [T, L] each, for the calibration.
        log_likelihood: Of all votes together, nats; is reported per token.

    Returns:
        precision, recall, f1 (micro); by_type; accuracy over tokens; and with posteriors nll, ece
        and reliability; with log_likelihood log_likelihood_per_token.
    """
    gold = gold_of(sentences)
    scores = entity_scores(labels, gold, predicted)
    tokens = sum(map(len, gold))
    micro = asdict(scores.pop("micro"))
    result: dict[str, Any] = {
        **{key: micro[key] for key in ("precision", "recall", "f1")},
        "accuracy": sum(int((g == p).sum()) for g, p in zip(gold, predicted, strict=True)) / tokens,
        "by_type": {name: asdict(score) for name, score in scores.items()},
    }
    if posteriors is not None:
        quality = calibration(gold, posteriors)
        result |= {"nll": quality.nll, "ece": quality.ece, "reliability": quality.bins}
    if log_likelihood is not None:
        result["log_likelihood_per_token"] = log_likelihood / tokens
    return result


def without_gold(
    labels: LabelSpace, predicted: Sequence[Ids], log_likelihood: float | None = None
) -> dict[str, Any]:
    """What there is to say about one split without gold labels, ready for JSON.

    Args:
        labels: The label space.
        predicted: Label ids of each sentence.
        log_likelihood: Of all votes together, nats; is reported per token.

    Returns:
        entities, the number of predicted ones by type; with log_likelihood
        log_likelihood_per_token.
    """
    spans = Counter(span.type for ids in predicted for span in labels.to_spans(ids))
    result: dict[str, Any] = {"entities": {name: spans[name] for name in labels.entity_types}}
    if log_likelihood is not None:
        result["log_likelihood_per_token"] = log_likelihood / sum(map(len, predicted))
    return result


def measure(
    labels: LabelSpace,
    sentences: Sequence[Sentence],
    predicted: Sequence[Ids],
    posteriors: Posteriors | None = None,
    log_likelihood: float | None = None,
) -> dict[str, Any]:
    """`evaluate`, or `without_gold` where a sentence has no gold labels."""
    if any(sentence.gold is None for sentence in sentences):
        return without_gold(labels, predicted, log_likelihood)
    return evaluate(labels, sentences, predicted, posteriors, log_likelihood)


def gold_of(sentences: Sequence[Sentence], split: str | None = None) -> list[Ids]:
    """The gold labels of all sentences.

    Args:
        sentences: At least one.
        split: Where they are from, for the message.

    Raises:
        NoGoldError: A sentence has none.
        ValueError: No sentence.
    """
    if not sentences:
        raise ValueError("sentences is empty: nothing to score")
    result = []
    for number, sentence in enumerate(sentences):
        if sentence.gold is None:
            where = "" if split is None else f"split {split!r}, "
            raise NoGoldError(f"{where}sentence {number} has no gold labels to score against")
        result.append(sentence.gold)
    return result


def _check_distributions(posteriors: Posteriors) -> None:
    for number, p in enumerate(posteriors):
        wrong = ~np.isfinite(p).all(1) | (p < -1e-6).any(1) | (np.abs(p.sum(1) - 1) > 1e-3)
        if wrong.any():
            row = p[int(wrong.argmax())].tolist()
            raise ValueError(
                f"posteriors, sentence {number}, token {int(wrong.argmax())}: expected "
                f"probabilities that sum to 1, got {row}"
            )


def _check_aligned(name: str, gold: Sequence[Ids], other: Sequence[npt.NDArray[Any]]) -> None:
    if len(gold) != len(other):
        raise ValueError(f"{name} must be of {len(gold)} sentences like gold, got {len(other)}")
    for number, (x, y) in enumerate(zip(gold, other, strict=True)):
        if len(x) != len(y):
            raise ValueError(
                f"{name}, sentence {number}: expected {len(x)} tokens like gold, got {len(y)}"
            )

"""Training a CHMM: generalised EM by gradient, as exact ascent of the log-likelihood.

Every update is an E step and a gradient M step at once: the gradient of log p(votes) is that of the
expected complete-data log-likelihood under the current posteriors. No gold label takes part in it;
gold labels of valid choose the epoch, where there are any (`training.selection`).

What it leaves out, on purpose: learning rate schedules, clipping, dropout, the encoder's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot.chmm import metrics
from oneshot.chmm.config import ChmmConfig, TrainingConfig
from oneshot.chmm.dataset import Priors, Sentence
from oneshot.chmm.device import device_of
from oneshot.chmm.label_model.batches import Examples, collate, shuffled
from oneshot.chmm.label_model.initialisation import initial_matrices, start
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.metrics import NoGoldError
from oneshot.chmm.model import CHMM, log_likelihood_per_token
from oneshot.training.errors import NonFiniteLossError
from oneshot.training.seeding import derive_seed

Row = dict[str, float]
Selection = Literal["f1", "likelihood"]

SCORE = {"f1": "valid/f1", "likelihood": "valid/log_likelihood"}  # the metric that selects
STILL_RISING = 0.01  # share of the whole gain that the last epoch of a finished training adds


@dataclass
class Progress:
    """Where a training stands, besides weights and moments.

    Attributes:
        epoch: Last finished epoch; 0 is the start.
        best_epoch: Epoch of `best`.
        best_score: Its score, by `training.selection`.
        best: The weights of that epoch.
    """

    epoch: int = -1
    best_epoch: int = 0
    best_score: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict)


def train_chmm(
    model: CHMM,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    valid: Examples,
    config: TrainingConfig,
    seed: int,
    *,
    progress: Progress | None = None,
    after_epoch: Callable[[Progress, Row], None] | None = None,
) -> Progress:
    """Trains an initialised CHMM, and leaves it with the weights of its best epoch.

    Args:
        model: Trained in place.
        optimizer: Of `make_optimizer`.
        train: Votes to learn from.
        valid: Votes that choose the epoch, by gold labels if there are any (`config.selection`).
        config: Epochs, batch size, selection.
        seed: Of the order of the sentences.
        progress: Continue there (model and optimizer have their weights and moments back).
        after_epoch: Called with the metrics of every epoch, also of 0, before training.

    Raises:
        NonFiniteLossError: The log-likelihood of a batch is NaN or infinite; nothing was updated
            by it.
        NoGoldError: Selection by "f1" without gold labels.
    """
    now = progress or Progress()
    selection = resolve_selection(config, valid.sentences)
    lengths = [len(x) for x in train.embeddings]

    def judge(row: Row) -> None:
        predictions = model.predict(valid, constrained=config.constrained)
        row["valid/log_likelihood"] = log_likelihood_per_token(predictions)
        if all(s.gold is not None for s in valid.sentences):
            gold = metrics.gold_of(valid.sentences)
            scores = metrics.entity_scores(model.labels, gold, predictions.labels)["micro"]
            row["valid/f1"] = scores.f1
            row["valid/precision"], row["valid/recall"] = scores.precision, scores.recall
        score = row[SCORE[selection]]
        if score >= now.best_score:
            now.best_epoch, now.best_score = now.epoch, score
            now.best = {name: x.clone() for name, x in model.state_dict().items()}
        if after_epoch is not None:
            after_epoch(now, row)

    if now.epoch < 0:
        now.epoch = 0
        judge({})
    while now.epoch < config.epochs and now.epoch - now.best_epoch <= config.tolerance:
        now.epoch += 1
        total = 0.0
        order = derive_seed(seed, "chmm order", now.epoch)
        for number, rows in enumerate(shuffled(lengths, config.batch_size, order), start=1):
            log_likelihood = model.log_likelihood(collate(train, rows).to(model.device)).sum()
            if not torch.isfinite(log_likelihood):
                raise NonFiniteLossError(
                    f"CHMM, epoch {now.epoch}, batch {number}: the log-likelihood is "
                    f"{log_likelihood.item()}; a smaller training.nn_lr may help"
                )
            optimizer.zero_grad()
            (-log_likelihood / len(rows)).backward()
            optimizer.step()
            total += log_likelihood.item()
        judge({"train/log_likelihood": total / train.tokens})
    model.load_state_dict(now.best)
    return now


def resolve_selection(config: TrainingConfig, valid: Sequence[Sentence]) -> Selection:
    """What chooses the epoch; "auto" is by F1 where the gold labels allow it.

    Raises:
        NoGoldError: "f1" was requested, and gold labels are missing or name no entity.
    """
    if config.selection == "likelihood":
        return "likelihood"
    lacking = why_not_gold(valid)
    if lacking is None:
        return "f1"
    if config.selection == "f1":
        raise NoGoldError(
            f"training.selection: f1 needs gold labels in split 'valid', but {lacking}; use "
            "likelihood or auto"
        )
    return "likelihood"


def why_not_gold(sentences: Sequence[Sentence]) -> str | None:
    """Why gold labels cannot choose an epoch; None where they can."""
    having = sum(s.gold is not None for s in sentences)
    if having < len(sentences):
        return f"{having} of its {len(sentences)} sentences have them"
    if not any((s.gold > 0).any() for s in sentences if s.gold is not None):
        return "they name no entity, so that every F1 is 0"
    return None


def still_rising(rows: Sequence[Mapping[str, Any]], selection: Selection) -> bool:
    """Whether the last epoch was the best and added more than 1 % of the gain of all epochs.

    Args:
        rows: Metrics of epoch 0 and all others.
        selection: Of `resolve_selection`.
    """
    scores = [row[SCORE[selection]] for row in rows]
    if len(scores) < 2 or scores[-1] <= max(scores[:-1]):
        return False
    return bool(scores[-1] - max(scores[:-1]) > STILL_RISING * (scores[-1] - scores[0]))


def make_model(
    config: ChmmConfig,
    labels: LabelSpace,
    sources: Sequence[str],
    examples: Mapping[str, Examples],
    priors: Priors | None,
    seed: int,
) -> CHMM:
    """A CHMM at its start: matrices from the votes of train and valid."""
    torch.manual_seed(derive_seed(seed, "networks"))
    train, valid = examples["train"], examples["valid"]
    model = CHMM(train.embeddings[0].shape[1], len(sources), labels, config.model)
    votes = [s.votes for x in (train, valid) for s in x.sentences]
    matrices = initial_matrices(labels, votes, sources, config.initial, priors)
    model.to(device_of(config.run.device))
    start(model, matrices, train, config.initial, config.training.batch_size, seed)
    return model


def make_optimizer(model: CHMM, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam; networks learn at `nn_lr`, start distribution and constant matrices at `hmm_lr`."""
    networks = [p for name, p in model.named_parameters() if ".network." in name]
    constants = [p for name, p in model.named_parameters() if ".network." not in name]
    groups = [
        {"params": networks, "lr": config.nn_lr},
        {"params": constants, "lr": config.hmm_lr},
    ]
    return torch.optim.Adam(
        [group for group in groups if group["params"]], weight_decay=config.weight_decay
    )

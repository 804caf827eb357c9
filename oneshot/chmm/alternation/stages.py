"""CHMM-ALT: a CHMM and a token classifier teach each other (Li et al. 2021, section 4.3).

Phase I:  CHMM on the sources; tagger on the CHMM's posteriors.
Phase II: again and again: the tagger's predictions become one more source (they replace those of
          the loop before); a new CHMM on all of them; the tagger goes on, from its best weights,
          on the new posteriors.
The result is the tagger of the best loop by entity F1 on valid (the paper's system; without gold
labels of valid, F1 against the labels of the CHMM that taught it), and beside it the best CHMM
(without gold labels: that of the last loop), which reads the sources and the tagger of the loop
before. Every stage (a CHMM or a tagger) is a function of the one before, the seed and its number,
and ends in a checkpoint: a killed run continues with the stage it was in, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from oneshot.chmm import metrics
from oneshot.chmm.alternation.state import Floats, State
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.dataset import TAGGER_SOURCE, Sentence, WeakDataset
from oneshot.chmm.device import device_of
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.label_model.training import (
    Row,
    make_model,
    make_optimizer,
    resolve_selection,
    still_rising,
    train_chmm,
    why_not_gold,
)
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.chmm.metrics import NoGoldError
from oneshot.chmm.model import CHMM, log_likelihood_per_token
from oneshot.chmm.prepare import Prepared
from oneshot.chmm.tagger.model import Tagger, hard_labels
from oneshot.chmm.tagger.source import with_tagger
from oneshot.chmm.tagger.training import one_hot, train_tagger
from oneshot.training.metrics import MetricsLog
from oneshot.training.seeding import derive_seed

PRIOR = {"paper": 0.9, "master": 0.7}  # precision and recall of the tagger as a source


def check_tagger(config: ChmmConfig, dataset: WeakDataset) -> None:
    """Raises now what would go wrong with the tagger after the first CHMM."""
    selects_by_gold(config, dataset.split("valid"))
    new_tagger(config, dataset.labels, config.run.seed)


def selects_by_gold(config: ChmmConfig, valid: Sequence[Sentence]) -> bool:
    """Whether gold labels choose the tagger's epoch (`tagger.selection`).

    Raises:
        NoGoldError: They should, and are missing or name no entity.
    """
    lacking = why_not_gold(valid)
    if config.tagger.selection == "gold" and lacking is not None:
        raise NoGoldError(
            f"tagger.selection: gold needs gold labels in split 'valid', but {lacking}; use weak "
            "or auto"
        )
    return config.tagger.selection != "weak" and lacking is None


def chmm_stage(
    state: State, prepared: Prepared, config: ChmmConfig, loop: int, log: MetricsLog
) -> tuple[CHMM, Row]:
    """A new CHMM, on the sources and, from loop 1 on, the tagger; sets targets and paths."""
    labels, sources = prepared.dataset.labels, prepared.dataset.sources
    examples, priors = prepared.examples, dict(prepared.dataset.priors or {})
    if state.predictions:
        examples = add_tagger(prepared, state.predictions, config)
        sources = (*sources, TAGGER_SOURCE)
        prior = PRIOR[config.alternate.variant]
        priors[TAGGER_SOURCE] = dict.fromkeys(labels.entity_types, (prior, prior))
    seed = derive_seed(config.run.seed, "alternate chmm", loop)
    model = make_model(config, labels, sources, examples, priors, seed)

    epochs: list[Row] = []

    def after_epoch(row: Row) -> None:
        epochs.append(row)
        _say(log, row)

    train_chmm(
        model,
        make_optimizer(model, config.training),
        examples["train"],
        examples["valid"],
        config.training,
        seed,
        after_epoch=lambda now, row: after_epoch({"epoch": now.epoch, **row}),
    )
    if still_rising(epochs, resolve_selection(config.training, examples["valid"].sentences)):
        log.say("  the last epoch was the best by far: a higher training.epochs would help")
    predictions = {
        split: model.predict(x, constrained=config.training.constrained)
        for split, x in examples.items()
    }
    state.targets = make_targets(
        predictions["train"].posteriors, predictions["train"].labels, config.alternate.targets
    )
    state.paths = predictions["valid"].labels
    row: Row = {}
    for split, predicted in predictions.items():
        row |= scores(f"chmm/{split}", labels, examples[split].sentences, predicted.labels)
        row[f"chmm/{split}_log_likelihood"] = log_likelihood_per_token(predicted)
    score = row.get("chmm/valid_f1", float(loop))
    if score > state.best_chmm_score:
        state.best_chmm_loop, state.best_chmm_score = loop, score
    return model, row


def tagger_stage(
    state: State, prepared: Prepared, config: ChmmConfig, loop: int, log: MetricsLog
) -> Row:
    """Trains the tagger on the targets; sets its predictions."""
    labels, examples = prepared.dataset.labels, prepared.examples
    seed = derive_seed(config.run.seed, "alternate tagger", loop)
    options = config.tagger
    epochs, lr = options.epochs, options.lr
    if state.tagger is None:
        state.tagger = new_tagger(config, labels, seed)
    else:
        epochs, lr = config.alternate.epochs, lr * config.alternate.lr_factor
    valid = examples["valid"].sentences
    expected = metrics.gold_of(valid) if selects_by_gold(config, valid) else state.paths

    def score(tagger: Tagger) -> float:
        predicted = hard_labels(labels, tagger.predict([s.tokens for s in valid]))
        return metrics.entity_scores(labels, expected, predicted)["micro"].f1

    history = train_tagger(
        state.tagger,
        [s.tokens for s in examples["train"].sentences],
        state.targets,
        options,
        seed,
        epochs=epochs,
        lr=lr,
        one_update_per_epoch=loop > 0 and config.alternate.one_update_per_epoch,
        score=score,
        progress=lambda row: _say(log, row),
    )
    if history.best_score > state.best_score:
        state.best_loop, state.best_score = loop, history.best_score
    row: Row = {"tagger/score": history.best_score, "tagger/epoch": history.best_epoch}
    for split, x in examples.items():
        state.predictions[split] = state.tagger.predict([s.tokens for s in x.sentences])
        predicted = hard_labels(labels, state.predictions[split])
        row |= scores(f"tagger/{split}", labels, x.sentences, predicted)
    return row


def new_tagger(config: ChmmConfig, labels: LabelSpace, seed: int) -> Tagger:
    """A tagger with a random head, and frozen layers as the config says."""
    torch.manual_seed(derive_seed(seed, "head"))
    source = config.tagger.source or config.encoder.source
    return Tagger.load(source, labels, config.tagger, device_of(config.run.device))


def add_tagger(
    prepared: Prepared, predictions: Mapping[str, Floats], config: ChmmConfig
) -> dict[str, Examples]:
    """All splits with the tagger's predictions as the last source."""
    soft = config.alternate.variant == "paper"
    return {
        split: with_tagger(x, predictions[split], prepared.dataset.labels, config.data, soft)
        for split, x in prepared.examples.items()
    }


def make_targets(posteriors: Floats, paths: Sequence[Ids], kind: str) -> Floats:
    """What the tagger learns (see `AlternateConfig.targets`)."""
    if kind == "posterior":
        return posteriors
    n_labels = posteriors[0].shape[1]
    if kind == "viterbi":
        return one_hot(paths, n_labels)
    peaks = one_hot([p.argmax(1) for p in posteriors], n_labels)
    return [0.5 * p + 0.5 * peak for p, peak in zip(posteriors, peaks, strict=True)]


def scores(
    name: str, labels: LabelSpace, sentences: Sequence[Sentence], predicted: Sequence[Ids]
) -> Row:
    """Entity F1, precision, recall as `<name>_f1` and so on; nothing without gold labels."""
    if any(s.gold is None for s in sentences):
        return {}
    score = metrics.entity_scores(labels, metrics.gold_of(sentences), predicted)["micro"]
    return {
        f"{name}_f1": score.f1,
        f"{name}_precision": score.precision,
        f"{name}_recall": score.recall,
    }


def _say(log: MetricsLog, row: Mapping[str, float]) -> None:
    """One line for an epoch inside a stage."""
    values = [f"{name} {value:.4f}" for name, value in row.items() if name != "epoch"]
    log.say("  ".join([f"  epoch {row['epoch']:.0f}", *values]))

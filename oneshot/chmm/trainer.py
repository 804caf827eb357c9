"""`oneshot chmm fit`: a CHMM from a folder of weak labels, in a run folder.

<output>/config.yaml        the resolved config
<output>/metrics.jsonl      one line per epoch; tensorboard/ and curves.png show the same
<output>/checkpoints/       what a killed run resumes from
<output>/chmm/              the trained CHMM, for `oneshot chmm label`
<output>/results.json       figures of every split
<output>/sources.md         what each source is worth; sources.json and sources.png likewise
<output>/transitions.png    mean transition matrix
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot.chmm import checkpoint, metrics
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.label_model.training import (
    Progress,
    Row,
    Selection,
    make_model,
    make_optimizer,
    resolve_selection,
    still_rising,
    train_chmm,
)
from oneshot.chmm.model import CHMM, Predictions
from oneshot.chmm.prepare import Prepared, loading_bars, prepare
from oneshot.chmm.reports import sources
from oneshot.chmm.reports.plots import plot_curves, plot_sources, plot_transitions
from oneshot.training import checkpoints
from oneshot.training.folder import open_run, write_config
from oneshot.training.jsonl import read_jsonl
from oneshot.training.metrics import MetricsLog

# A resumed run may be longer or speak less: that changes no number of it.
MAY_CHANGE = {"run.progress", "training.epochs"}
SHOWN = {
    "train/log_likelihood": ("train LL", ".4f"),
    "valid/log_likelihood": ("valid LL", ".4f"),
    "valid/f1": ("valid F1", ".4f"),
    "chmm/test_f1": ("CHMM test F1", ".4f"),
    "tagger/test_f1": ("tagger test F1", ".4f"),
}


@dataclass(frozen=True)
class FitResult:
    """What a finished run leaves.

    Attributes:
        output: Its folder; the CHMM is in `output / "chmm"`.
        model: The CHMM of the best epoch.
        history: The rows of metrics.jsonl; step 0 is the start.
        best_epoch: The epoch that was kept.
        figures: Of every split: `metrics.evaluate`, or `metrics.without_gold`.
        selection: What chose the epoch.
        unfinished: Whether the last epoch was the best by far, so that more would help.
        sources: `sources.analyse` on train.
        notes: What was assumed about the data.
    """

    output: Path
    model: CHMM
    history: list[dict[str, Any]]
    best_epoch: int
    figures: dict[str, dict[str, Any]]
    selection: Selection
    unfinished: bool
    sources: sources.SourceTable
    notes: tuple[str, ...]


def fit(config: ChmmConfig, *, resume: bool = False, prepared: Prepared | None = None) -> FitResult:
    """Trains a CHMM as the config says.

    Args:
        config: The run; `tagger` and `alternate` play no part.
        resume: Continue the run in `config.run.output` from its last epoch.
        prepared: Data and embeddings, if they are there already.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, or a resumed run with another config or other data.
        NonFiniteLossError: The log-likelihood became NaN or infinite.
    """
    with loading_bars(config.run.progress):
        return _fit(config, resume, prepared)


def _fit(config: ChmmConfig, resume: bool, prepared: Prepared | None) -> FitResult:
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    folder, newest = open_run(Path(config.run.output), config, resume, MAY_CHANGE)
    prepared = prepared or prepare(config)
    dataset, examples = prepared.dataset, prepared.examples
    digest = dataset.digest()
    seed = config.run.seed
    model = make_model(config, dataset.labels, dataset.sources, examples, dataset.priors, seed)
    optimizer = make_optimizer(model, config.training)
    progress = None
    if newest is not None:
        progress = checkpoint.load_training(newest, model, optimizer, digest)
    write_config(folder, config)  # not before everything that can be wrong with it has been seen
    done = progress.epoch if progress else None
    log = open_log(folder, config.training.epochs, done, config.run.progress)
    for note in dataset.notes:
        log.say(note)

    def after_epoch(now: Progress, row: Row) -> None:
        log.step(now.epoch, row)
        log.sync()
        checkpoint.save_training(folder / "checkpoints", model, optimizer, now, digest)
        log.plot()

    try:
        progress = train_chmm(
            model,
            optimizer,
            examples["train"],
            examples["valid"],
            config.training,
            seed,
            progress=progress,
            after_epoch=after_epoch,
        )
    finally:
        log.close()
    # A kill between the last checkpoint and the removal of the one before leaves nothing to train.
    checkpoints.prune(folder / "checkpoints", 1)
    checkpoint.save_model(folder / "chmm", model, dataset, config)
    history = read_jsonl(folder / "metrics.jsonl")
    plot_curves(history, folder / "curves.png")
    plot_transitions(model, examples["train"], folder / "transitions.png")
    predictions = {
        split: model.predict(x, constrained=config.training.constrained)
        for split, x in examples.items()
    }
    figures = evaluate(model, examples, predictions)
    (folder / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table = sources.analyse(
        dataset.labels, dataset.sources, dataset.split("train"), predictions["train"].labels
    )
    (folder / "sources.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    (folder / "sources.md").write_text(sources.markdown(table), encoding="utf-8")
    plot_sources(table, folder / "sources.png")
    selection = resolve_selection(config.training, dataset.split("valid"))
    unfinished = still_rising(history, selection)
    return FitResult(
        folder, model, history, progress.best_epoch, figures, selection, unfinished, table,
        dataset.notes,
    )  # fmt: skip


def evaluate(
    model: CHMM, examples: Mapping[str, Examples], predictions: Mapping[str, Predictions]
) -> dict[str, dict[str, Any]]:
    """Figures of every split: `metrics.evaluate`, or `metrics.without_gold`."""
    figures = {}
    for split, x in examples.items():
        found = predictions[split]
        log_likelihood = float(found.log_likelihood.sum())
        if all(s.gold is not None for s in x.sentences):
            figures[split] = metrics.evaluate(
                model.labels, x.sentences, found.labels, found.posteriors, log_likelihood
            )
        else:
            figures[split] = metrics.without_gold(model.labels, found.labels, log_likelihood)
    return figures


def open_log(
    folder: Path, total_steps: int, resumed_from: int | None, progress: bool
) -> MetricsLog:
    """The log of a run, with the figures above in the terminal and curves.png beside it."""
    return MetricsLog(
        folder,
        total_steps,
        resumed_from,
        progress,
        shown=SHOWN,
        milestones=("valid/f1", "tagger/test_f1", "chmm/test_f1"),
        plot=plot_curves,
    )

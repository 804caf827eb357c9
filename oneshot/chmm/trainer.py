"""The two kinds of run: `fit`, a CHMM on its sources, and `alternate`, CHMM and tagger in turn.

<output>/config.yaml        the resolved config
<output>/metrics.jsonl      one line per epoch (`alternate`: per stage); tensorboard/ and curves.png
                            show the same
<output>/checkpoints/       what a killed run resumes from
<output>/chmm/              the trained CHMM, for `oneshot chmm label`
<output>/tagger/            the trained tagger (`alternate`)
<output>/results.json       metrics of every split (`fit`, as is what follows)
<output>/sources.md         what each source is worth; sources.json and sources.png likewise
<output>/transitions.png    mean transition matrix
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot.chmm import checkpoint, metrics
from oneshot.chmm.alternation import stages
from oneshot.chmm.alternation.state import State, load, publish, save
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.device import device_of
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
from oneshot.chmm.model import CHMM
from oneshot.chmm.prepare import Prepared, loading_bars, prepare, read_checked
from oneshot.chmm.reports import sources
from oneshot.chmm.reports.plots import plot_curves, plot_sources, plot_transitions
from oneshot.training import checkpoints
from oneshot.training.folder import open_run, write_config
from oneshot.training.grid import write_json
from oneshot.training.jsonl import read_jsonl
from oneshot.training.metrics import MetricsLog

# A resumed run may be longer or show less: that changes no number of it.
FIT_MAY_CHANGE = {"run.progress", "training.epochs"}
ALTERNATE_MAY_CHANGE = {"run.progress", "alternate.loops"}
SHOWN = {
    "train/log_likelihood": ("train LL", ".4f"),
    "valid/log_likelihood": ("valid LL", ".4f"),
    "valid/f1": ("valid F1", ".4f"),
    "chmm/test_f1": ("CHMM test F1", ".4f"),
    "tagger/test_f1": ("tagger test F1", ".4f"),
}


@dataclass(frozen=True)
class FitResult:
    """What a finished `fit` leaves.

    Attributes:
        output: Its folder; the CHMM is in `output / "chmm"`.
        model: The CHMM of the best epoch.
        history: The rows of metrics.jsonl; step 0 is the start.
        best_epoch: The epoch whose weights the model has.
        metrics: `metrics.measure` of every split.
        selection: What chose the epoch.
        unfinished: Whether the last epoch was the best by far, so that more would help.
        sources: `sources.analyse` on train.
        notes: What was assumed about the data.
    """

    output: Path
    model: CHMM
    history: list[dict[str, Any]]
    best_epoch: int
    metrics: dict[str, dict[str, Any]]
    selection: Selection
    unfinished: bool
    sources: sources.SourceTable
    notes: tuple[str, ...]


@dataclass(frozen=True)
class AlternateResult:
    """What a finished `alternate` leaves.

    Attributes:
        output: Its folder, with `tagger`, a model folder, and `chmm`, a CHMM folder.
        history: The rows of metrics.jsonl, one per stage.
        tagger: The row of the final tagger.
        chmm: The row of the best CHMM.
        notes: What was assumed about the data.
    """

    output: Path
    history: list[dict[str, Any]]
    tagger: dict[str, Any]
    chmm: dict[str, Any]
    notes: tuple[str, ...]


def fit(config: ChmmConfig, *, resume: bool = False, prepared: Prepared | None = None) -> FitResult:
    """Trains a CHMM as the config says.

    Args:
        config: The run; `tagger` and `alternate` play no part.
        resume: Continue the run in `config.run.output` from its last epoch.
        prepared: Data and embeddings, if they have been computed already.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, a device that is not available, or a resumed run with another config
            or other data.
        NonFiniteLossError: The log-likelihood became NaN or infinite.
    """
    with loading_bars(config.run.progress):
        return _fit(config, resume, prepared)


def _fit(config: ChmmConfig, resume: bool, prepared: Prepared | None) -> FitResult:
    folder, newest = _open(config, resume, FIT_MAY_CHANGE)
    prepared = prepared or prepare(config)
    dataset, examples = prepared.dataset, prepared.examples
    digest = dataset.digest()
    seed = config.run.seed
    model = make_model(config, dataset.labels, dataset.sources, examples, dataset.priors, seed)
    optimizer = make_optimizer(model, config.training)
    progress = None
    if newest is not None:
        progress = checkpoint.load_training(newest, model, optimizer, digest)
    log = _start(config, prepared, config.training.epochs, progress.epoch if progress else None)

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
    results = {
        split: metrics.measure(
            model.labels, x.sentences, p.labels, p.posteriors, float(p.log_likelihood.sum())
        )
        for (split, x), p in zip(examples.items(), predictions.values(), strict=True)
    }
    write_json(folder / "results.json", results)
    table = sources.analyse(
        dataset.labels, dataset.sources, dataset.split("train"), predictions["train"].labels
    )
    write_json(folder / "sources.json", table)
    (folder / "sources.md").write_text(sources.markdown(table), encoding="utf-8")
    plot_sources(table, folder / "sources.png")
    selection = resolve_selection(config.training, dataset.split("valid"))
    unfinished = still_rising(history, selection)
    return FitResult(
        folder, model, history, progress.best_epoch, results, selection, unfinished, table,
        dataset.notes,
    )  # fmt: skip


def alternate(
    config: ChmmConfig, *, resume: bool = False, prepared: Prepared | None = None
) -> AlternateResult:
    """Runs CHMM-ALT as the config says (see `alternation.stages`).

    Args:
        config: The run.
        resume: Continue the run in `config.run.output` with the stage it was in.
        prepared: Data and embeddings, if they have been computed already.

    Raises:
        FileExistsError: The output folder has files in it and `resume` is False.
        ValueError: Bad data, a device that is not available, or a resumed run with another config
            or other data.
        NonFiniteLossError: A loss became NaN or infinite.
    """
    with loading_bars(config.run.progress):
        return _alternate(config, resume, prepared)


def _alternate(config: ChmmConfig, resume: bool, prepared: Prepared | None) -> AlternateResult:
    folder, newest = _open(config, resume, ALTERNATE_MAY_CHANGE)
    if prepared is None:
        dataset = read_checked(config)
        stages.check_tagger(config, dataset)
        prepared = prepare(config, dataset)
    digest = prepared.dataset.digest()
    state = State()
    if newest is not None:
        state = load(newest, prepared, config, digest)
    total = 2 * (config.alternate.loops + 1)
    log = _start(config, prepared, total, state.stage or None)
    try:
        while state.stage < total:
            state.stage += 1
            loop, is_tagger = divmod(state.stage - 1, 2)
            log.say(f"loop {loop}: {'tagger' if is_tagger else 'CHMM'}")
            chmm = None
            if is_tagger:
                row = stages.tagger_stage(state, prepared, config, loop, log)
            else:
                chmm, row = stages.chmm_stage(state, prepared, config, loop, log)
            log.step(state.stage, row)
            log.sync()
            save(folder, state, chmm, config, prepared, digest)
            log.plot()
    finally:
        log.close()
    publish(folder)
    history = read_jsonl(folder / "metrics.jsonl")
    plot_curves(history, folder / "curves.png")
    best_tagger, best_chmm = history[2 * state.best_loop + 1], history[2 * state.best_chmm_loop]
    return AlternateResult(folder, history, best_tagger, best_chmm, prepared.dataset.notes)


def _open(
    config: ChmmConfig, resume: bool, may_change: Collection[str]
) -> tuple[Path, Path | None]:
    """Checks the device and the output folder; returns the folder and the checkpoint to resume."""
    device_of(config.run.device)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    return open_run(Path(config.run.output), config, resume, may_change)


def _start(
    config: ChmmConfig, prepared: Prepared, total_steps: int, resumed_from: int | None
) -> MetricsLog:
    """Writes the config, once everything that can be wrong with it is checked; opens the log."""
    folder = Path(config.run.output)
    write_config(folder, config)
    log = MetricsLog(
        folder,
        total_steps,
        resumed_from,
        config.run.progress,
        shown=SHOWN,
        milestones=("valid/f1", "tagger/test_f1", "chmm/test_f1"),
        plot=plot_curves,
    )
    for note in prepared.dataset.notes:
        log.say(note)
    return log

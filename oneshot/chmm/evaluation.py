"""`oneshot chmm eval`: methods side by side on the same data, seeds and spread included.

<output>/<data set>/<method>-seed<k>.json   metrics of one cell (see `training.grid`)
<output>/<data set>/alt-seed<k>/            the run folder of a CHMM-ALT cell
<output>/results.md, results.json, results.png

A cell that fails is a line of the table that says why; the next evaluation tries it again.
"""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot.chmm import metrics
from oneshot.chmm.alternation.stages import new_tagger
from oneshot.chmm.baselines import LabelModel
from oneshot.chmm.baselines.dawid_skene import DawidSkene
from oneshot.chmm.baselines.hmm import ClassicalHMM
from oneshot.chmm.baselines.skweak import Skweak
from oneshot.chmm.baselines.snorkel import Snorkel
from oneshot.chmm.baselines.source import BestSource
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.label_model.training import make_model, make_optimizer, train_chmm
from oneshot.chmm.labels import Ids
from oneshot.chmm.metrics import NoGoldError
from oneshot.chmm.prepare import Prepared, observe, prepare
from oneshot.chmm.reports.table import write_report
from oneshot.chmm.tagger.model import hard_labels
from oneshot.chmm.tagger.training import one_hot, train_tagger
from oneshot.chmm.trainer import alternate
from oneshot.training.config import to_dict
from oneshot.training.grid import Cell, Outcome, run_grid

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A data set with a seed, on which a method is measured."""

    config: ChmmConfig
    prepared: Prepared

    def metrics(self, predict: Callable[[str], tuple[Sequence[Ids], Any, float | None]]) -> Metrics:
        """Metrics of valid and test: scores, or without gold labels what there is to say.

        Args:
            predict: Labels, posteriors and log-likelihood of a split.
        """
        result: Metrics = {}
        dataset = self.prepared.dataset
        for split in [name for name in ("valid", "test") if name in dataset.splits]:
            labels, posteriors, log_likelihood = predict(split)
            scores = metrics.measure(
                dataset.labels, dataset.split(split), labels, posteriors, log_likelihood
            )
            if "entities" in scores:
                scores["entities"] = sum(scores["entities"].values())
            result |= {f"{split}_{name}": value for name, value in scores.items()}
        return result


def evaluate(
    configs: Sequence[ChmmConfig],
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    say: Callable[[str], None],
) -> list[Metrics]:
    """Fills the table.

    Args:
        configs: One per data set; `run.seed` and `run.output` play no part.
        methods: Names in `METHODS`.
        seeds: Methods that draw nothing are run once.
        output: Folder of the results.
        say: Receives what is being done.

    Returns:
        The rows of results.json: data set, method, seed, metrics; of a cell without metrics
        "missing", which says what it lacks, and "failed", if that is more than a package or gold
        labels.

    Raises:
        ValueError: An unknown method, or a cell in `output` that another config has made.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods or not seeds:
        raise ValueError(
            f"methods must be some of {', '.join(METHODS)}, with seeds; got {list(methods)}, "
            f"{list(seeds)}"
        )
    rows: list[Metrics] = []
    for config in configs:
        cells = _cells(config, methods, seeds, output, say)
        outcomes = run_grid([cell for *_, cell in cells], output, say=say, keep_going=(Exception,))
        for (method, seed, _), outcome in zip(cells, outcomes, strict=True):
            key = {"dataset": Path(config.data.path).name, "method": method, "seed": seed}
            rows += [{**key, **row} for row in _rows(outcome, method, say)]
        write_report(rows, output)
    return rows


def _cells(
    config: ChmmConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    say: Callable[[str], None],
) -> list[tuple[str, int, Cell]]:
    """Method, seed and cell of all cells of a data set; the first that runs prepares the data."""
    name = Path(config.data.path).name

    @functools.cache
    def prepared() -> Prepared:
        result = prepare(config)
        for note in result.dataset.notes:
            say(f"{name}: {note}")
        return result

    def measure(method: str, config: ChmmConfig) -> dict[str, Metrics]:
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        return METHODS[method](Trial(config, prepared()))

    cells = []
    for method in methods:
        for seed in seeds[: None if method in SEEDED else 1]:
            cell = f"{name}/{method}-seed{seed}"
            run = dataclasses.replace(config.run, seed=seed, output=str(output / cell))
            own = dataclasses.replace(config, run=run)
            decisive = {**to_dict(own), "run": {"seed": seed}}  # where and how fast plays no part
            run_cell = functools.partial(measure, method, own)
            cells.append((method, seed, Cell(cell, run_cell, decisive)))
    return cells


def _rows(outcome: Outcome, method: str, say: Callable[[str], None]) -> list[Metrics]:
    """The rows of a cell (CHMM-ALT has three), or one that says what it lacks."""
    error = outcome.error
    if error is None:
        times = {"seconds": outcome.seconds, "cpu_seconds": outcome.cpu_seconds}
        return [{**times, "row": row, **values} for row, values in outcome.result.items()]
    lacking = {"row": method, "seconds": 0.0, "missing": str(error)}
    if not isinstance(error, ImportError | NoGoldError):
        traceback.print_exception(error)
        lacking |= {"missing": f"{type(error).__name__}: {error}", "failed": True}
    say(f"{outcome.cell.name}: {lacking['missing']}")
    return [lacking]


def _baseline(
    title: str, make: Callable[[Trial], LabelModel], fit_on: str = "train"
) -> Callable[[Trial], dict[str, Metrics]]:
    def run(trial: Trial) -> dict[str, Metrics]:
        dataset = trial.prepared.dataset
        model = make(trial).fit(dataset.split(fit_on))

        def predict(split: str) -> tuple[Sequence[Ids], Any, None]:
            sentences = dataset.split(split)
            soft = model.posteriors(sentences) if hasattr(model, "posteriors") else None
            return model.predict(sentences), soft, None

        return {title: trial.metrics(predict)}

    return run


def _chmm(title: str, **changes: Any) -> Callable[[Trial], dict[str, Metrics]]:
    """A CHMM with some fields of its config changed: model=..., initial=..., rule=..."""

    def run(trial: Trial) -> dict[str, Metrics]:
        dataset, examples = trial.prepared.dataset, dict(trial.prepared.examples)
        config = trial.config
        if "rule" in changes:
            data = dataclasses.replace(config.data, rule=changes["rule"])
            for split, x in examples.items():
                observed = observe(x.sentences, len(dataset.labels), data)
                examples[split] = dataclasses.replace(x, observations=observed)
        for part in ("model", "initial"):
            section = dataclasses.replace(getattr(config, part), **changes.get(part, {}))
            config = dataclasses.replace(config, **{part: section})
        seed = config.run.seed
        model = make_model(config, dataset.labels, dataset.sources, examples, dataset.priors, seed)
        optimizer = make_optimizer(model, config.training)
        train_chmm(model, optimizer, examples["train"], examples["valid"], config.training, seed)

        def predict(split: str) -> tuple[Sequence[Ids], Any, float]:
            predicted = model.predict(examples[split], constrained=config.training.constrained)
            return predicted.labels, predicted.posteriors, float(predicted.log_likelihood.sum())

        return {title: trial.metrics(predict)}

    return run


def _tagger(
    title: str, targets: Callable[[Trial], Sequence[Ids]]
) -> Callable[[Trial], dict[str, Metrics]]:
    """A tagger on hard labels of train, with the epochs of phase I.

    Without gold labels of valid nothing but the weak ones could choose an epoch: it is the last.
    """

    def run(trial: Trial) -> dict[str, Metrics]:
        dataset, config = trial.prepared.dataset, trial.config
        labels, valid = dataset.labels, dataset.split("valid")
        expected = targets(trial)
        tagger = new_tagger(config, labels, config.run.seed)

        def predict(split: str) -> tuple[Sequence[Ids], Any, None]:
            soft = tagger.predict([s.tokens for s in dataset.split(split)])
            return hard_labels(labels, soft), soft, None

        def score(_: Any) -> float:
            gold = metrics.gold_of(valid)
            return metrics.entity_scores(labels, gold, predict("valid")[0])["micro"].f1

        train_tagger(
            tagger,
            [s.tokens for s in dataset.split("train")],
            one_hot(expected, len(labels)),
            config.tagger,
            config.run.seed,
            epochs=config.tagger.epochs,
            lr=config.tagger.lr,
            score=score if dataset.has_gold("valid") else None,
        )
        return {title: trial.metrics(predict)}

    return run


def _alternate(trial: Trial) -> dict[str, Metrics]:
    """CHMM-ALT: the tagger of phase I, the final tagger, and the best CHMM with its tagger."""
    result = alternate(trial.config, resume=True, prepared=trial.prepared)
    rows = {
        "CHMM -> tagger (phase I)": ("tagger", result.history[1]),
        "CHMM-ALT: tagger": ("tagger", result.tagger),
        "CHMM-ALT: CHMM": ("chmm", result.chmm),
    }
    return {
        title: {name.removeprefix(f"{kind}/"): value for name, value in row.items()}
        for title, (kind, row) in rows.items()
    }


METHODS: Mapping[str, Callable[[Trial], dict[str, Metrics]]] = {
    "source": _baseline(
        "best single source",
        lambda t: BestSource(t.prepared.dataset.labels, t.prepared.dataset.sources),
        "valid",
    ),
    "vote": _baseline(
        "majority vote, O counts", lambda t: MajorityVote(t.prepared.dataset.labels, "plain")
    ),
    "vote-bio": _baseline(
        "majority vote, BIO", lambda t: MajorityVote(t.prepared.dataset.labels, "bio")
    ),
    "vote-io": _baseline(
        "majority vote, IO (WRENCH)", lambda t: MajorityVote(t.prepared.dataset.labels, "io")
    ),
    "dawid-skene": _baseline("Dawid-Skene", lambda t: DawidSkene(t.prepared.dataset.labels)),
    "snorkel": _baseline(
        "Snorkel", lambda t: Snorkel(t.prepared.dataset.labels, seed=t.config.run.seed)
    ),
    "skweak": _baseline(
        "skweak HMM", lambda t: Skweak(t.prepared.dataset.labels, t.prepared.dataset.sources)
    ),
    "hmm": _baseline(
        "HMM, EM, BIO",
        lambda t: ClassicalHMM(t.prepared.dataset.labels, rule=t.config.data.rule),
    ),
    "hmm-io": _baseline(
        "HMM, EM, IO",
        lambda t: ClassicalHMM(t.prepared.dataset.labels, rule=t.config.data.rule, scheme="io"),
    ),
    "hmm-gradient": _chmm(
        "HMM by gradient", model={"transition_network": 0.0, "emission_network": 0.0}
    ),
    "chmm-iid": _chmm("CHMM, independent labels", model={"markov": False}),
    "chmm-transitions": _chmm("CHMM, constant emissions", model={"emission_network": 0.0}),
    "chmm-emissions": _chmm("CHMM, constant transitions", model={"transition_network": 0.0}),
    "chmm-sentence": _chmm("CHMM, emissions by sentence", model={"emission_context": "sentence"}),
    "chmm-pretrain": _chmm("CHMM, pretrained start", initial={"method": "pretrain"}),
    "chmm-vote-o": _chmm("CHMM, silence is O", rule="vote_o"),
    "chmm-abstain": _chmm("CHMM, silence abstains", rule="abstain"),
    "chmm": _chmm("CHMM"),
    "vote-tagger": _tagger(
        "vote -> tagger",
        lambda t: MajorityVote(t.prepared.dataset.labels, "io").predict(
            t.prepared.dataset.split("train")
        ),
    ),
    "alt": _alternate,
    "supervised": _tagger(
        "tagger on gold labels",
        lambda t: metrics.gold_of(t.prepared.dataset.split("train"), "train"),
    ),
}
SEEDED = ("snorkel", "hmm-gradient", *(m for m in METHODS if m.startswith("chmm")),
          "vote-tagger", "alt", "supervised")  # fmt: skip

"""`oneshot chmm eval`: methods side by side on the same data, seeds and spread included.

<output>/<data set>/<method>-seed<k>.json   figures of one cell: written once, then reused
<output>/<data set>/alt-seed<k>/            the run folder of a CHMM-ALT cell
<output>/results.md, results.json, results.png

A killed evaluation continues with the cell it was in when it is started again. A cell that fails is
a line of the table that says why, and is tried again when the evaluation is started again.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot.chmm import metrics
from oneshot.chmm.alternation.alternate import alternate, new_tagger
from oneshot.chmm.baselines import LabelModel
from oneshot.chmm.baselines.dawid_skene import DawidSkene
from oneshot.chmm.baselines.hmm import ClassicalHMM
from oneshot.chmm.baselines.skweak import Skweak
from oneshot.chmm.baselines.snorkel import Snorkel
from oneshot.chmm.baselines.source import BestSource
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.errors import NoGoldError
from oneshot.chmm.label_model.training import make_model, make_optimizer, train_chmm
from oneshot.chmm.labels import Ids
from oneshot.chmm.prepare import Prepared, observe, prepare
from oneshot.chmm.reports.table import write_report
from oneshot.chmm.tagger.tagger import hard_labels, one_hot, train_tagger
from oneshot.training.config import to_dict

Figures = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed."""

    config: ChmmConfig
    prepared: Prepared
    folder: Path

    def figures(self, predict: Callable[[str], tuple[Sequence[Ids], Any, float | None]]) -> Figures:
        """Figures on valid and test: scores, or without gold labels what there is to say.

        Args:
            predict: Labels, posteriors and log-likelihood of a split.
        """
        result: Figures = {}
        dataset = self.prepared.dataset
        for split in [name for name in ("valid", "test") if name in dataset.splits]:
            labels, posteriors, log_likelihood = predict(split)
            if dataset.has_gold(split):
                sentences = dataset.split(split)
                told = metrics.evaluate(
                    dataset.labels, sentences, labels, posteriors, log_likelihood
                )
            else:
                told = metrics.without_gold(dataset.labels, labels, log_likelihood)
                told["entities"] = sum(told["entities"].values())
            result |= {f"{split}_{name}": value for name, value in told.items()}
        return result


def evaluate(
    configs: Sequence[ChmmConfig],
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    say: Callable[[str], None],
) -> list[Figures]:
    """Fills the table.

    Args:
        configs: One for each data set; `run.seed` and `run.output` play no part.
        methods: Names in `METHODS`.
        seeds: Methods that draw nothing are run once.
        output: Folder of the results.
        say: Is told what is being done.

    Returns:
        The rows of results.json: data set, method, seed, figures; of a cell without figures
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
    rows: list[Figures] = []
    for config in configs:
        name = Path(config.data.path).name
        prepared: Prepared | None = None
        for method in methods:
            for seed in seeds[: None if method in SEEDED else 1]:
                file = output / name / f"{method}-seed{seed}.json"
                run = dataclasses.replace(config.run, seed=seed, output=str(file.with_suffix("")))
                cell_config = dataclasses.replace(config, run=run)
                if not file.exists():
                    if prepared is None:
                        prepared = prepare(config)
                        for note in prepared.dataset.notes:
                            say(f"{name}: {note}")
                    say(f"{name}: {method}, seed {seed}")
                    cell = Cell(cell_config, prepared, file.with_suffix(""))
                    lacking = _fill(file, method, cell)
                    if lacking is not None:
                        say(f"{name}: {method}, seed {seed}: {lacking['missing']}")
                        rows.append({"dataset": name, "method": method, "seed": seed, **lacking})
                        continue
                rows += _read(file, name, method, cell_config)
        write_report(rows, output)
    return rows


def _fill(file: Path, method: str, cell: Cell) -> Figures | None:
    """Writes the file of a cell; if it has no figures, writes nothing and returns why."""
    if cell.config.run.threads is not None:
        torch.set_num_threads(cell.config.run.threads)
    start, cpu = time.perf_counter(), time.process_time()
    try:
        found = METHODS[method](cell)
    except (ImportError, NoGoldError) as error:
        return {"row": method, "seconds": 0.0, "missing": str(error)}
    except Exception as error:  # whatever it is, it costs this cell alone
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        return {"row": method, "seconds": 0.0, "missing": text, "failed": True}
    told = {
        "config": to_dict(cell.config),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "rows": found,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".writing")
    temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
    return None


def _read(file: Path, dataset: str, method: str, config: ChmmConfig) -> list[Figures]:
    told = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(to_dict(config)))
    for values in (told["config"], now):  # where and how fast changes no number
        values["run"] = {"seed": values["run"]["seed"]}
    if told["config"] != now:
        raise ValueError(f"{file} was made with another config; name another --output")
    shared = {"dataset": dataset, "method": method, "seed": config.run.seed}
    shared |= {"seconds": told["seconds"], "cpu_seconds": told["cpu_seconds"]}
    return [{**shared, "row": row, **figures} for row, figures in told["rows"].items()]


def _baseline(
    title: str, make: Callable[[Cell], LabelModel], fit_on: str = "train"
) -> Callable[[Cell], dict[str, Figures]]:
    def run(cell: Cell) -> dict[str, Figures]:
        dataset = cell.prepared.dataset
        model = make(cell).fit(dataset.split(fit_on))

        def predict(split: str) -> tuple[Sequence[Ids], Any, None]:
            sentences = dataset.split(split)
            soft = model.posteriors(sentences) if hasattr(model, "posteriors") else None
            return model.predict(sentences), soft, None

        return {title: cell.figures(predict)}

    return run


def _chmm(title: str, **changes: Any) -> Callable[[Cell], dict[str, Figures]]:
    """A CHMM with some fields of its config changed: model=..., initial=..., rule=..."""

    def run(cell: Cell) -> dict[str, Figures]:
        dataset, examples = cell.prepared.dataset, dict(cell.prepared.examples)
        config = cell.config
        if "rule" in changes:
            data = dataclasses.replace(config.data, rule=changes["rule"])
            for split, x in examples.items():
                observed = observe(x.sentences, len(dataset.labels), data)
                examples[split] = dataclasses.replace(x, observations=observed)
        for part in ("model", "initial"):
            told = {**dataclasses.asdict(getattr(config, part)), **changes.get(part, {})}
            config = dataclasses.replace(config, **{part: type(getattr(config, part))(**told)})
        seed = config.run.seed
        model = make_model(config, dataset.labels, dataset.sources, examples, dataset.priors, seed)
        optimizer = make_optimizer(model, config.training)
        train_chmm(model, optimizer, examples["train"], examples["valid"], config.training, seed)

        def predict(split: str) -> tuple[Sequence[Ids], Any, float]:
            found = model.predict(examples[split], constrained=config.training.constrained)
            return found.labels, found.posteriors, float(found.log_likelihood.sum())

        return {title: cell.figures(predict)}

    return run


def _tagger(
    title: str, targets: Callable[[Cell], Sequence[Ids]]
) -> Callable[[Cell], dict[str, Figures]]:
    """A tagger on hard labels of train, with the epochs of phase I.

    Without gold labels of valid nothing but the weak ones could choose an epoch: it is the last.
    """

    def run(cell: Cell) -> dict[str, Figures]:
        dataset, config = cell.prepared.dataset, cell.config
        labels, valid = dataset.labels, dataset.split("valid")
        wanted = targets(cell)
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
            one_hot(wanted, len(labels)),
            config.tagger,
            config.run.seed,
            epochs=config.tagger.epochs,
            lr=config.tagger.lr,
            score=score if dataset.has_gold("valid") else None,
        )
        return {title: cell.figures(predict)}

    return run


def _alternate(cell: Cell) -> dict[str, Figures]:
    """CHMM-ALT: the tagger of phase I, the final tagger, and the best CHMM with its tagger."""
    result = alternate(cell.config, resume=True, prepared=cell.prepared)
    rows = {
        "CHMM -> tagger (phase I)": ("tagger", result.history[1]),
        "CHMM-ALT: tagger": ("tagger", result.tagger),
        "CHMM-ALT: CHMM": ("chmm", result.chmm),
    }
    return {
        title: {name.removeprefix(f"{kind}/"): value for name, value in row.items()}
        for title, (kind, row) in rows.items()
    }


METHODS: Mapping[str, Callable[[Cell], dict[str, Figures]]] = {
    "source": _baseline(
        "best single source",
        lambda c: BestSource(c.prepared.dataset.labels, c.prepared.dataset.sources),
        "valid",
    ),
    "vote": _baseline(
        "majority vote, O counts", lambda c: MajorityVote(c.prepared.dataset.labels, "plain")
    ),
    "vote-bio": _baseline(
        "majority vote, BIO", lambda c: MajorityVote(c.prepared.dataset.labels, "bio")
    ),
    "vote-io": _baseline(
        "majority vote, IO (WRENCH)", lambda c: MajorityVote(c.prepared.dataset.labels, "io")
    ),
    "dawid-skene": _baseline("Dawid-Skene", lambda c: DawidSkene(c.prepared.dataset.labels)),
    "snorkel": _baseline(
        "Snorkel", lambda c: Snorkel(c.prepared.dataset.labels, seed=c.config.run.seed)
    ),
    "skweak": _baseline(
        "skweak HMM", lambda c: Skweak(c.prepared.dataset.labels, c.prepared.dataset.sources)
    ),
    "hmm": _baseline(
        "HMM, EM, BIO",
        lambda c: ClassicalHMM(c.prepared.dataset.labels, rule=c.config.data.rule),
    ),
    "hmm-io": _baseline(
        "HMM, EM, IO",
        lambda c: ClassicalHMM(c.prepared.dataset.labels, rule=c.config.data.rule, scheme="io"),
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
        lambda c: MajorityVote(c.prepared.dataset.labels, "io").predict(
            c.prepared.dataset.split("train")
        ),
    ),
    "alt": _alternate,
    "supervised": _tagger(
        "tagger on gold labels",
        lambda c: metrics.gold_of(c.prepared.dataset.split("train"), "train"),
    ),
}
SEEDED = ("snorkel", "hmm-gradient", *(m for m in METHODS if m.startswith("chmm")),
          "vote-tagger", "alt", "supervised")  # fmt: skip

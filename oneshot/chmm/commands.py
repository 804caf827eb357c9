"""The commands `oneshot chmm fit | label | alt | eval | synthetic`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot.chmm.config import ChmmConfig


def _fit(argv: list[str]) -> int:
    from oneshot.chmm.config import ChmmConfig
    from oneshot.training.command_line import parse

    config, parsed = parse(ChmmConfig, "oneshot chmm fit", argv, resumable=True)
    from oneshot.chmm.reports.sources import remarks
    from oneshot.chmm.trainer import fit

    _quiet()
    result = fit(config, resume=parsed.resume)
    for split, metrics in result.metrics.items():
        print(f"{split:5}  {_summary(metrics)}")
    for remark in remarks(result.sources):
        print(remark)
    chosen_by = {"f1": "F1 on the gold labels of valid", "likelihood": "log-likelihood of valid"}
    last = result.history[-1]["step"]
    print(f"epoch {result.best_epoch} of {last}, chosen by {chosen_by[result.selection]}")
    if result.unfinished:
        print(
            "training stopped too early: the last epoch was the best by far. Continue with "
            f"--resume --training.epochs {3 * config.training.epochs}"
        )
    print(f"sources {result.output / 'sources.md'}\nmodel   {result.output / 'chmm'}")
    return 0


def _summary(metrics: dict[str, Any]) -> str:
    """Scores of a split, or what there is without gold labels."""
    likelihood = f"log-likelihood/token {metrics['log_likelihood_per_token']:.4f}"
    if "f1" not in metrics:
        counts = ", ".join(f"{count} {name}" for name, count in metrics["entities"].items())
        return f"{likelihood}  entities found: {counts}"
    scores = (("F1", "f1"), ("P", "precision"), ("R", "recall"))
    return "  ".join([*(f"{name} {100 * metrics[key]:.2f}" for name, key in scores), likelihood])


def _alt(argv: list[str]) -> int:
    from oneshot.chmm.config import ChmmConfig
    from oneshot.training.command_line import parse

    config, parsed = parse(ChmmConfig, "oneshot chmm alt", argv, resumable=True)
    from oneshot.chmm.trainer import alternate

    _quiet()
    result = alternate(config, resume=parsed.resume)
    rows = (("first CHMM", "chmm", result.history[0]), ("tagger", "tagger", result.tagger),
            ("best CHMM", "chmm", result.chmm))  # fmt: skip
    for title, kind, row in rows:
        scores = [
            f"{split} F1 {100 * row[f'{kind}/{split}_f1']:.2f}"
            for split in ("valid", "test")
            if f"{kind}/{split}_f1" in row
        ]
        if not scores:
            scores = [
                f"{title} {row[key]:.4f}"
                for key, title in (
                    ("chmm/valid_log_likelihood", "valid log-likelihood/token"),
                    ("tagger/score", "F1 against the CHMM's labels of valid"),
                )
                if key in row
            ]
        print(f"{title:10}  loop {(row['step'] - 1) // 2}  " + "  ".join(scores))
    print(f"tagger {result.output / 'tagger'}\nCHMM   {result.output / 'chmm'}")
    return 0


def _label(argv: list[str]) -> int:
    from oneshot.chmm.dataset import SPLITS
    from oneshot.chmm.readers.registry import READERS

    parser = argparse.ArgumentParser(
        prog="oneshot chmm label",
        description="Labels and posteriors of every sentence of a split, one JSON object a line.",
    )
    parser.add_argument("model", type=Path, help="folder `chmm` or `tagger` of a run")
    parser.add_argument(
        "data",
        type=Path,
        help="folder of weak labels; for a tagger also a text file, a sentence per line",
    )
    parser.add_argument("--split", choices=SPLITS, help="default: test, or the only split there is")
    parser.add_argument(
        "--format",
        default="auto",
        choices=("auto", *READERS),
        help="format of the data (default: auto)",
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--device", default="auto", help="a torch device (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--unconstrained", action="store_true", help="allow label pairs that BIO forbids"
    )
    parsed = parser.parse_args(argv)
    from oneshot.chmm.labelling import label

    _quiet()
    count = label(
        parsed.model,
        parsed.data,
        parsed.split,
        parsed.output,
        format=parsed.format,
        device=parsed.device,
        constrained=not parsed.unconstrained,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(f"{count} sentences in {parsed.output}")
    return 0


def _eval(argv: list[str]) -> int:
    from oneshot.chmm.evaluation import METHODS, evaluate

    parser = argparse.ArgumentParser(
        prog="oneshot chmm eval",
        description="Methods side by side. Options such as --tagger.epochs 3 apply to every file.",
    )
    parser.add_argument("configs", nargs="+", type=Path, help="YAML files, one for each data set")
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        help=f"some of {', '.join(METHODS)} (default: all), separated by commas",
    )
    parser.add_argument("--seeds", default="1", help="separated by commas (default: 1)")
    parser.add_argument(
        "--data-root", type=Path, help="folder that holds the data sets, instead of data.path's"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder; continued if it exists")
    parsed, overrides = parser.parse_known_args(argv)
    from rich.console import Console
    from rich.markdown import Markdown

    from oneshot.chmm.config import ChmmConfig
    from oneshot.chmm.reports.table import markdown
    from oneshot.training.config import load

    configs = [load(ChmmConfig, path, overrides) for path in parsed.configs]
    if parsed.data_root is not None:
        configs = [_moved(config, parsed.data_root) for config in configs]
    seeds = [int(seed) for seed in parsed.seeds.split(",")]
    _quiet()
    errors = Console(stderr=True)
    rows = evaluate(
        configs,
        parsed.methods.split(","),
        seeds,
        parsed.output,
        lambda text: errors.print(text, markup=False, highlight=False),
    )
    Console(width=max(120, errors.width)).print(Markdown(markdown(rows)))
    print(parsed.output / "results.md")
    return int(any("failed" in row for row in rows))


def _synthetic(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oneshot chmm synthetic",
        description="Sources that are reliable on some words only; 20 core-seconds per seed.",
    )
    parser.add_argument(
        "--seeds", default="0,1,2,3,4", help="separated by commas (default %(default)s)"
    )
    parser.add_argument("--output", required=True, help="folder")
    parsed = parser.parse_args(argv)
    from oneshot.chmm.synthetic.runs import run_seeds, table

    print(table(run_seeds([int(seed) for seed in parsed.seeds.split(",")], parsed.output)), end="")
    return 0


def _moved(config: ChmmConfig, root: Path) -> ChmmConfig:
    """The config with its data set in another folder."""
    path = str(root / Path(config.data.path).name)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _quiet() -> None:
    """Switches off transformers' own bars and its report of a new classification head."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "fit": _fit,
    "alt": _alt,
    "label": _label,
    "eval": _eval,
    "synthetic": _synthetic,
}

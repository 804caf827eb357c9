"""The commands `oneshot rlvr ...`: parse the arguments, call the layer, print the outcome."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot.training.command_line import hide_loading_bars, parse

if TYPE_CHECKING:
    from oneshot.rlvr.config import TrainConfig


def train(argv: list[str]) -> int:
    """`oneshot rlvr train`."""
    from oneshot.rlvr.algorithm.presets import PRESETS, expand_presets
    from oneshot.rlvr.config import TrainConfig
    from oneshot.training.config import argument_parser

    parser = argument_parser(TrainConfig, "oneshot rlvr train")
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="Options of a published algorithm; options after it win.",
    )
    config, parsed = parse(
        TrainConfig, "oneshot rlvr train", expand_presets(argv), resumable=True, parser=parser
    )
    return _train(config, parsed.resume)


def _train(config: TrainConfig, resume: bool) -> int:
    from oneshot.rlvr import trainer

    hide_loading_bars()
    result = trainer.train(config, resume=resume)
    metrics = {k: v for row in result.history for k, v in row.items()}
    accuracies = [
        f"{row['validation/accuracy']:.3f} (step {row['step']})"
        for row in result.history
        if "validation/accuracy" in row
    ]
    print(f"step {metrics['step']}: reward {metrics['reward/mean']:.3f}")
    if accuracies:
        print("validation accuracy " + " -> ".join(dict.fromkeys([accuracies[0], accuracies[-1]])))
    print(f"model   {result.checkpoint}\ncurves  {result.output / 'curves.png'}")
    return 0


def recipe(argv: list[str]) -> int:
    """`oneshot rlvr recipe`."""
    import yaml

    from oneshot.rlvr import recipes
    from oneshot.rlvr.algorithm.presets import expand_presets
    from oneshot.rlvr.config import TrainConfig
    from oneshot.training.config import argument_parser, to_dict

    prog = "oneshot rlvr recipe"
    if not argv or argv[0].startswith("-"):
        usage = "%(prog)s [NAME [--train | --plan] [options of `oneshot rlvr train`]]"
        description = "The runs of Wang et al. 2025: the list, or the whole config of one."
        argparse.ArgumentParser(prog=prog, usage=usage, description=description).parse_args(argv)
        print(recipes.table(), end="")
        return 0
    name, *overrides = argv
    parser = argument_parser(TrainConfig, f"{prog} {name}")
    add = parser.add_argument
    add("--train", action="store_true", help="Train the recipe instead of printing its config.")
    add("--plan", action="store_true", help="Print memory per process, tokens per second, work.")
    add("--processes", type=int, default=8, help="With --plan: processes (default 8).")
    add("--hours", type=float, default=24.0, help="With --plan: time for the run (default 24).")
    options = recipes.recipe(name).argv(expand_presets(overrides))
    config, parsed = parse(TrainConfig, prog, options, resumable=True, parser=parser)
    if parsed.train:
        return _train(config, parsed.resume)
    if parsed.plan:
        from oneshot.rlvr.scaling import plan

        print(f"{name} on {parsed.processes} processes; arithmetic, not measured")
        for row, value in plan(config, parsed.processes, parsed.hours).items():
            print(f"{row:58} {value:10,.2f}")
        return 0
    print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")
    return 0


def evaluate(argv: list[str]) -> int:
    """`oneshot rlvr eval`."""
    from oneshot.rlvr.config import EvaluateConfig

    config, _ = parse(EvaluateConfig, "oneshot rlvr eval", argv)
    hide_loading_bars()
    if config.benchmarks:
        from oneshot.rlvr.evaluation.suite import run_suite

        print(run_suite(config))
        return 0
    from oneshot.rlvr.evaluation.evaluate import evaluate_config

    result = evaluate_config(config)
    if config.output is not None:
        rows = {**result.metrics(), "records": result.records}
        Path(config.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result.metrics(), indent=1))
    return 0


def select(argv: list[str]) -> int:
    """`oneshot rlvr select`."""
    from oneshot.rlvr.problems import selection
    from oneshot.rlvr.problems.datafiles import read_rows, write_rows

    parser = argparse.ArgumentParser(
        prog="oneshot rlvr select",
        description="Rank training problems by the accuracy history of a run on the whole set.",
    )
    add = parser.add_argument
    add("--history", required=True, help="acc_step_<n>.json, or the accuracy.jsonl of a run")
    add("--output", required=True, help="CSV to write: rank, index, std, mean, label")
    add("--method", choices=selection.METHODS, default="variance", help="default: variance")
    add("--seed", type=int, default=0, help="of --method random")
    add("--data", help="the whole training set; fills the column label")
    add("--shots", type=int, nargs="+", default=[], help="write files of the first N ranks")
    add("--ranks", type=int, nargs="+", default=[], help="write a file of exactly these ranks")
    add("--files", help="folder of those files (default: that of --output)")
    add("--rows", type=int, default=128, help="rows of each file, copies included (default 128)")
    parsed = parser.parse_args(argv)
    ranking = selection.rank(selection.read_history(parsed.history), parsed.method, parsed.seed)
    wanted = {f"shots_{n}": range(1, n + 1) for n in parsed.shots}
    if parsed.ranks:
        wanted["ranks_" + "_".join(map(str, parsed.ranks))] = parsed.ranks
    if wanted and parsed.data is None:
        raise ValueError("--shots and --ranks need --data, the whole training set")
    labels = None
    files = {}
    if parsed.data is not None:
        rows = selection.rows_by_index(read_rows(parsed.data))
        labels = selection.labels_by_index(rows)
        folder = Path(parsed.files or Path(parsed.output).parent)
        for name, ranks in wanted.items():
            path = folder / f"{name}{Path(parsed.data).suffix}"
            files[path] = selection.shots(rows, ranking, list(ranks), parsed.rows)
    selection.write_ranking(parsed.output, ranking, labels)
    for path, content in files.items():
        write_rows(path, content)
        print(f"{path}: {len(content)} rows")
    best = ", ".join(str(entry.index) for entry in ranking[:5])
    print(f"{parsed.output}: {len(ranking)} problems, first {best}")
    return 0


def relabel(argv: list[str]) -> int:
    """`oneshot rlvr relabel`."""
    from oneshot.rlvr.problems import label_noise
    from oneshot.rlvr.problems.datafiles import read_rows, write_rows

    parser = argparse.ArgumentParser(
        prog="oneshot rlvr relabel", description="Write a training file with wrong labels."
    )
    parser.add_argument("--data", required=True, help=".parquet, .jsonl or .json file")
    parser.add_argument("--output", required=True, help="file to write, of any of these kinds")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--label", help="this label for every row (one-example files)")
    how.add_argument("--fraction", type=float, help="flip this share of the labels, e.g. 0.6")
    parser.add_argument("--seed", type=int, default=0, help="of --fraction")
    parsed = parser.parse_args(argv)
    rows = read_rows(parsed.data)
    if parsed.label is not None:
        changed = label_noise.relabel(rows, parsed.label)
        print(f"{parsed.output}: {len(changed)} rows with the label {parsed.label}")
    else:
        changed, flipped = label_noise.flip_labels(rows, parsed.fraction, parsed.seed)
        print(f"{parsed.output}: {len(flipped)} of {len(changed)} labels flipped")
    write_rows(parsed.output, changed)
    return 0


def study(argv: list[str]) -> int:
    """`oneshot rlvr study`."""
    from oneshot.rlvr.algorithm.presets import expand_presets
    from oneshot.rlvr.config import TrainConfig
    from oneshot.rlvr.studies.definitions import STUDIES
    from oneshot.training.config import argument_parser

    parser = argument_parser(TrainConfig, "oneshot rlvr study")
    parser.add_argument("study", choices=list(STUDIES), help="What is compared.")
    parser.add_argument("--seeds", type=int, default=3, help="Runs per arm (default 3).")
    parser.add_argument("--output", help="Folder of all studies (default: run.output).")
    parser.add_argument("--resume", action="store_true", help="Continue unfinished runs.")
    config, parsed = parse(TrainConfig, "oneshot rlvr study", expand_presets(argv), parser=parser)
    if parsed.output is not None:
        config = replace(config, run=replace(config.run, output=parsed.output))
    from oneshot.rlvr.studies.study import run_study

    hide_loading_bars()
    run_study(parsed.study, config, seeds=parsed.seeds, resume=parsed.resume)
    folder = Path(config.run.output) / parsed.study
    print((folder / "table.md").read_text(encoding="utf-8"))
    print(f"results are in {folder}")
    return 0


def serve(argv: list[str]) -> int:
    """`oneshot rlvr serve`: becomes the rollout server; arguments after `--` go to vLLM."""
    from oneshot import models
    from oneshot.rlvr.algorithm.presets import expand_presets
    from oneshot.rlvr.config import TrainConfig

    end = argv.index("--") if "--" in argv else len(argv)
    config, _ = parse(TrainConfig, "oneshot rlvr serve", expand_presets(argv[:end]))
    from oneshot.rlvr.rollout import vllm_server

    source = str(models.resolve(config.model.source))
    vllm_server.serve(source, config.model, config.rollout, config.run.seed, argv[end + 1 :])
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "recipe": recipe,
    "eval": evaluate,
    "select": select,
    "relabel": relabel,
    "study": study,
    "serve": serve,
}

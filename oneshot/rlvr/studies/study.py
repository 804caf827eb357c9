"""`oneshot rlvr study`: trains the arms of a study (`definitions.py`) over several seeds.

<output>/runs/<what differs from the base>/seed_<n>    ordinary runs, shared by all studies
<output>/<study>/table.md, table.json, figure.png      see `report.py`

A finished run is used as it is, whichever study made it; its config must match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.studies.definitions import DATA, STUDIES, Overrides, Study
from oneshot.rlvr.studies.report import write_report
from oneshot.rlvr.studies.summary import summarize
from oneshot.training import checkpoints
from oneshot.training.config import flat, require, to_dict
from oneshot.training.folder import open_run
from oneshot.training.jsonl import read_jsonl
from oneshot.training.lock import release

# What a killed first attempt may leave before the config of its run is written.
_LEFTOVERS = {".lock", "config.yaml.writing"}


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        arm: Its name in the study.
        seed: `run.seed`.
        config: What is trained; `run.output` is its folder.
    """

    arm: str
    seed: int
    config: TrainConfig


def run_study(
    name: str, base: TrainConfig, *, seeds: int = 3, resume: bool = False
) -> dict[str, Any]:
    """Trains the missing runs of a study and writes its report after every seed.

    Args:
        name: One of `studies.STUDIES`.
        base: The config that the arms override; `run.output` is the folder of all studies, and the
            seeds count up from `run.seed`.
        seeds: Runs per arm.
        resume: Continue runs that a kill left unfinished.

    Returns:
        The metrics, as written to table.json.

    Raises:
        ValueError: An unknown study, a base without validation from step 0 on, a run of another
            config or other training data in the way, or one whose metrics are damaged.
        FileExistsError: A folder in the way that is no run, or an unfinished run without `resume`.
        RunError: Another process is writing one of the runs.
    """
    require(name in STUDIES, "study", f"one of {', '.join(STUDIES)}", name)
    require(seeds > 0, "seeds", "a positive number", seeds)
    require(
        base.evaluation.path is not None and base.evaluation.before_training,
        "evaluation",
        "given a path, and before_training: true (the untrained baseline)",
        base.evaluation,
    )
    study = STUDIES[name]
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in study.arms}
    result: dict[str, Any] = {}
    planned = list(runs(study, base, seeds))
    for number, run in enumerate(planned, start=1):
        trained = complete(run.config, resume)
        metrics = {"seed": run.seed, "run": run.config.run.output, **run_metrics(run.config)}
        release(Path(run.config.run.output))  # another study may share the run
        results[run.arm].append(metrics)
        print(
            f"[{number}/{len(planned)}] {run.arm}, seed {run.seed}: unseen "
            f"{metrics['accuracy_before']:.1%} -> {metrics['accuracy_after']:.1%}"
            f"{'' if trained else ' (was there)'}",
            flush=True,
        )
        if number % len(study.arms) == 0:
            result = write_report(Path(base.run.output) / name, name, study, seeds, results)
    return result


def runs(study: Study, base: TrainConfig, seeds: int) -> Iterator[Run]:
    """Every run of a study, all arms of one seed before the next."""
    steps = base.run.steps * study.length
    save = min(base.run.save_every, steps)
    shared = replace(base, run=replace(base.run, steps=steps, save_every=save))
    for seed in range(base.run.seed, base.run.seed + seeds):
        for arm, overrides in study.arms.items():
            config = override(shared, overrides)
            folder = Path(base.run.output) / "runs" / run_name(base, config) / f"seed_{seed}"
            run = replace(config.run, output=str(folder), seed=seed)
            yield Run(arm, seed, replace(config, run=run))


def override(config: TrainConfig, overrides: Overrides) -> TrainConfig:
    """The config with fields replaced by their dotted names.

    `data.path` is the name of a file beside the config's own, without its suffix.
    """
    for key, value in overrides.items():
        if key == DATA:
            value = str(Path(config.data.path).with_stem(value))
        config = _replaced(config, key.split("."), value)
    return config


def _replaced(config: Any, names: list[str], value: Any) -> Any:
    name, *rest = names
    return replace(
        config, **{name: _replaced(getattr(config, name), rest, value) if rest else value}
    )


def run_name(base: TrainConfig, config: TrainConfig) -> str:
    """The folder of an arm: its differences from the base but for output and seed, or "base"."""
    old, new = flat(to_dict(base)), flat(to_dict(config))
    changed = []
    for key, value in new.items():
        if value != old[key] and key not in ("run.output", "run.seed"):
            shown = Path(value).stem if key == DATA else value
            changed.append(re.sub(r"[^\w.=-]+", "_", f"{key}={shown}"))
    return ",".join(changed) or "base"


def complete(config: TrainConfig, resume: bool) -> bool:
    """Trains a run unless it is finished; returns whether there was anything to train."""
    folder = Path(config.run.output)
    if folder.is_dir() and not (folder / "config.yaml").exists():
        strange = sorted({path.name for path in folder.iterdir()} - _LEFTOVERS)
        if strange:
            raise FileExistsError(f"{folder} is in the way: it has {strange[0]} but no config.yaml")
    if (folder / "config.yaml").exists():
        _, newest = open_run(folder, config, True, {"run.progress"})
        last = checkpoints.path(folder / "checkpoints", config.run.steps)
        if newest == last and (folder / f"acc_step_{config.run.steps}.json").exists():
            _check_data(config, last)
            return False
        if not resume:
            raise FileExistsError(f"{folder} is an unfinished run; continue it with --resume")
    from oneshot.rlvr.trainer import train

    train(config, resume=folder.is_dir())
    return True


def _check_data(config: TrainConfig, checkpoint: Path) -> None:
    from oneshot import models
    from oneshot.rlvr.problems.training_set import read_training_set
    from oneshot.training.state import TrainerState

    training_set = read_training_set(config, models.load_tokenizer(config.model.source))
    if TrainerState.read(checkpoint).data_digest != training_set.digest:
        raise ValueError(f"{config.run.output} was trained on other data than {config.data.path}")


def run_metrics(config: TrainConfig) -> dict[str, Any]:
    """The metrics of a finished run: those of `summarize`, and accuracies by data source.

    Raises:
        ValueError: metrics.jsonl does not have every step.
    """
    folder, steps = Path(config.run.output), config.run.steps
    history = read_jsonl(folder / "metrics.jsonl")
    if [row["step"] for row in history] != list(range(steps + 1)):
        raise ValueError(
            f"{folder / 'metrics.jsonl'} must have the steps 0 to {steps}, each once; "
            "delete the folder to train the run again"
        )
    return {
        **summarize(history),
        "families_before": families(folder, 0),
        "families_after": families(folder, steps),
    }


def families(folder: Path, step: int) -> dict[str, dict[str, float]]:
    """Problems and accuracy of a validation by data source, in the order of the file."""
    scores: dict[str, list[float]] = {}
    for row in read_jsonl(folder / "validation" / f"step_{step:06d}.jsonl"):
        scores.setdefault(row["data_source"], []).append(sum(row["scores"]) / len(row["scores"]))
    return {
        source: {"problems": len(values), "accuracy": sum(values) / len(values)}
        for source, values in scores.items()
    }

"""The output folder of a run: checks, lock, config, and where a resumed run continues.

<output>/config.yaml        the resolved config
<output>/checkpoints/       what the run resumes from (see `checkpoints`)
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from oneshot.training import checkpoints
from oneshot.training.config import flat, to_dict
from oneshot.training.distributed import Processes
from oneshot.training.grid import write_text
from oneshot.training.lock import LOCK, hold


def open_run(
    folder: Path,
    config: Any,
    resume: bool,
    may_change: Collection[str],
    processes: Processes | None = None,
) -> tuple[Path, Path | None]:
    """Checks the output folder and looks for the checkpoint to continue from.

    Creates nothing but the lock of an existing folder: two processes that write one run would
    delete each other's checkpoints.

    Args:
        folder: Output folder (the field `run.output` of the config).
        config: The run's config, a dataclass.
        resume: Whether an earlier run in the folder is continued.
        may_change: Dotted names of fields that a resumed run may have changed.
        processes: Of the run; the first one looks, and all must call this.

    Returns:
        The folder, and the checkpoint to continue from (None: start at step 0, also when the
        earlier run was killed before its first checkpoint).

    Raises:
        FileExistsError: The folder has files in it and `resume` is False.
        ValueError: The earlier run has another config.
        RunError: Another process is writing this folder.
    """
    processes = processes or Processes()
    return folder, processes.from_main(lambda: _start(folder, config, resume, may_change))


def finished(folder: Path, processes: Processes) -> Path:
    """The last checkpoint of a run that has ended, once the first process has written it.

    Raises:
        CheckpointError: The run has none.
    """
    processes.wait()
    last = checkpoints.latest(folder / "checkpoints")
    if last is None:
        raise checkpoints.CheckpointError(f"{folder}: the run has no checkpoint")
    return last


def interrupted(folder: Path, step: int, save_every: int) -> KeyboardInterrupt:
    """The interrupt of a run, with what it left and what --resume does with it."""
    last = checkpoints.latest(folder / "checkpoints")
    if last is not None:
        text = f"the same command with --resume continues from {last}"
        return KeyboardInterrupt(f"in step {step}; {text}")
    return KeyboardInterrupt(
        f"in step {step}, before the first checkpoint (run.save_every is {save_every}): the same "
        "command with --resume begins again at step 1"
    )


def _start(folder: Path, config: Any, resume: bool, may_change: Collection[str]) -> Path | None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"run.output: {folder} is a file")
    written = folder / "config.yaml"
    if not resume and folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise FileExistsError(
            f"run.output: {folder} is not empty; continue its run with --resume, or name another"
        )
    if folder.is_dir():
        hold(folder)
    if written.exists():
        before = yaml.safe_load(written.read_text(encoding="utf-8"))
        _check_same(before, to_dict(config), may_change, written)
    checkpoints.clean(folder / "checkpoints")
    newest = checkpoints.latest(folder / "checkpoints")
    if newest is not None and not written.exists():
        raise ValueError(
            f"run.output: {folder} has checkpoints but no config.yaml, so it is not a run; name "
            "another folder"
        )
    return newest


def write_config(folder: Path, config: Any) -> None:
    """Creates the folder, if need be, with the resolved config in it."""
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))


def _check_same(before: Any, now: dict[str, Any], may_change: Collection[str], path: Path) -> None:
    old, new = flat(before), flat(now)
    changed = [
        f"{key}: saved {old.get(key, 'unset')!r}, requested {new.get(key, 'unset')!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in may_change and old.get(key) != new.get(key)
    ]
    if changed:
        raise ValueError(f"the run to resume has another config ({path}): " + "; ".join(changed))

"""The output folder of a run: who may write into it, and where a resumed run begins.

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
from oneshot.training.lock import LOCK, hold


def open_run(
    folder: Path, config: Any, resume: bool, may_change: Collection[str]
) -> tuple[Path, Path | None]:
    """Checks the output folder and looks for the checkpoint to continue from.

    Creates nothing but the lock of a folder that is there: two processes that write one run would
    delete each other's checkpoints.

    Args:
        folder: Output folder (the field `run.output` of the config).
        config: The run's config, a dataclass.
        resume: Whether an earlier run in the folder is continued.
        may_change: Dotted names of fields that a resumed run may have changed.

    Returns:
        The folder, and the checkpoint to continue from (None: start at step 0, also when the
        earlier run was killed before its first checkpoint).

    Raises:
        FileExistsError: The folder has files in it and `resume` is False.
        ValueError: The earlier run has another config.
        RuntimeError: Another process is writing this folder.
    """
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
        raise ValueError(f"{folder} has checkpoints but no config.yaml: it is not a run")
    return folder, newest


def write_config(folder: Path, config: Any) -> None:
    """Creates the folder, if need be, with the resolved config in it."""
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    temporary = folder / "config.writing"
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    temporary.replace(folder / "config.yaml")


def _check_same(before: Any, now: dict[str, Any], may_change: Collection[str], path: Path) -> None:
    old, new = flat(before), flat(now)
    changed = [
        f"{key}: {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} now"
        for key in sorted(old.keys() | new.keys())
        if key not in may_change and old.get(key) != new.get(key)
    ]
    if changed:
        raise ValueError(f"the run to resume has another config ({path}): " + "; ".join(changed))

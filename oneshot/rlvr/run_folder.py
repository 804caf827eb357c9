"""The output folder of a run: who may write into it, and where a resumed run begins.

<output>/config.yaml        the resolved config
<output>/metrics.jsonl      one line per step
<output>/samples.jsonl      some responses of each step
<output>/curves.png         the curves of metrics.jsonl
<output>/tensorboard/       the same figures as TensorBoard events
<output>/validation/        every validation response, one file per validated step
<output>/checkpoints/       model folders with the trainer's state
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from oneshot.rlvr import checkpoint
from oneshot.rlvr.config import TrainConfig, to_dict

# A resumed run may be longer, speak less or keep fewer checkpoints: that changes no number of it.
MAY_CHANGE = {"run.steps", "run.keep_checkpoints", "run.progress"}


def open_run(config: TrainConfig, resume: bool) -> tuple[Path, Path | None]:
    """Checks the output folder and looks for the checkpoint to continue from. Creates nothing.

    Args:
        config: The run's config.
        resume: Whether an earlier run in the folder is continued.

    Returns:
        The folder, and the checkpoint to continue from (None: start at step 0, also when the
        earlier run was killed before its first checkpoint).

    Raises:
        FileExistsError: The folder has files in it and `resume` is False.
        ValueError: The earlier run has another config.
    """
    folder = Path(config.run.output)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"run.output: {folder} is a file")
    written = folder / "config.yaml"
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"run.output: {folder} is not empty; continue its run with --resume, or name another"
        )
    if written.exists():
        before = yaml.safe_load(written.read_text(encoding="utf-8"))
        _check_same(before, to_dict(config), written)
    checkpoints = folder / "checkpoints"
    checkpoint.clean(checkpoints)
    newest = checkpoint.latest(checkpoints)
    if newest is not None and not written.exists():
        raise ValueError(f"{folder} has checkpoints but no config.yaml: it is not a run")
    return folder, newest


def write_config(folder: Path, config: TrainConfig) -> None:
    """Creates the folder, if need be, with the resolved config in it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "config.writing"
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
    temporary.replace(folder / "config.yaml")


def _check_same(before: Any, now: dict[str, Any], path: Path) -> None:
    old, new = _flat(before), _flat(now)
    changed = [
        f"{key}: {old.get(key, 'unset')!r} there, {new.get(key, 'unset')!r} now"
        for key in sorted(old.keys() | new.keys())
        if key not in MAY_CHANGE and old.get(key) != new.get(key)
    ]
    if changed:
        raise ValueError(f"the run to resume has another config ({path}): " + "; ".join(changed))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result.update(_flat(item, f"{prefix}{key}."))
    return result

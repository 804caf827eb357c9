"""What one stage of CHMM-ALT hands to the next, in memory and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from oneshot.chmm.checkpoint import read_state, reading, save_model, write_state
from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.dataset import TAGGER_SOURCE
from oneshot.chmm.device import device_of
from oneshot.chmm.labels import Ids
from oneshot.chmm.model import CHMM
from oneshot.chmm.prepare import Prepared
from oneshot.chmm.tagger.model import Tagger
from oneshot.training import checkpoints
from oneshot.training.checkpoints import CheckpointError

Floats = Sequence[npt.NDArray[np.floating]]


@dataclass
class State:
    """What the next stage needs.

    Attributes:
        stage: Last finished stage: 2 loop + 1 is a CHMM, 2 loop + 2 a tagger.
        targets: What the tagger shall learn, [T, L] for each sentence of train.
        paths: The CHMM's label path of each sentence of valid (for selection by weak labels).
        tagger: The tagger, once there is one.
        predictions: Its probabilities by split.
        best_loop: Loop of the best tagger so far, -1 for none.
        best_score: Its selection score.
        best_chmm_loop: The same for the CHMM.
        best_chmm_score: Its entity F1 on valid; without gold labels its loop.
    """

    stage: int = 0
    targets: Floats = ()
    paths: Sequence[Ids] = ()
    tagger: Tagger | None = None
    predictions: dict[str, Floats] = field(default_factory=dict)
    best_loop: int = -1
    best_score: float = float("-inf")
    best_chmm_loop: int = -1
    best_chmm_score: float = float("-inf")


def save(
    folder: Path,
    state: State,
    chmm: CHMM | None,
    config: ChmmConfig,
    prepared: Prepared,
    digest: str,
) -> None:
    """Writes the checkpoint of a stage of CHMM-ALT and removes older ones.

    It holds all that the next stage and the end of the run need; what did not change since the
    checkpoint before is a hard link to it.
    """
    root = folder / "checkpoints"
    before = checkpoints.latest(root)
    loop = (state.stage - 1) // 2
    values = {
        "stage": state.stage,
        "best_loop": state.best_loop,
        "best_score": state.best_score if state.best_loop >= 0 else None,
        "best_chmm_loop": state.best_chmm_loop,
        "best_chmm_score": state.best_chmm_score,
    }
    with checkpoints.writing(root, state.stage) as checkpoint:
        if chmm is not None:
            save_file(_targets(state), checkpoint / "targets.safetensors")
            _carry(before, checkpoint, "tagger", "best_tagger", "predictions.safetensors")
            if state.best_chmm_loop == loop:
                best = checkpoint / "best_chmm"
                has_tagger = state.tagger is not None
                save_model(best, chmm, prepared.dataset, config, tagger=has_tagger)
                if has_tagger:  # the source, without which this CHMM is of no use
                    _link(checkpoint / "tagger", best / TAGGER_SOURCE)
            else:
                _carry(before, checkpoint, "best_chmm")
        else:
            assert state.tagger is not None
            state.tagger.save(checkpoint / "tagger")
            predictions = {
                split: torch.from_numpy(np.concatenate(p)) for split, p in state.predictions.items()
            }
            save_file(predictions, checkpoint / "predictions.safetensors")
            _carry(before, checkpoint, "best_chmm", "targets.safetensors")
            if state.best_loop == loop:
                _link(checkpoint / "tagger", checkpoint / "best_tagger")
            else:
                _carry(before, checkpoint, "best_tagger")
        write_state(checkpoint, values, digest)
    checkpoints.prune(root, 1)


def load(checkpoint: Path, prepared: Prepared, config: ChmmConfig, digest: str) -> State:
    """The state after the stage of a checkpoint.

    Raises:
        ValueError: The checkpoint is of other data.
        CheckpointError: A file is missing or damaged.
    """
    values = read_state(checkpoint, digest)
    if values["best_score"] is None:
        values["best_score"] = float("-inf")
    with reading(checkpoint):
        state = State(**values)
        lengths = {split: [len(s) for s in x.sentences] for split, x in prepared.examples.items()}
        targets = load_file(checkpoint / "targets.safetensors")
        state.targets = [x.numpy() for x in targets["train"].split(lengths["train"])]
        state.paths = [x.numpy() for x in targets["valid_paths"].split(lengths["valid"])]
        if (checkpoint / "tagger").exists():
            state.tagger = Tagger.load(
                str(checkpoint / "tagger"),
                prepared.dataset.labels,
                config.tagger,
                device_of(config.run.device),
            )
            predictions = load_file(checkpoint / "predictions.safetensors")
            state.predictions = {
                split: [x.numpy() for x in predictions[split].split(size)]
                for split, size in lengths.items()
            }
        return state


def publish(folder: Path) -> None:
    """Puts the best tagger and the best CHMM where the user looks for them."""
    checkpoints.prune(folder / "checkpoints", 1)  # a kill may have left the one before
    newest = checkpoints.latest(folder / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{folder}: the run has no checkpoint")
    for name in ("tagger", "chmm"):
        shutil.rmtree(folder / name, ignore_errors=True)
        _link(newest / f"best_{name}", folder / name)


def _targets(state: State) -> dict[str, Tensor]:
    return {
        "train": torch.from_numpy(np.concatenate(state.targets)),
        "valid_paths": torch.from_numpy(np.concatenate(state.paths)),
    }


def _carry(before: Path | None, checkpoint: Path, *names: str) -> None:
    for name in names:
        if before is not None and (before / name).exists():
            _link(before / name, checkpoint / name)


def _link(source: Path, target: Path) -> None:
    """A copy that shares the bytes where the file system can: nothing ever writes into them."""
    if source.is_dir():
        target.mkdir()
        for file in source.iterdir():
            _link(file, target / file.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

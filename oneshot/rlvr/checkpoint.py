"""Checkpoints that survive `kill -9` at any moment.

A checkpoint is a folder in the Hugging Face layout (`AutoModelForCausalLM.from_pretrained` reads
it) plus the optimizer's moments and `trainer_state.json`. It is written under a temporary name,
flushed to the disk and renamed; so a folder with its final name is complete, and a failure while
writing (a full disk) leaves the previous ones as they were.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
_NAME = re.compile(r"step_(\d{6,})")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class TrainerState:
    """What training needs besides weights and moments; random numbers depend on the step alone.

    Attributes:
        step: Last finished rollout step.
        updates: Optimizer steps so far.
        data_digest: Digest of the training prompts and answers.
        threads: torch threads; another number may change the last bits.
        torch_version: Version of torch.
    """

    step: int
    updates: int
    data_digest: str
    threads: int
    torch_version: str


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    keep: int | None = None,
) -> Path:
    """Writes `folder/step_<step>` and removes all but the newest `keep` checkpoints.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: Writing failed; the temporary files are gone and older checkpoints intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{state.step:06d}"
    temporary = folder / f".{final.name}.writing"
    _remove(temporary)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_file(_moments(model, optimizer), temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
        _sync_tree(temporary)
        _remove(final)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        previous = latest(folder)
        raise CheckpointError(
            f"checkpoint of step {state.step} could not be written to {folder}: {error}. "
            + ("No older checkpoint." if previous is None else f"{previous} is intact.")
        ) from error
    prune(folder, keep)
    return final


def prune(folder: Path, keep: int | None) -> None:
    """Removes all but the newest `keep` checkpoints; None keeps all."""
    for old in [] if keep is None else _complete(folder)[:-keep]:
        _remove(old)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def clean(folder: Path) -> None:
    """Removes what an interrupted `save` left behind."""
    for leftover in [*folder.glob(".step_*.writing"), *folder.glob(".step_*.removed")]:
        shutil.rmtree(leftover)


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state of a checkpoint."""
    try:
        return TrainerState(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: no readable {STATE} ({error})") from error


def load_optimizer(
    checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Gives the optimizer (AdamW over `model.parameters()` in order) its saved moments back."""
    try:
        moments = load_file(checkpoint / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: no readable {OPTIMIZER} ({error})") from error
    state: dict[int, dict[str, Any]] = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if f"exp_avg.{name}" not in moments:
            continue  # it never had a gradient
        entry = {key: moments[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
        if entry["exp_avg"].shape != parameter.shape:
            raise CheckpointError(
                f"{checkpoint}: moments of {name} have shape {tuple(entry['exp_avg'].shape)}, "
                f"the parameter has {tuple(parameter.shape)}"
            )
        state[i] = entry
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    moments = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{key}.{name}"] = value.detach().cpu().contiguous()
    return moments


def _complete(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.glob("step_*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _remove(folder: Path) -> None:
    """Removes a folder so that a kill in the middle leaves nothing that looks complete."""
    if folder.exists():
        doomed = folder.parent / f".{folder.name.lstrip('.').removesuffix('.writing')}.removed"
        if doomed.exists():
            shutil.rmtree(doomed)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

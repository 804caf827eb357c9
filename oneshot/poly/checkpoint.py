"""What a checkpoint of multi-task training holds.

A folder with the adapters (or, for full fine-tuning, the model in the Hugging Face layout), the
optimizer's moments and the trainer state (see `training.state`). `training.checkpoints` writes it
so that it survives `kill -9` at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from oneshot.poly import storage
from oneshot.poly.data import Task
from oneshot.poly.model import PolyModel
from oneshot.poly.update import Learner
from oneshot.training import checkpoints, state
from oneshot.training.state import TrainerState


def save(
    folder: Path, learner: Learner, tasks: Iterable[Task], step: int, digest: str, keep: int | None
) -> None:
    """Writes `folder/step_<step>` and removes all but the newest `keep` checkpoints.

    Raises:
        CheckpointError: Writing failed; the temporary files are gone and older checkpoints intact.
    """
    model = learner.model
    with checkpoints.writing(folder, step) as checkpoint:
        if isinstance(model, PolyModel):
            storage.write(model, checkpoint, task_names=[task.name for task in tasks])
        else:
            model.save_pretrained(checkpoint)  # type: ignore[operator]
            learner.encoding.tokenizer.save_pretrained(checkpoint)
        moments = state.optimizer_tensors(_named(model), learner.optimizer)
        save_file(moments, checkpoint / state.OPTIMIZER)
        TrainerState(step, digest).write(checkpoint)
    checkpoints.prune(folder, keep)


def resume(checkpoint: Path, learner: Learner, digest: str) -> int:
    """Gives the optimizer its state back; returns the step to continue after.

    Raises:
        ValueError: The checkpoint is of other data.
        CheckpointError: A file is missing or damaged.
    """
    step = TrainerState.resume(checkpoint, digest, learner.steps).step
    state.load_optimizer(checkpoint, _named(learner.model), learner.optimizer)
    return step


def _named(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    named = model.adapter_parameters() if isinstance(model, PolyModel) else model.named_parameters()
    return list(dict(named).items())

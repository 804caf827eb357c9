"""What a checkpoint of multi-task training holds.

A folder with the adapters (or, for full fine-tuning, the model in the Hugging Face layout), the
optimizer's moments and `trainer_state.json`; `oneshot.training.checkpoints` writes it so that it
survives `kill -9` at any moment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oneshot.poly import storage
from oneshot.poly.backbone import LabelEncoding
from oneshot.poly.model import PolyModel
from oneshot.training import checkpoints
from oneshot.training.checkpoints import CheckpointError

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True)
class TrainerState:
    """What training needs besides weights and moments; random numbers depend on the step alone.

    Attributes:
        step: Last finished step.
        data_digest: Digest of tasks and training examples.
        threads: torch threads; another number may change the last bits.
        torch_version: Version of torch.
    """

    step: int
    data_digest: str
    threads: int
    torch_version: str


def save(
    folder: Path,
    model: torch.nn.Module,
    encoding: LabelEncoding,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    task_names: list[str],
    keep: int | None,
) -> None:
    """Writes `folder/step_<step>` and removes all but the newest `keep` checkpoints.

    Raises:
        CheckpointError: Writing failed; the temporary files are gone and older checkpoints intact.
    """
    with checkpoints.writing(folder, state.step) as checkpoint:
        if isinstance(model, PolyModel):
            storage.write(model, checkpoint, task_names=task_names)
        else:
            model.save_pretrained(checkpoint)  # type: ignore[operator]
            encoding.tokenizer.save_pretrained(checkpoint)
        save_file(_moments(model, optimizer), checkpoint / OPTIMIZER)
        (checkpoint / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    checkpoints.prune(folder, keep)


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer state of a checkpoint."""
    try:
        return TrainerState(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: no readable {STATE} ({error})") from error


def load_optimizer(
    checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Gives the optimizer its saved moments back."""
    try:
        moments = load_file(checkpoint / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: no readable {OPTIMIZER} ({error})") from error
    names = _names(model)
    state: dict[int, dict[str, Any]] = {}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(trained):
        name = names[parameter]
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


def _names(model: torch.nn.Module) -> dict[torch.nn.Parameter, str]:
    named = model.adapter_parameters() if isinstance(model, PolyModel) else model.named_parameters()
    return {parameter: name for name, parameter in dict(named).items()}


def _moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    moments = {}
    for parameter, name in _names(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{key}.{name}"] = value.detach().cpu().contiguous()
    return moments

"""What a checkpoint holds besides the weights: trainer state and the optimizer's moments.

Random numbers derive from the seed and the step, so no generator state is stored.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from oneshot.training.checkpoints import CheckpointError
from oneshot.training.distributed import like, whole

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainerState:
    """Where a run is.

    Attributes:
        step: Last finished step.
        data_digest: Digest of the training data.
        updates: Optimizer steps so far, for each trained model whose steps are counted.
        threads: torch threads; another number may change the last bits.
        torch_version: Version of torch, for the same reason.
    """

    step: int
    data_digest: str
    updates: dict[str, int] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    torch_version: str = torch.__version__

    def write(self, checkpoint: Path) -> None:
        """Writes the state into the folder of a checkpoint."""
        (checkpoint / STATE).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(checkpoint: Path) -> TrainerState:
        """The state in a checkpoint.

        Raises:
            CheckpointError: The file is missing, damaged or of another version.
        """
        try:
            return TrainerState(**json.loads((checkpoint / STATE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{checkpoint}: no readable {STATE} ({error})") from error

    @staticmethod
    def resume(checkpoint: Path, data_digest: str, steps: int) -> TrainerState:
        """The state in a checkpoint that a run of `steps` steps on this data continues from.

        Warns when the last bits may differ from those of an uninterrupted run.

        Raises:
            CheckpointError: As in `read`.
            ValueError: The data is different, or the run is already longer.
        """
        state = TrainerState.read(checkpoint)
        if state.data_digest != data_digest:
            raise ValueError(f"the training data is not that of the run to resume ({checkpoint})")
        if state.step > steps:
            raise ValueError(f"run.steps is {steps}, but the run is already at step {state.step}")
        here = (torch.get_num_threads(), torch.__version__)
        if (state.threads, state.torch_version) != here:
            warnings.warn(
                f"{checkpoint} was written with {state.threads} threads and torch "
                f"{state.torch_version}, this is {here[0]} threads and torch {here[1]}: the last "
                "bits may differ",
                stacklevel=2,
            )
        return state


def optimizer_tensors(
    named: Iterable[tuple[str, Parameter]], optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, Tensor]:
    """The optimizer's moments as whole tensors on the CPU, named <moment>.<parameter>.

    Args:
        named: Parameters with their names.
        optimizer: Over these parameters. Those without a gradient so far have no moments.
        keep: Whether to return anything. All processes must call this for sharded parameters, and
            one of them writes.
    """
    return whole_tensors(
        {
            f"{key}.{name}": value
            for name, parameter in named
            for key, value in optimizer.state.get(parameter, {}).items()
        },
        keep,
    )


def whole_tensors(tensors: dict[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole tensors on the CPU, gathered one after the other; none unless `keep`."""
    gathered = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in gathered if keep}


def load_optimizer(
    checkpoint: Path, named: Iterable[tuple[str, Parameter]], optimizer: torch.optim.Optimizer
) -> None:
    """Gives AdamW its saved moments back.

    Args:
        checkpoint: Folder with `OPTIMIZER`, from `optimizer_tensors`.
        named: Parameters with their names.
        optimizer: Over these parameters, sharded or not.

    Raises:
        CheckpointError: The file is missing or damaged, or a shape does not fit.
    """
    try:
        tensors = load_file(checkpoint / OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: no readable {OPTIMIZER} ({error})") from error
    names = {parameter: name for name, parameter in named}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for i, parameter in enumerate(trained):
        name = names[parameter]
        if f"{MOMENTS[0]}.{name}" not in tensors:
            continue  # it never had a gradient
        state[i] = {"step": tensors[f"step.{name}"]}
        for key in MOMENTS:
            moment = tensors[f"{key}.{name}"]
            if moment.shape != parameter.shape:
                raise CheckpointError(
                    f"{checkpoint}: moments of {name} have shape {tuple(moment.shape)}, the "
                    f"parameter has {tuple(parameter.shape)}"
                )
            state[i][key] = like(moment, parameter)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""The checkpoints of a training run.

A checkpoint is a folder in the Hugging Face layout (`AutoModelForCausalLM.from_pretrained` reads
it) plus the optimizer's moments and `trainer_state.json`; PPO's critic and its moments lie in its
folder `critic`. `oneshot.training.checkpoints` writes it so that it survives `kill -9` at any
moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from oneshot.training import checkpoints
from oneshot.training.checkpoints import CheckpointError
from oneshot.training.distributed import Processes
from oneshot.training.state import OPTIMIZER, TrainerState, optimizer_tensors, whole_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CRITIC = "critic"


@dataclass(frozen=True)
class Snapshot:
    """A model and its optimizer at one step.

    Attributes:
        model: For its config; it may be sharded.
        weights: Whole tensors of `stored_tensors`.
        moments: Of the optimizer, whole.
    """

    model: PreTrainedModel
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        """Writes a model folder with the moments in it."""
        self.model.save_pretrained(folder, state_dict=self.weights)
        save_file(self.moments, folder / OPTIMIZER)


def snapshot(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    processes: Processes | None = None,
) -> Snapshot:
    """A model and its optimizer as they are; all processes must call this, the first keeps it."""
    keep = processes is None or processes.is_main
    weights = whole_tensors(dict(stored_tensors(model)), keep)
    return Snapshot(
        model, weights, optimizer_tensors(model.named_parameters(), optimizer, keep=keep)
    )


def stored_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a checkpoint of a model, by name: parameters, tied ones once, and buffers.

    Buffers count where they are persistent: transformers keeps trained numbers in some of them,
    such as `layer_scalar` of each Gemma 4 block.
    """
    yield from model.named_parameters()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters:
            yield name, value


def save(
    folder: Path,
    policy: Snapshot,
    tokenizer: PreTrainedTokenizerBase,
    state: TrainerState,
    keep: int | None = None,
    critic: Snapshot | None = None,
) -> Path:
    """Writes `folder/step_<step>` and removes all but the newest `keep` checkpoints.

    Args:
        folder: Of the checkpoints.
        policy: Weights and moments of the policy.
        tokenizer: Written beside them.
        state: Step, counters and data digest.
        keep: Number of newest checkpoints to keep; None: all.
        critic: Weights and moments of PPO's critic.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: Writing failed; the temporary files are gone and older checkpoints intact.
    """
    with checkpoints.writing(folder, state.step) as checkpoint:
        policy.write(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        if critic is not None:
            critic.write(checkpoint / CRITIC)
        state.write(checkpoint)
    checkpoints.prune(folder, keep)
    return checkpoints.path(folder, state.step)


@contextmanager
def reading(checkpoint: Path | None) -> Iterator[None]:
    """Names the checkpoint, and what to do, when its model cannot be read inside the block.

    Raises:
        CheckpointError: Instead of what transformers or safetensors raised.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        if checkpoint is None:
            raise
        raise CheckpointError(
            f"{checkpoint} is damaged ({error}); remove that folder, and --resume continues from "
            "the checkpoint before it"
        ) from error

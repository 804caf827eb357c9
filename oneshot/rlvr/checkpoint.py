"""What a checkpoint of a training run holds.

A checkpoint is a folder in the Hugging Face layout (`AutoModelForCausalLM.from_pretrained` reads
it) plus the optimizer's moments and `trainer_state.json`; PPO's critic and its moments lie in its
folder `critic`. `oneshot.training.checkpoints` writes it so that it survives `kill -9` at any
moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oneshot.training import checkpoints
from oneshot.training.checkpoints import CheckpointError
from oneshot.training.distributed import Processes, like, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.safetensors"
CRITIC = "critic"


@dataclass(frozen=True)
class TrainerState:
    """What training needs besides weights and moments; random numbers depend on the step alone.

    Attributes:
        step: Last finished rollout step.
        updates: Optimizer steps so far.
        data_digest: Digest of the training prompts and answers.
        threads: torch threads; another number may change the last bits.
        torch_version: Version of torch.
        critic_updates: Optimizer steps of the critic so far.
    """

    step: int
    updates: int
    data_digest: str
    threads: int
    torch_version: str
    critic_updates: int = 0


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
    """Gathers a model and its optimizer; all processes must call this, only the first keeps it."""
    keep = processes is None or processes.is_main
    moments = {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return Snapshot(model, _whole(dict(stored_tensors(model)), keep), _whole(moments, keep))


def stored_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint of a model holds, by name: parameters, tied ones once, and buffers.

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
        policy: What is saved.
        tokenizer: Written beside it.
        state: The rest.
        keep: Number of newest checkpoints that stay; None: all.
        critic: PPO's.

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
        (checkpoint / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
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
        for key in ("exp_avg", "exp_avg_sq"):
            entry[key] = like(entry[key], parameter)
        state[i] = entry
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _whole(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, gathered one after the other; none where they are not kept."""
    gathered = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in gathered if keep}

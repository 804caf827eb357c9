"""What CHMM runs write: a trained CHMM to use, and what a killed run resumes from.

A CHMM folder holds model.safetensors and chmm.json (labels, sources, structure, encoder, the rule
of silence and how files are read).
`oneshot.training.checkpoints` writes checkpoints so that they survive `kill -9` at any moment.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from oneshot.chmm.config import ChmmConfig, DataConfig, EncoderConfig, ModelConfig
from oneshot.chmm.dataset import TAGGER_SOURCE, WeakDataset
from oneshot.chmm.label_model.training import Progress
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.model import CHMM
from oneshot.training import checkpoints
from oneshot.training.checkpoints import CheckpointError
from oneshot.training.state import OPTIMIZER, load_optimizer, optimizer_tensors

MODEL, INFO = "model.safetensors", "chmm.json"
STATE, BEST = "state.json", "best.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """A trained CHMM with all that new sentences need.

    Attributes:
        model: The CHMM.
        sources: Names of its sources; `TAGGER_SOURCE` is the tagger in the subfolder "tagger".
        encoder: Encoder of the embeddings.
        data: The abstention rule, and how files are read.
        soft: Whether the tagger's votes are soft.
    """

    model: CHMM
    sources: tuple[str, ...]
    encoder: EncoderConfig
    data: DataConfig
    soft: bool


def save_model(
    folder: Path, model: CHMM, dataset: WeakDataset, config: ChmmConfig, *, tagger: bool = False
) -> None:
    """Writes a CHMM folder (creates it).

    Args:
        folder: Where.
        model: The CHMM.
        dataset: What it was trained on.
        config: How it was trained.
        tagger: Whether a tagger is its last source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_contiguous(model.state_dict()), folder / MODEL)
    info = {
        "entity_types": list(model.labels.entity_types),
        "sources": [*dataset.sources, *([TAGGER_SOURCE] if tagger else [])],
        "dim": model.dim,
        "model": asdict(model.config),
        "encoder": asdict(config.encoder),
        "data": {
            "rule": config.data.rule,
            "stray_inside": config.data.stray_inside,
            "overlaps": config.data.overlaps,
            "empty": config.data.empty,
            "o_is_silence": dataset.o_is_silence,
        },
        "soft_tagger": config.alternate.variant == "paper",
    }
    (folder / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def load_model(folder: Path) -> SavedModel:
    """Reads a CHMM folder.

    Raises:
        CheckpointError: It is none, or is damaged.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        labels = LabelSpace(tuple(info["entity_types"]))
        config = ModelConfig(**info["model"])
        model = CHMM(info["dim"], len(info["sources"]), labels, config)
        model.load_state_dict(load_file(folder / MODEL))
        data = DataConfig(path="", **info["data"])
        encoder, soft = EncoderConfig(**info["encoder"]), bool(info["soft_tagger"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no readable CHMM ({error})") from error
    return SavedModel(model, tuple(info["sources"]), encoder, data, soft)


def save_training(
    folder: Path, model: CHMM, optimizer: torch.optim.Optimizer, progress: Progress, digest: str
) -> None:
    """Writes the checkpoint of an epoch and removes older ones."""
    values = asdict(progress)
    del values["best"]
    with checkpoints.writing(folder, progress.epoch) as checkpoint:
        save_file(_contiguous(model.state_dict()), checkpoint / MODEL)
        save_file(_contiguous(progress.best), checkpoint / BEST)
        save_file(optimizer_tensors(model.named_parameters(), optimizer), checkpoint / OPTIMIZER)
        write_state(checkpoint, values, digest)
    checkpoints.prune(folder, 1)


def load_training(
    checkpoint: Path, model: CHMM, optimizer: torch.optim.Optimizer, digest: str
) -> Progress:
    """Gives model and optimizer their state back.

    Raises:
        ValueError: The checkpoint is of other data.
        CheckpointError: A file is missing or damaged.
    """
    values = read_state(checkpoint, digest)
    with reading(checkpoint):
        model.load_state_dict(load_file(checkpoint / MODEL))
        load_optimizer(checkpoint, model.named_parameters(), optimizer)
        return Progress(**values, best=load_file(checkpoint / BEST))


def write_state(checkpoint: Path, values: dict[str, Any], digest: str) -> None:
    """Writes JSON, with what a resumed run is compared with."""
    values = {
        **values,
        "data_digest": digest,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
    }
    (checkpoint / STATE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_state(checkpoint: Path, digest: str) -> dict[str, Any]:
    """The values of `write_state`; ValueError for other data, a warning for other threads."""
    with reading(checkpoint):
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        saved = (values.pop("threads"), values.pop("torch_version"))
        same_data = values.pop("data_digest") == digest
    if not same_data:
        raise ValueError(f"the data is not that of the run to resume ({checkpoint})")
    here = (torch.get_num_threads(), torch.__version__)
    if saved != here:
        warnings.warn(
            f"{checkpoint} was written with {saved[0]} threads and torch {saved[1]}, this is "
            f"{here[0]} threads and torch {here[1]}: the last bits may differ",
            stacklevel=3,
        )
    result: dict[str, Any] = values
    return result


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turns whatever a damaged checkpoint causes into a CheckpointError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: damaged ({error})") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().cpu().contiguous() for name, x in tensors.items()}

"""Adapters and router on disk: `poly_config.json` and `poly.safetensors`.

The tensors are named `router.logits` and `<layer>.lora_a`, `<layer>.lora_b` or `<layer>.ia3`; the
weights of the model itself are not stored.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.model import PolyModel, inject
from oneshot.training import checkpoints

CONFIG = "poly_config.json"
TENSORS = "poly.safetensors"


def save(model: PolyModel, folder: str | Path, **extra: Any) -> Path:
    """Writes the adapters; a kill in the middle leaves what it replaces.

    Args:
        model: The model.
        folder: Is created; an earlier save in it is replaced, any other folder is not.
        **extra: Values for the config file, such as the names of the tasks.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder has something else in it.
    """
    target = Path(folder)
    if target.exists() and not (target / CONFIG).is_file() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty and holds no adapters to replace")
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(model, temporary, **extra)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def write(model: PolyModel, folder: Path, **extra: Any) -> None:
    """Writes both files into an existing folder."""
    described = {
        "poly_config": dataclasses.asdict(model.poly_config),
        "layers": list(model.layers),
        **extra,
    }
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.adapter_parameters().items()}
    save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def load(model: nn.Module, folder: str | Path) -> PolyModel:
    """Puts saved adapters into a model, in evaluation mode.

    Args:
        model: The model they were trained in.
        folder: What `save` wrote, or a training run, of which it takes the newest checkpoint.

    Returns:
        The model with adapters; call `train()` before you train it further.

    Raises:
        FileNotFoundError: No adapters in the folder.
        ValueError: They are damaged or belong to another model. The model is then as it was.
    """
    path = locate(folder)
    config = read_config(path)
    tensors = read_tensors(path / TENSORS)
    poly = inject(model, config)
    try:
        assign(poly, tensors, str(path))
    except ValueError:
        poly.unload()
        raise
    return poly.eval()


def locate(folder: str | Path) -> Path:
    """The folder with the adapters: itself, or the newest checkpoint of a training run.

    Raises:
        FileNotFoundError: No adapters in the folder.
    """
    path = Path(folder)
    if (path / CONFIG).is_file():
        return path
    newest = checkpoints.latest(path / "checkpoints")
    if newest is not None and (newest / CONFIG).is_file():
        return newest
    raise FileNotFoundError(
        f"{folder}: no adapters in it (neither {CONFIG} nor checkpoints of a run with adapters)"
    )


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: it has no {file.name}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or cut off ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: damaged (no JSON object)")
    return content


def read_description(folder: str | Path) -> dict[str, Any]:
    """The config file of saved adapters.

    Raises:
        FileNotFoundError: No adapters in the folder.
        ValueError: It is damaged.
    """
    path = locate(folder) / CONFIG
    description = read_json(path)
    if not isinstance(description.get("poly_config"), dict):
        raise ValueError(f"{path}: damaged (it has no poly_config)")
    return description


def read_config(folder: str | Path) -> PolyConfig:
    """The adapter config of saved adapters.

    Raises:
        FileNotFoundError: No adapters in the folder.
        ValueError: A field that this version does not know.
    """
    values = read_description(folder)["poly_config"]
    known = {field.name for field in dataclasses.fields(PolyConfig)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"{folder}: {CONFIG} has unexpected fields {', '.join(unknown)}: another version of "
            f"oneshot wrote it, load it with that one"
        )
    return PolyConfig(**values)


@torch.no_grad()
def assign(model: PolyModel, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Gives every adapter parameter the tensor of its name.

    Raises:
        ValueError: A name or a shape differs.
    """
    parameters = model.adapter_parameters()
    if parameters.keys() != tensors.keys():
        missing = sorted(parameters.keys() - tensors.keys())[:3]
        left_over = sorted(tensors.keys() - parameters.keys())[:3]
        raise ValueError(
            f"checkpoint {source} does not fit the model: it lacks {missing} and has unexpected "
            f"{left_over}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"checkpoint {source} does not fit the model: {name} must have the shape "
                f"{list(parameter.shape)}, got {list(tensors[name].shape)}"
            )
    for name, parameter in parameters.items():
        parameter.data = tensors[name].to(parameter)

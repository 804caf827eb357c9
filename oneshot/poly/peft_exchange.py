"""PEFT's Poly checkpoints, in both directions, and plain PEFT LoRA.

Only files are exchanged, so peft itself is not needed. PEFT's layout (0.14 to 0.21) is ours up to
the order of the logits: poly_lora_A [H, K, d_in / H, r], poly_lora_B [H, K, r, d_out / H] and
poly_router.module_logits [tasks, H * K] for each layer; its scale is 1 / r.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.layers import RoutedLora
from oneshot.poly.model import PolyModel, inject
from oneshot.poly.storage import assign, read_json, read_tensors

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(.+)\.poly_(lora_A|lora_B|router\.module_logits)")
SURE = 40.0
"""A logit whose sigmoid is 1, and minus it 0, in float32: for routing that is not learned."""


def load_peft(model: nn.Module, folder: str | Path) -> PolyModel:
    """Puts a PEFT Poly checkpoint into a model, in evaluation mode.

    PEFT draws noise for each example in training; so does the result (`noise="per_example"`).

    Args:
        model: The model it was trained in.
        folder: What `PeftModel.save_pretrained` wrote.

    Raises:
        FileNotFoundError: No PEFT checkpoint in the folder.
        ValueError: It is not one of Poly, or belongs to another model.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"{path}: no PEFT checkpoint (it has no {CONFIG})")
    values = read_json(path / CONFIG)
    if values.get("peft_type") != "POLY":
        raise ValueError(f"{path}: peft_type must be POLY, got {values.get('peft_type')!r}")
    if not (path / TENSORS).is_file() and list(path.glob("adapter_model*.bin")):
        raise FileNotFoundError(
            f"{path}: it has adapter_model.bin but no {TENSORS}; save it again with "
            f"safe_serialization=True"
        )
    by_layer = _by_layer(read_tensors(path / TENSORS), path)
    config = PolyConfig(
        tasks=values["n_tasks"],
        target_modules=tuple(by_layer),
        skills=values["n_skills"],
        heads=values["n_splits"],
        rank=values["r"],
        alpha=1.0,
        noise="per_example",
        init="peft",
    )
    poly = inject(model, config)
    if poly.layers.keys() != by_layer.keys():
        poly.unload()
        raise ValueError(f"{path}: layer names of the checkpoint are ambiguous in this model")
    shape = (config.tasks, config.heads, config.inventory_size)
    logits = [by_layer[layer]["router.module_logits"].view(shape) for layer in poly.layers]
    tensors = {"router.logits": torch.stack(logits).float()}
    for layer in poly.layers:
        tensors[f"{layer}.lora_a"] = by_layer[layer]["lora_A"]
        tensors[f"{layer}.lora_b"] = by_layer[layer]["lora_B"]
    try:
        assign(poly, tensors, str(path))
    except ValueError:
        poly.unload()
        raise
    return poly.eval()


def save_peft(model: PolyModel, folder: str | Path) -> Path:
    """Writes the model's adapters as a PEFT Poly checkpoint.

    alpha is folded into B, a router shared by several layers is repeated for each, and routing
    that is not learned becomes constant logits.

    Args:
        model: A model with LoRA adapters on `nn.Linear` layers.
        folder: Is created; an earlier export in it is replaced, any other folder is not.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder has something else in it.
        ValueError: PEFT's Poly cannot hold it.
    """
    layers = _lora_layers(model, linear_only=True)
    config = model.poly_config
    logits = _logits(model)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        own = logits[layer.group].flatten(1)
        tensors[f"{PREFIX}{name}.poly_lora_A"] = layer.lora_a
        tensors[f"{PREFIX}{name}.poly_lora_B"] = layer.lora_b * config.alpha
        tensors[f"{PREFIX}{name}.poly_router.module_logits"] = own
    values = {
        "peft_type": "POLY",
        "poly_type": "poly",
        "r": config.rank,
        "n_tasks": config.tasks,
        "n_skills": config.inventory_size,
        "n_splits": config.heads,
        "init_weights": True,
    }
    return _write(model, layers, values, tensors, Path(folder))


def save_peft_lora(model: PolyModel, folder: str | Path, task: int) -> Path:
    """Writes the mixture of one task as a plain PEFT LoRA.

    Args:
        model: A model with LoRA adapters.
        folder: Is created; an earlier export in it is replaced, any other folder is not.
        task: Which task.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder has something else in it.
        ValueError: An unknown task, or (IA)^3 adapters.
    """
    layers = _lora_layers(model, linear_only=False)
    weights = model.task_weights(task)
    tensors = {}
    for name, layer in layers.items():
        a, b = layer.factors(weights[layer.group])
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.t()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.t()
    values = {
        "peft_type": "LORA",
        "r": model.poly_config.rank,
        "lora_alpha": model.poly_config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(not isinstance(layer.base, nn.Linear) for layer in layers.values()),
    }
    return _write(model, layers, values, tensors, Path(folder))


def _logits(model: PolyModel) -> torch.Tensor:
    """Logits [groups, tasks, heads, skills] that give the model's routing."""
    if model.router.logits is not None:
        return model.router.logits.detach()
    if model.poly_config.routing == "private":
        return SURE * (2 * model.router.weights() - 1)
    return torch.zeros_like(model.router.weights())


def _lora_layers(model: PolyModel, linear_only: bool) -> dict[str, RoutedLora]:
    layers = {}
    for name, layer in model.layers.items():
        if not isinstance(layer, RoutedLora):
            raise ValueError("only LoRA adapters can be exported to PEFT, this model has (IA)^3")
        if linear_only and not isinstance(layer.base, nn.Linear):
            raise ValueError(
                f"PEFT's Poly adapts nn.Linear only, {name} is a {type(layer.base).__name__}"
            )
        layers[name] = layer
    return layers


def _task_type(model: nn.Module) -> str | None:
    """PEFT's name of the kind of model, None where none fits.

    PEFT's models of the two kinds pass `input_ids` on by position, so neither fits a model whose
    main input is audio.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) != "input_ids":
        return None
    if getattr(config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    kinds = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    return "CAUSAL_LM" if type(model).__name__.endswith(kinds) else None


def _by_layer(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, dict[str, torch.Tensor]]:
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{path}: {key} is no tensor of PEFT's Poly")
        by_layer.setdefault(match[1], {})[match[2]] = tensor
    for layer, parts in by_layer.items():
        if len(parts) != 3:
            raise ValueError(f"{path}: {layer} must have A, B and logits, got {sorted(parts)}")
    return by_layer


def _write(
    model: PolyModel,
    layers: dict[str, RoutedLora],
    values: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    folder: Path,
) -> Path:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise FileExistsError(f"{folder} is not empty and holds no PEFT checkpoint to replace")
    folder.mkdir(parents=True, exist_ok=True)
    source = getattr(getattr(model.base_model, "config", None), "_name_or_path", None)
    described = {
        "base_model_name_or_path": source or None,
        "task_type": _task_type(model.base_model),
        "inference_mode": True,
        "target_modules": sorted(layers),
        **values,
    }
    save_file(
        {k: t.detach().cpu().clone().contiguous() for k, t in tensors.items()}, folder / TENSORS
    )
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder

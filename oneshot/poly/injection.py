"""Putting routed adapters into a model, in place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.context import Context
from oneshot.poly.layers import RoutedIa3, RoutedLayer, RoutedLora, features

ALL_LINEAR = "all-linear"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that can be adapted: `nn.Linear` or Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def find_targets(model: nn.Module, target_modules: Iterable[str]) -> dict[str, nn.Module]:
    """The layers to adapt, by name, in the order of the model.

    Raises:
        ValueError: A name matches nothing, or a layer cannot be adapted.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found: dict[str, nn.Module] = {}
    unmatched = set(target_modules)
    for name, module in model.named_modules():
        matched = {t for t in target_modules if name == t or name.endswith(f".{t}")}
        if ALL_LINEAR in target_modules and is_linear(module) and module is not output:
            matched.add(ALL_LINEAR)
        if not matched:
            continue
        unmatched -= matched
        _check_adaptable(name, module)
        found[name] = module
    if unmatched:
        raise ValueError(
            f"target_modules: no layer of {type(model).__name__} is called "
            f"{', '.join(map(repr, sorted(unmatched)))}"
        )
    return found


def group_name(layer: str, granularity: str) -> str:
    """The name of the routing group of a layer: layers of one name share a router.

    A block is the part of the path up to its first number ("model.layers.3"); a layer outside any
    block is a group of its own.
    """
    if granularity == "model":
        return ""
    parts = layer.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if granularity == "layer" or not numbers:
        return layer
    return ".".join(parts[: numbers[0] + 1])


def inject_layers(
    model: nn.Module, config: PolyConfig, context: Context
) -> tuple[dict[str, RoutedLayer], list[str]]:
    """Replaces every target by a routed layer around it.

    Returns:
        The routed layers by name, and the names of the routing groups.

    Raises:
        ValueError: Nothing to adapt, heads do not divide a dimension, or there are adapters
            already. The model is then as it was.
    """
    if any(isinstance(module, RoutedLayer) for module in model.modules()):
        raise ValueError("model already has routed adapters: unload them first")
    targets = find_targets(model, config.target_modules)
    for name, module in targets.items():
        _check_heads(name, module, config)
    groups = list(dict.fromkeys(group_name(name, config.granularity) for name in targets))
    kind = RoutedLora if config.adapter == "lora" else RoutedIa3
    layers: dict[str, RoutedLayer] = {}
    for name, module in targets.items():
        group = groups.index(group_name(name, config.granularity))
        layers[name] = kind(module, config, context, name, group)
        replace_module(model, name, layers[name])
    return layers, groups


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Sets the submodule `name` of a model."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _check_adaptable(name: str, module: nn.Module) -> None:
    if not is_linear(module):
        raise ValueError(
            f"target_modules: {name} is a {type(module).__name__}, only linear layers are adapted"
        )
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        raise ValueError(
            f"target_modules: {name} belongs to nn.MultiheadAttention, which reads its weight "
            f"without calling it"
        )
    if "experts" in name.split("."):
        raise ValueError(
            f"target_modules: {name} is an expert of a mixture: its input is a selection of "
            f"tokens, and nothing says of which tasks"
        )


def _check_heads(name: str, module: nn.Module, config: PolyConfig) -> None:
    d_in, d_out = features(module)
    dimensions = {"output": d_out} if config.adapter == "ia3" else {"input": d_in, "output": d_out}
    for side, size in dimensions.items():
        if size % config.heads:
            raise ValueError(
                f"heads must divide every adapted dimension, got heads {config.heads} and "
                f"{size} {side} features in {name}"
            )

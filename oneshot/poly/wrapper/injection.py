"""Putting routed adapters into a model, in place."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator

from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.layers import RoutedIa3, RoutedLayer, RoutedLora, features, is_linear
from oneshot.poly.wrapper.routing_context import RoutingContext

ALL_LINEAR = "all-linear"


def inject_layers(
    model: nn.Module, config: PolyConfig, context: RoutingContext
) -> tuple[dict[str, RoutedLayer], list[str]]:
    """Replaces every target by a routed layer around it.

    Returns:
        The routed layers by name, and the names of the routing groups.

    Raises:
        ValueError: Nothing to adapt, a named layer cannot be adapted, or there are adapters
            already. The model is then as it was.
    """
    if any(isinstance(module, RoutedLayer) for module in model.modules()):
        raise ValueError("model already has routed adapters: unload them first")
    targets = find_targets(model, config)
    groups = list(dict.fromkeys(group_name(name, config.granularity) for name in targets))
    kind = RoutedLora if config.adapter == "lora" else RoutedIa3
    foreign = foreign_layers(model)
    layers: dict[str, RoutedLayer] = {}
    for name, module in targets.items():
        group = groups.index(group_name(name, config.granularity))
        layers[name] = kind(module, config, context, name, group, foreign.get(name))
        replace_module(model, name, layers[name])
    return layers, groups


def find_targets(model: nn.Module, config: PolyConfig) -> dict[str, nn.Module]:
    """The layers to adapt, by name, in the order of the model.

    A layer that is named must be adaptable. "all-linear" leaves out what is not, with a warning.
    So do the last parts of names in the tower of another modality: its rows are no examples.

    Raises:
        ValueError: A name matches nothing, or a named layer cannot be adapted.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    foreign, shared = foreign_layers(model), _used_twice(model)
    targets: dict[str, nn.Module] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    unmatched = {*config.target_modules, *config.exclude_modules}
    for name, module in model.named_modules():
        excluding = {part for part in config.exclude_modules if f".{part}." in f".{name}."}
        unmatched -= excluding
        matched = {t for t in config.target_modules if name == t or name.endswith(f".{t}")}
        unmatched -= matched
        every = ALL_LINEAR in config.target_modules and is_linear(module) and module is not output
        if excluding or not (matched or every):
            continue
        unmatched.discard(ALL_LINEAR)
        problem = _problem(model, name, module, config, shared)
        if name in foreign and name not in matched:
            left_out[foreign[name]].append(name)
        elif problem and matched:
            raise ValueError(f"target_modules: {name} {problem}")
        elif problem:
            left_out[problem].append(name)
        else:
            targets[name] = module
    if unmatched:
        raise ValueError(_nothing_called(model, sorted(unmatched)))
    if not targets:
        raise ValueError(
            f"target_modules: nothing of {type(model).__name__} can be adapted: "
            f"{_summary(left_out)}"
        )
    _warn(model, config, targets, left_out)
    return targets


def foreign_layers(model: nn.Module) -> dict[str, str]:
    """Layers of a multimodal transformers model whose rows are images (frames, ...), by name.

    Such a model has a part with another main input. Then only its text decoder, and parts with the
    main input of the whole, see the rows of the batch.

    Returns:
        Names, and why nothing says of which task their rows are.
    """
    main = getattr(model, "main_input_name", None)
    parts = [
        (name, part)
        for name, part in model.named_modules()
        if name and hasattr(part, "main_input_name") and part is not model
    ]
    others = [name for name, part in parts if part.main_input_name != main]
    decoder = getattr(model, "get_decoder", lambda: None)()
    others = [name for name in others if model.get_submodule(name) is not decoder]
    if main is None or not others:
        return {}
    alike = [n for n, part in parts if part is decoder or part.main_input_name == main]
    # The wrapper around both ("model.") has the main input of the whole; it vouches for nothing.
    alike = [n for n in alike if not any(other.startswith(f"{n}.") for other in others)]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    reason = (
        f"lies outside the text model, beside {', '.join(others)}: its rows are no examples of "
        f"the batch"
    )
    return {
        name: reason
        for name, module in model.named_modules()
        if is_linear(module)
        and module is not output
        and not any(name.startswith(f"{part}.") for part in alike)
    }


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


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Sets the submodule `name` of a model."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _problem(
    model: nn.Module, name: str, module: nn.Module, config: PolyConfig, shared: set[nn.Module]
) -> str | None:
    """Why a layer cannot be adapted, or None."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if not is_linear(module):
        return f"is a {type(module).__name__}, only linear layers are adapted"
    if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        return (
            f"belongs to nn.{type(parent).__name__}, whose fused path reads its weight without "
            f"calling it"
        )
    if "experts" in name.split("."):
        return (
            "is an expert of a mixture: its input is a selection of tokens, and nothing says of "
            "which tasks"
        )
    if module in shared:
        return "is used under several names, of which one only would be adapted"
    d_in, d_out = features(module)
    dimensions = {"output": d_out} if config.adapter == "ia3" else {"input": d_in, "output": d_out}
    for side, size in dimensions.items():
        if size % config.heads:
            return f"has {size} {side} features, which heads {config.heads} do not divide"
    return None


def _used_twice(model: nn.Module) -> set[nn.Module]:
    """Modules that several others hold, or one under several names."""
    children = [m for parent in model.modules() for m in parent._modules.values() if m is not None]
    return {module for module, count in Counter(children).items() if count > 1}


def _nothing_called(model: nn.Module, names: list[str]) -> str:
    kinds = sorted({type(m).__name__ for m in model.modules() if "linear" in _kind(m).lower()})
    hint = f"; its linear-like layers are of the classes {', '.join(kinds)}" if kinds else ""
    if names == [ALL_LINEAR]:
        return (
            f"target_modules: {type(model).__name__} has no nn.Linear or Conv1D to adapt{hint}. "
            f"Quantised layers of other classes are not adapted"
        )
    fields = "target_modules or exclude_modules"
    return (
        f"{fields}: no layer of {type(model).__name__} is called {', '.join(map(repr, names))}; "
        f"the last parts of its linear layers' names are "
        f"{', '.join(sorted({n.rpartition('.')[2] for n, _ in _linear(model)})) or 'none'}"
    )


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _linear(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in model.named_modules() if is_linear(m))


def _summary(left_out: dict[str, list[str]]) -> str:
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in left_out.items()
    )


def _warn(
    model: nn.Module,
    config: PolyConfig,
    targets: dict[str, nn.Module],
    left_out: dict[str, list[str]],
) -> None:
    """Says what is left out, and which share of the weights of a mixture of experts is adapted."""
    if left_out:
        warnings.warn(f"not adapted: {_summary(left_out)}", UserWarning, stacklevel=6)
    experts = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3
        and min(parameter.shape) > 1
        and _own(model.get_submodule(name.rpartition(".")[0]))
    }
    if ALL_LINEAR not in config.target_modules or not experts:
        return
    adapted = sum(_size(m) for m in targets.values())
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linear = sum(_size(m) for _, m in _linear(model) if m is not output)
    total = linear + sum(experts.values())
    warnings.warn(
        f'"all-linear" adapts {adapted} of {total} weights of the linear maps '
        f"({adapted / total:.0%}): the experts of this model are 3-D parameters "
        f"({next(iter(experts))}, ...), which are not adapted",
        UserWarning,
        stacklevel=6,
    )


def _size(layer: nn.Module) -> int:
    d_in, d_out = features(layer)
    return d_in * d_out


def _own(module: nn.Module) -> bool:
    """Whether a module is no layer of torch itself (whose 3-D weights are convolutions)."""
    return not type(module).__module__.startswith("torch.nn")

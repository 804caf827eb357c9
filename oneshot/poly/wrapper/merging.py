"""Which weights a mixture can be folded into, and what they become."""

from __future__ import annotations

import torch
from torch import nn

from oneshot.poly.layers import RoutedLayer

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def owners(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every name of each parameter."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    return owners


def check_mergeable(layer: RoutedLayer, owners: dict[nn.Parameter, list[str]]) -> None:
    """Refuses, with ValueError, a weight that nothing can be added to."""
    base, weight = layer.base, layer.base._parameters.get("weight")
    problem = None
    if weight is None or _computes_otherwise(base):
        problem = f"of a {type(base).__name__} is not simply multiplied with its input"
    elif weight.dtype not in DTYPES:
        problem = f"is {weight.dtype}, which is not a floating-point type that can be added to"
    elif type(weight.data) is not torch.Tensor:
        problem = f"is a {type(weight.data).__name__}, which cannot be added to"
    elif weight.device.type == "meta":
        problem = "is offloaded: load the model whole to merge"
    elif others := [
        name
        for own, parameter in base.named_parameters()
        for name in owners[parameter]
        if name != f"{layer.name}.base.{own}"
    ]:
        problem = (
            f"is also {', '.join(others)}, which would change with it: untie them in a new model "
            f"and load the adapters into it, or leave {layer.name} out of target_modules"
        )
    if problem:
        raise ValueError(f"merge: the weight of {layer.name} {problem}")


def _computes_otherwise(base: nn.Module) -> bool:
    """Whether a subclass of nn.Linear has a forward of its own (quantised ones, FP8)."""
    return isinstance(base, nn.Linear) and type(base).forward is not nn.Linear.forward


def merged(layer: RoutedLayer, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weight (and bias) of a layer with one mixture folded in, in their dtype.

    Raises:
        ValueError: They overflow it.
    """
    result: dict[str, torch.Tensor] = {}
    for name, value in layer.merged(weights).items():
        old = getattr(layer.base, name)
        result[name] = value.to(old.dtype)
        if not torch.isfinite(result[name]).all() and torch.isfinite(old).all():
            raise ValueError(
                f"merge: the {name} of {layer.name} with the update overflows {old.dtype} (largest "
                f"magnitude {float(value.abs().max()):.3g}): merge into a model of a wider dtype"
            )
    return result

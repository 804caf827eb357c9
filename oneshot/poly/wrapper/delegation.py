"""What other libraries see of a PolyModel: its signature, its methods, its state_dict."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot.poly.model import PolyModel


def keep_adapters(
    model: PolyModel, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """Leaves the model's own weights out of a state_dict."""
    inside = f"{prefix}base_model."
    own = {f"{inside}{name}" for name in model.adapter_names()}
    for name in [n for n in state if n.startswith(inside) and n not in own]:
        del state[name]


def allow_adapters_alone(model: PolyModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Fills the model's own weights into a state_dict to load, so that they stay as they are."""
    inside = f"{prefix}base_model."
    own = set(model.adapter_names())
    for name, tensor in model.base_model.state_dict().items():
        if name not in own:
            state.setdefault(f"{inside}{name}", tensor)


@functools.cache
def means_something_else(base: type) -> frozenset[str]:
    """Methods of transformers that would act on the model inside as if it had no adapters."""
    mixins = ("PeftAdapterMixin", "PushToHubMixin")
    names = {"from_pretrained", "save_pretrained", "push_to_hub"}
    for parent in base.__mro__:
        if parent.__name__ in mixins:
            names |= {name for name in vars(parent) if not name.startswith("_")}
    return frozenset(names)


@functools.cache
def class_around(base: Any, poly_model: Any) -> type:
    """A subclass of `poly_model`, PolyModel, whose forward shows the arguments of the model inside.

    transformers' Trainer reads them from the class: which columns of a data set it keeps, and
    which are labels.
    """

    def forward(self: Any, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
        return poly_model.forward(self, *args, task_ids=task_ids, **kwargs)

    forward.__doc__ = poly_model.forward.__doc__
    forward.__signature__ = _with_task_ids(base.forward)  # type: ignore[attr-defined]
    return type(f"Poly{base.__name__}", (poly_model,), {"forward": forward})


def _with_task_ids(forward: Any) -> inspect.Signature:
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    task_ids = inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    named = parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - bool(named), task_ids)
    return signature.replace(parameters=parameters)

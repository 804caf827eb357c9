"""Which rows of a batch belong to which mixture, while a forward pass runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Routing:
    """The routing of one batch.

    Attributes:
        weights: [groups, U, heads, skills].
        rows: int64 [B], the mixture of each example; [B, T], of each token of packed sequences; or
            None, where every row of every layer takes the only mixture.
        generating: Whether this is a generation: it mixes once and not at every token, and a layer
            may see each example several times in a row (beams, samples).
        mixed: Mixed adapters of each layer, stored during a generation.
        weights_read: Layers whose weight was read from outside in this pass.
        called: Layers that were called in this pass.
    """

    weights: torch.Tensor
    rows: torch.Tensor | None
    generating: bool = False
    mixed: dict[str, Any] = field(default_factory=dict)
    weights_read: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    _copies: dict[Any, torch.Tensor] = field(default_factory=dict, init=False)

    def weights_of(self, group: int, x: torch.Tensor) -> torch.Tensor:
        """Weights [U, heads, skills] of a group of layers, on the device of their input."""
        return self._on(x.device, "weights", self.weights)[group]

    def rows_of(self, x: torch.Tensor, layer: str) -> torch.Tensor | None:
        """The mixture of each row of `x`, shaped like `x` without its features, or [B].

        Args:
            x: Input of a layer, [B', T, d] or [N, d].
            layer: Its name, for the message.

        Returns:
            int64 indices on the device of `x`; None where there is one mixture for everything.

        Raises:
            ValueError: The rows of `x` cannot be those of this batch.
        """
        if self.rows is None:
            return None
        rows = self._on(x.device, "rows", self.rows)
        lead = x.shape[:-1]
        if rows.dim() == 2:
            if lead == rows.shape:
                return rows
            if x.dim() == 2 and lead[0] == rows.numel():
                return rows.flatten()
            raise ValueError(
                f"{layer}: task_ids for each token have the shape {list(rows.shape)}, "
                f"the input of the layer has {list(lead)}"
            )
        examples = rows.shape[0]
        if lead[0] == examples:
            return rows
        # A batch of which every token is a row (2-D) or every example stands several times.
        if examples and lead[0] % examples == 0 and (self.generating or x.dim() == 2):
            return rows.repeat_interleave(lead[0] // examples)
        raise ValueError(
            f"{layer}: task_ids name {examples} examples, the input of the layer has "
            f"{lead[0]} ({list(x.shape)})"
        )

    def _on(self, device: torch.device, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on a device: copied once for each, where a model lies on several."""
        if tensor.device == device:
            return tensor
        key = (name, device, torch.is_grad_enabled())
        if key not in self._copies:
            self._copies[key] = tensor.to(device)
        return self._copies[key]


class RoutingContext:
    """Where the layers of one model find the routing of the pass they are in.

    Each thread sees its own passes only. (A ContextVar would do the same for asyncio tasks, but
    torch.compile cannot trace one.)
    """

    def __init__(self) -> None:
        self._thread = threading.local()
        self._open: list[Routing] = []

    def __reduce__(self) -> tuple[type[RoutingContext], tuple[()]]:
        return RoutingContext, ()  # a copied model is in no pass

    @property
    def current(self) -> Routing | None:
        """The routing of the pass that this thread is in."""
        routing: Routing | None = getattr(self._thread, "routing", None)
        return routing

    def require(self) -> Routing:
        """The current routing.

        Raises:
            RuntimeError: There is none.
        """
        routing = self.current
        if routing is None and _in_device_backward() and len(self._open) == 1:
            # Autograd recomputes a checkpointed block in a thread of the device.
            routing = self._open[0]
        if routing is None:
            raise RuntimeError(
                "no routing here: call the PolyModel and not the model inside it, or do it inside "
                "`with poly_model.routing(task_ids):` (the backward pass of your own activation "
                "checkpointing included)"
            )
        return routing

    @contextmanager
    def use(self, routing: Routing) -> Iterator[None]:
        """Makes `routing` the current one of this thread inside the block."""
        before, self._thread.routing = self.current, routing
        self._open.append(routing)
        try:
            yield
        finally:
            self._open.remove(routing)
            self._thread.routing = before


class RoutedCheckpoint:
    """A checkpoint function that finds the same routing again when it recomputes.

    The weights travel as an argument: the reentrant kind gives gradients to arguments only, and its
    recomputation would otherwise run backward through the router once for each block. A class and
    not a closure, so that a copied model gets a copy with its own context.

    Attributes:
        context: Where the routing is.
        original: The checkpoint function that transformers has put into the block.
    """

    def __init__(self, context: RoutingContext, original: Any) -> None:
        self.context = context
        self.original = original

    def __call__(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Calls the original, with the routing of now."""
        routing = self.context.current
        if routing is None:
            return self.original(function, *arguments, **options)

        def again(weights: torch.Tensor, *inner: Any, **named: Any) -> Any:
            with self.context.use(replace(routing, weights=weights)):
                return function(*inner, **named)

        weights = routing.weights
        if torch.is_grad_enabled() and not weights.requires_grad:
            # The reentrant kind gives no gradient at all when no argument asks for one.
            weights = weights.detach().requires_grad_()
        return self.original(again, weights, *arguments, **options)


def _in_device_backward() -> bool:
    """Whether this thread runs a backward pass; those of devices are threads of autograd."""
    return bool(torch._C._current_graph_task_id() != -1)

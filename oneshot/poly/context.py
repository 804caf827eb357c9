"""Which rows of a batch belong to which mixture, while a forward pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Routing:
    """The routing of one batch.

    Attributes:
        weights: [groups, U, heads, skills].
        rows: int64 [B], the mixture of each example; or [B, T], of each token of packed sequences.
        repeats: Whether a layer may see each example several times in a row (beams, samples).
        mixed: Mixed adapters of each layer, kept by a generation so that it mixes once and not at
            every token.
    """

    weights: torch.Tensor
    rows: torch.Tensor
    repeats: bool = False
    mixed: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """The mixture of each row of `x`, shaped like `x` without its features, or [B].

        Args:
            x: Input of a layer, [B', T, d] or [N, d].
            layer: Its name, for the message.

        Raises:
            ValueError: The rows of `x` cannot be those of this batch.
        """
        lead = x.shape[:-1]
        if self.rows.dim() == 2:
            if lead == self.rows.shape:
                return self.rows
            if x.dim() == 2 and lead[0] == self.rows.numel():
                return self.rows.flatten()
            raise ValueError(
                f"{layer}: task_ids for each token have the shape {list(self.rows.shape)}, "
                f"the input of the layer has {list(lead)}"
            )
        examples = self.rows.shape[0]
        times, rest = divmod(lead[0], examples)
        # A batch of which every token is a row (2-D) or every example stands several times.
        if rest == 0 and (times == 1 or self.repeats or x.dim() == 2):
            return self.rows if times == 1 else self.rows.repeat_interleave(times)
        raise ValueError(
            f"{layer}: task_ids name {examples} examples, the input of the layer has "
            f"{lead[0]} ({list(x.shape)})"
        )


class Context:
    """Where the layers of one model find the routing of the pass they are in."""

    def __init__(self) -> None:
        self._current: Routing | None = None

    def require(self) -> Routing:
        """The current routing.

        Raises:
            RuntimeError: There is none.
        """
        if self._current is None:
            raise RuntimeError(
                "no routing here: call the PolyModel and not the model inside it, or do it inside "
                "`with poly_model.routing(task_ids):` (the backward pass of your own activation "
                "checkpointing included)"
            )
        return self._current

    @property
    def active(self) -> bool:
        """Whether a pass is going on."""
        return self._current is not None

    @contextmanager
    def use(self, routing: Routing) -> Iterator[None]:
        """Makes `routing` the current one inside the block."""
        before, self._current = self._current, routing
        try:
            yield
        finally:
            self._current = before

    def checkpointed(self, checkpoint: Any) -> Any:
        """A checkpoint function that finds the same routing again when it recomputes.

        The weights travel as an argument: the reentrant kind gives gradients to arguments only,
        and its recomputation would otherwise run backward through the router once for each block.
        """

        def run(function: Any, *arguments: Any, **options: Any) -> Any:
            routing = self._current
            if routing is None:
                return checkpoint(function, *arguments, **options)

            def again(weights: torch.Tensor, *inner: Any, **named: Any) -> Any:
                with self.use(replace(routing, weights=weights)):
                    return function(*inner, **named)

            weights = routing.weights
            if torch.is_grad_enabled() and not weights.requires_grad:
                # The reentrant kind gives no gradient at all when no argument asks for one.
                weights = weights.detach().requires_grad_()
            return checkpoint(again, weights, *arguments, **options)

        run.poly_context = self  # type: ignore[attr-defined]
        run.poly_original = checkpoint  # type: ignore[attr-defined]
        return run

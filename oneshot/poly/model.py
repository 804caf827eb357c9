"""A model with routed adapters: calling it, and what can be done to its inventory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.context import Context, Routing
from oneshot.poly.injection import inject_layers, replace_module
from oneshot.poly.router import Router

TaskIds = int | Sequence[int] | torch.Tensor
"""One task for the whole batch, one for each example [B] or [B, 1], or one for each token [B, T] of
packed sequences."""


def inject(model: nn.Module, config: PolyConfig) -> PolyModel:
    """Puts routed adapters into a model, in place, and freezes its own weights.

    Args:
        model: Any module with linear layers, such as a transformers model.
        config: Adapters and routing.

    Returns:
        The model to call, train, save and generate with.

    Raises:
        ValueError: A target is missing or cannot be adapted, or heads do not divide a dimension.
    """
    return PolyModel(model, config)


class PolyModel(nn.Module):
    """A model whose linear layers carry an inventory of adapters, mixed for each task.

    `forward` and `generate` take `task_ids` beside the arguments of the model inside. Attributes
    that it does not have itself are those of that model.

    Attributes:
        base_model: The model inside.
        poly_config: Adapters and routing.
        layers: The routed layers by name.
        groups: Names of the routing groups.
        router: The router.
    """

    def __init__(self, model: nn.Module, config: PolyConfig) -> None:
        super().__init__()
        self.context = Context()
        model.requires_grad_(False)
        self.layers, self.groups = inject_layers(model, config, self.context)
        self.base_model = model
        self.poly_config = config
        self.router = Router(config, len(self.groups))
        self.router.to(next(iter(self.layers.values())).weight.device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    # ---- calling it -----------------------------------------------------------------------------

    def forward(self, *args: Any, task_ids: TaskIds | None = None, **kwargs: Any) -> Any:
        """The model inside, with the adapters of the given tasks.

        Args:
            *args: Arguments of the model inside.
            task_ids: See `TaskIds`; None mixes all skills alike, with a warning. Inside
                `with model.routing(...)` it may be left out.
            **kwargs: Arguments of the model inside.

        Raises:
            ValueError: A negative or unknown task, or another number of tasks than examples.
        """
        if task_ids is None and self.context.active:
            return self.base_model(*args, **kwargs)
        with self.routing(task_ids, batch=_batch_size(args, kwargs)):
            return self.base_model(*args, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, task_ids: TaskIds | None = None, **kwargs: Any) -> Any:
        """`generate` of the model inside: beams and several samples an example included.

        Args:
            *args: Arguments of its `generate`.
            task_ids: One task for all prompts or one for each.
            **kwargs: Arguments of its `generate`.
        """
        with self.routing(task_ids, batch=_batch_size(args, kwargs), generating=True):
            return self.base_model.generate(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def routing(
        self, task_ids: TaskIds | None, *, batch: int | None = None, generating: bool = False
    ) -> Iterator[Routing]:
        """Routes whatever runs inside the block; for code that calls the model inside directly.

        Args:
            task_ids: See `TaskIds`; None mixes all skills alike, with a warning.
            batch: Number of examples; None takes it from task_ids.
            generating: Layers may then see each example several times in a row.
        """
        rows = self._task_rows(task_ids, batch)
        device = self._device()
        if rows is None:
            weights = self.router.average()
            where = torch.zeros(batch or 1, dtype=torch.int64)
        else:
            if rows.dim() == 2 and generating:
                raise ValueError("task_ids for each token cannot be generated with: name examples")
            if rows.dim() == 2 and self.training and self.poly_config.noise == "per_example":
                raise ValueError(
                    'task_ids for each token name no examples, which noise "per_example" needs'
                )
            weights, where = self.router(rows.flatten())
            where = where.view(rows.shape)
        weights, where = weights.to(device), where.to(device)
        self._keep_routing_at_recomputation()
        with self.context.use(found := Routing(weights, where, repeats=generating)):
            yield found

    def _task_rows(self, task_ids: TaskIds | None, batch: int | None) -> torch.Tensor | None:
        """Checked task ids as [B] or [B, T]; None when there are none."""
        if task_ids is None:
            if self.poly_config.inventory_size > 1:
                warnings.warn(
                    "task_ids is missing: every skill weighs the same", RuntimeWarning, stacklevel=5
                )
            return None
        ids = torch.as_tensor(task_ids)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"task_ids must be integers, got {ids.dtype}")
        ids = ids.cpu().long()  # checked and counted there: one synchronisation a pass at most
        tasks = self.poly_config.tasks
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < tasks:
            wrong = sorted({int(i) for i in ids.flatten() if not 0 <= i < tasks})
            raise ValueError(f"task_ids must be in [0, {tasks}), got {wrong[:5]}")
        if ids.dim() == 2 and ids.shape[1] == 1:
            ids = ids[:, 0]
        if ids.dim() == 0 or (ids.shape == (1,) and batch is not None):
            ids = ids.reshape(1).expand(batch or 1)
        if ids.dim() > 2 or (batch is not None and ids.shape[0] != batch):
            raise ValueError(
                f"task_ids must be one integer, [{batch}], [{batch}, 1] or [{batch}, tokens], "
                f"got the shape {list(ids.shape)}"
            )
        return ids

    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).weight.device

    def _keep_routing_at_recomputation(self) -> None:
        """Wraps the checkpoint functions that transformers put into its blocks since last time."""
        if not self.training:
            return
        for module in self.base_model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and not hasattr(function, "poly_context"):
                module._gradient_checkpointing_func = self.context.checkpointed(function)

    # ---- training it ----------------------------------------------------------------------------

    def param_groups(
        self,
        lr: float = 1e-3,
        router_lr: float = 0.1,
        weight_decay: float = 0.0,
        router_weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Parameter groups of the two-speed learning rate that both papers rely on.

        Args:
            lr: Learning rate of the adapters.
            router_lr: Learning rate of the router's logits.
            weight_decay: Weight decay of the adapters.
            router_weight_decay: Weight decay of the logits. (The reference code leaves AdamW's
                default of 0.01 on them, which pulls them to uniform routing.)

        Returns:
            Groups with a "name", without frozen parameters and without empty groups.
        """
        adapters = [p for layer in self.layers.values() for p in layer.inventory().values()]
        groups = [
            {"name": "adapters", "params": adapters, "lr": lr, "weight_decay": weight_decay},
            {
                "name": "router",
                "params": list(self.router.parameters()),
                "lr": router_lr,
                "weight_decay": router_weight_decay,
            },
        ]
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]  # type: ignore[attr-defined]
        return [group for group in groups if group["params"]]

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is not the model's own: "router.logits", "<layer>.lora_a", ..."""
        found = {f"router.{name}": p for name, p in self.router.named_parameters()}
        for layer in self.layers.values():
            found.update({f"{layer.name}.{name}": p for name, p in layer.inventory().items()})
        return found

    # ---- changing it ----------------------------------------------------------------------------

    @torch.no_grad()
    def resize(self, tasks: int, *, keep: Sequence[int] | None = None) -> None:
        """Gives the router other tasks; the inventory stays.

        Args:
            tasks: New number of tasks.
            keep: Old tasks whose logits become rows 0, 1, ...; by default all that fit in. The
                other rows are new, U(-1e-3, 1e-3). `resize(1, keep=[])` is how the papers begin
                the adaptation to a new task.

        Raises:
            ValueError: Private adapters: a new task has none. Or `keep` does not fit.
        """
        config = self.poly_config
        if config.routing == "private":
            raise ValueError(
                "private adapters know no new task: average some of them with soup(tasks)"
            )
        kept = list(range(min(tasks, config.tasks)) if keep is None else keep)
        if tasks < 1 or len(kept) > tasks or any(not 0 <= t < config.tasks for t in kept):
            raise ValueError(
                f"resize: {tasks} tasks must be positive and hold keep={kept}, each in "
                f"[0, {config.tasks})"
            )
        if self.router.logits is not None:
            old = self.router.logits
            new = self.router.fresh_logits(tasks).to(old)
            new[:, : len(kept)] = old[:, kept]
            self.router.logits = nn.Parameter(new, requires_grad=old.requires_grad)
        self._reconfigure(tasks=tasks)

    def freeze_inventory(self, frozen: bool = True) -> None:
        """Leaves only the router to train (Poly-z, MHR-z); `frozen=False` is the way back."""
        if frozen and self.router.logits is None:
            raise ValueError(
                f"freeze_inventory: routing {self.poly_config.routing!r} has no parameter, so "
                f"nothing would be left to train"
            )
        for layer in self.layers.values():
            for parameter in layer.inventory().values():
                parameter.requires_grad_(not frozen)

    def average(self) -> None:
        """Replaces the inventory by its mean, one adapter for every task (Poly-mu, MHR-mu).

        A and B are averaged separately. Training the one adapter is what training all copies under
        constant weights 1 / K does, at 1 / K of the memory (their gradients are all equal).
        """
        self.soup(range(self.poly_config.inventory_size))

    def soup(self, skills: Sequence[int] | range) -> None:
        """Replaces the inventory by the mean of some skills (AdapterSoup, with private adapters).

        Raises:
            ValueError: No skill, or an unknown one.
        """
        chosen = list(skills)
        if not chosen or any(not 0 <= k < self.poly_config.inventory_size for k in chosen):
            raise ValueError(
                f"skills must be some of [0, {self.poly_config.inventory_size}), got {chosen}"
            )
        for layer in self.layers.values():
            layer.average_of(chosen)
        self._single()

    def collapse(self, task: int) -> None:
        """Replaces the inventory by the mixture of one task: a plain LoRA for every task."""
        weights = self.task_weights(task)
        for layer in self.layers.values():
            layer.collapse(weights[layer.group])
        self._single()

    def merge(self, task: int) -> nn.Module:
        """Folds the mixture of one task into the weights of the model and returns it, unloaded.

        Raises:
            ValueError: A weight that nothing can be added to (a quantised one).
        """
        weights = self.task_weights(task)
        for layer in self.layers.values():
            if not layer.weight.is_floating_point():
                raise ValueError(
                    f"merge: the weight of {layer.name} is {layer.weight.dtype}, which is not a "
                    f"floating-point type"
                )
        for layer in self.layers.values():
            layer.merge(weights[layer.group])
        return self.unload()

    def unload(self) -> nn.Module:
        """Takes the adapters out again and returns the model as it was before."""
        for name, layer in self.layers.items():
            replace_module(self.base_model, name, layer.base)
        for module in self.base_model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and getattr(function, "poly_context", None) is self.context:
                module._gradient_checkpointing_func = function.poly_original
        return self.base_model

    @torch.no_grad()
    def task_weights(self, task: int) -> torch.Tensor:
        """Routing of one task, without noise: [groups, heads, skills].

        Raises:
            ValueError: An unknown task.
        """
        rows = self._task_rows(task, 1)
        assert rows is not None
        return self.router.weights()[:, int(rows[0])]

    def _single(self) -> None:
        """After the inventory has become one adapter in each head."""
        self.router.logits = None
        self._reconfigure(routing="uniform", skills=1, noise="none")

    def _reconfigure(self, **changes: Any) -> None:
        self.poly_config = dataclasses.replace(self.poly_config, **changes)
        self.router.config = self.poly_config
        for layer in self.layers.values():
            layer.config = self.poly_config


def _batch_size(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Examples in the call: the first dimension of its first tensor."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return None

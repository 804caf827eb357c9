"""A model with routed adapters: calling it, and what can be done to its inventory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oneshot.poly.config import PolyConfig
from oneshot.poly.layers import RoutedLayer, replace_value
from oneshot.poly.router import Router
from oneshot.poly.wrapper import delegation
from oneshot.poly.wrapper.injection import inject_layers, replace_module
from oneshot.poly.wrapper.merging import check_mergeable, merged, owners
from oneshot.poly.wrapper.routing_context import RoutedCheckpoint, Routing, RoutingContext
from oneshot.poly.wrapper.task_ids import TaskIds, as_integers, check_generation

if TYPE_CHECKING:
    from pathlib import Path


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
    that it does not have itself are those of that model, except the methods of transformers that
    save, publish or change adapters. It is in training mode if that model is, and its
    `state_dict` holds adapters and router only: what `save` writes.

    After `merge` and `unload` it raises RuntimeError on every use.

    Attributes:
        base_model: The model inside.
        poly_config: Adapters and routing.
        groups: Names of the routing groups.
        router: The router.
    """

    def __init__(self, model: nn.Module, config: PolyConfig) -> None:
        super().__init__()
        self.context = RoutingContext()
        layers, self.groups = inject_layers(model, config, self.context)
        self._layers: dict[str, RoutedLayer] | None = layers
        self._gone = ""
        own = {p for layer in layers.values() for p in layer.inventory().values()}
        self._unfrozen = [p for p in model.parameters() if p.requires_grad and p not in own]
        for parameter in self._unfrozen:
            parameter.requires_grad_(False)
        self.base_model = model
        self.poly_config = config
        first = next(iter(next(iter(layers.values())).inventory().values()))
        self.router = Router(config, len(self.groups)).to(first)
        self.training = self.router.training = model.training
        self.register_state_dict_post_hook(delegation.keep_adapters)
        self.register_load_state_dict_pre_hook(delegation.allow_adapters_alone)
        self.__class__ = delegation.class_around(type(model), PolyModel)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
        kind: Any = type(self.base_model)
        if name in delegation.means_something_else(kind):
            raise AttributeError(
                f"{name} of {kind.__name__} knows nothing of routed adapters; "
                f"use oneshot.poly (save, load, save_peft, merge), or base_model after unload()"
            )
        return getattr(self.base_model, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made for the class of the model inside, so it has no name to import.
        return _empty, (type(self.base_model),), self.__dict__

    @property
    def layers(self) -> dict[str, RoutedLayer]:
        """The routed layers by name.

        Raises:
            RuntimeError: After `merge` and `unload`.
        """
        self._check_alive()
        assert self._layers is not None
        return self._layers

    def _check_alive(self) -> None:
        if self._layers is None:
            raise RuntimeError(
                f"this PolyModel was left behind by {self._gone}, which returned the model without "
                f"adapters: use that, or inject or load into it again"
            )

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes adapters and router, as `oneshot.poly.save` does; `load` reads them.

        Args:
            folder: See `save`.
            **options: Those of transformers, such as `safe_serialization`, play no part.

        Raises:
            ValueError: `push_to_hub` is requested, which is not implemented.
        """
        from oneshot.poly.storage import save

        if options.get("push_to_hub"):
            raise ValueError("push_to_hub must be False: only a folder is written")
        save(self, folder)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, adapters and router included.

        Args:
            only_trainable: Leave out frozen ones.
            exclude_embeddings: Leave out those of nn.Embedding.
        """
        left_out = {
            parameter
            for module in self.modules()
            if exclude_embeddings and isinstance(module, nn.Embedding)
            for parameter in module.parameters()
        }
        return sum(
            p.numel()
            for p in self.parameters()
            if p not in left_out and (p.requires_grad or not only_trainable)
        )

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
        self._check_alive()
        if task_ids is None and self.context.current is not None:
            return self.base_model(*args, **kwargs)
        with self.routing(task_ids, batch=self._batch_size(args, kwargs)):
            return self.base_model(*args, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, task_ids: TaskIds | None = None, **kwargs: Any) -> Any:
        """`generate` of the model inside: beams and several samples an example included.

        Args:
            *args: Arguments of its `generate`.
            task_ids: One task for all prompts or one for each; inside
                `with model.routing(...)` it may be left out.
            **kwargs: Arguments of its `generate`.
        """
        self._check_alive()
        batch, around = self._batch_size(args, kwargs), self.context.current
        if task_ids is None and around is not None:
            check_generation(around.rows, batch)
            with self.context.use(replace(around, generating=True, mixed={})):
                return self.base_model.generate(*args, **kwargs)  # type: ignore[operator]
        with self.routing(task_ids, batch=batch, generating=True):
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
        self._check_alive()
        rows = self._task_rows(task_ids, batch)
        each = self.training and self.poly_config.noise == "per_example"
        where: torch.Tensor | None = None
        if rows is None:
            weights = self.router.average()
        elif rows.dim() == 0 and not (each and batch):
            weights, _ = self.router(rows.view(1))
        else:
            rows = rows.expand(batch) if rows.dim() == 0 and batch else rows
            if generating:
                check_generation(rows, batch)
            if rows.dim() == 2 and each:
                raise ValueError(
                    'task_ids for each token name no examples, which noise "per_example" needs'
                )
            weights, where = self.router(rows.flatten())
            where = where.view(rows.shape)
        if torch.is_grad_enabled():
            self._keep_routing_at_recomputation()
        with self.context.use(routing := Routing(weights, where, generating=generating)):
            yield routing
        if bypassed := routing.weights_read - routing.called:
            warnings.warn(
                f"the weight of {', '.join(sorted(bypassed)[:3])} was read and the layer not "
                f"called: if the model computes with the weight itself, adapters do nothing there. "
                f"Leave the layer out with exclude_modules",
                RuntimeWarning,
                stacklevel=7,  # the caller of forward
            )

    def _task_rows(self, task_ids: TaskIds | None, batch: int | None) -> torch.Tensor | None:
        """Checked task ids as [], [B] or [B, T]; None when there are none."""
        if task_ids is None:
            if self.poly_config.inventory_size > 1:
                warnings.warn(
                    "task_ids is missing: every skill weighs the same", RuntimeWarning, stacklevel=8
                )
            return None
        ids = as_integers(task_ids)
        tasks = self.poly_config.tasks
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < tasks:
            wrong = sorted({int(i) for i in ids.flatten() if not 0 <= i < tasks})
            raise ValueError(f"task_ids must be in [0, {tasks}), got {wrong[:5]}")
        if ids.dim() == 2 and ids.shape[1] == 1:
            ids = ids[:, 0]
        if ids.shape == (1,) and batch is not None:
            ids = ids[0]
        if ids.dim() > 2 or (ids.dim() and batch is not None and ids.shape[0] != batch):
            raise ValueError(
                f"task_ids must be one integer, [{batch}], [{batch}, 1] or [{batch}, tokens], "
                f"got the shape {list(ids.shape)}"
            )
        return ids

    def _batch_size(self, args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
        """Examples in the call: the first dimension of its main input.

        That is the argument that the model calls so, or one of the usual names, or the first
        tensor of several dimensions that is no table of positions.
        """
        main = getattr(self.base_model, "main_input_name", "input_ids")
        usual = ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "attention_mask")
        others = [value for name, value in kwargs.items() if name not in _WITHOUT_BATCH]
        for value in (*args, *(kwargs.get(name) for name in (main, *usual)), *others):
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                return int(value.shape[0])
        return None

    def _keep_routing_at_recomputation(self) -> None:
        """Wraps the checkpoint functions that transformers put into its blocks since last time."""
        for module in self.base_model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if function is not None and not isinstance(function, RoutedCheckpoint):
                wrapped: Any = RoutedCheckpoint(self.context, function)
                module._gradient_checkpointing_func = wrapped

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

    def adapter_names(self) -> Iterator[str]:
        """Names of the adapters inside the model inside."""
        for layer in self.layers.values():
            yield from (f"{layer.name}.{name}" for name in layer.parameter_names)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is not the model's own: "router.logits", "<layer>.lora_a", ..."""
        parameters = {f"router.{name}": p for name, p in self.router.named_parameters()}
        for layer in self.layers.values():
            parameters.update({f"{layer.name}.{name}": p for name, p in layer.inventory().items()})
        return parameters

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
        retained = list(range(min(tasks, config.tasks)) if keep is None else keep)
        if tasks < 1 or len(retained) > tasks or any(not 0 <= t < config.tasks for t in retained):
            raise ValueError(
                f"resize: {tasks} tasks must be positive and hold keep={retained}, each in "
                f"[0, {config.tasks})"
            )
        if self.router.logits is not None:
            old = self.router.logits
            new = self.router.fresh_logits(tasks).to(old)
            new[:, : len(retained)] = old[:, retained]
            replace_value(old, new)
        self._reconfigure(tasks=tasks)

    def freeze_inventory(self, frozen: bool = True) -> None:
        """Leaves only the router to train (Poly-z, MHR-z); `frozen=False` is the way back.

        Raises:
            ValueError: Nothing would train: routing without parameters, one skill, or a new
                inventory, of which every mixture is the same.
        """
        if frozen and self.router.logits is None:
            raise ValueError(
                f"freeze_inventory: routing {self.poly_config.routing!r} has no parameter, so "
                f"nothing would be left to train"
            )
        if frozen and not any(layer.skills_differ() for layer in self.layers.values()):
            raise ValueError(
                "freeze_inventory: every mixture of this inventory is the same (one skill, or "
                "adapters that were not trained), so the router would get no gradient; load or "
                "train an inventory first"
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

    @torch.no_grad()
    def merge(self, task: int) -> nn.Module:
        """Folds the mixture of one task into the weights of the model and returns it, unloaded.

        Raises:
            ValueError: A weight that nothing can be added to: quantised, offloaded, computed from
                others, shared with another layer; or the sum overflows its dtype. The model is
                then as it was.
        """
        weights = self.task_weights(task)
        names = owners(self.base_model)
        for layer in self.layers.values():
            check_mergeable(layer, names)
            merged(layer, weights[layer.group])  # an overflow, before anything changes
        for layer in self.layers.values():
            for name, value in merged(layer, weights[layer.group]).items():
                getattr(layer.base, name).copy_(value)
        return self._leave(f"merge({task})")

    def unload(self) -> nn.Module:
        """Takes the adapters out again and returns the model as it was before."""
        return self._leave("unload()")

    def _leave(self, how: str) -> nn.Module:
        for name, layer in self.layers.items():
            replace_module(self.base_model, name, layer.base)
        for module in self.base_model.modules():
            function = module.__dict__.get("_gradient_checkpointing_func")
            if isinstance(function, RoutedCheckpoint) and function.context is self.context:
                module._gradient_checkpointing_func = function.original
        for parameter in self._unfrozen:
            parameter.requires_grad_(True)
        self._layers, self._gone = None, how
        return self.base_model

    @torch.no_grad()
    def task_weights(self, task: int) -> torch.Tensor:
        """Routing of one task, without noise: [groups, heads, skills].

        Raises:
            ValueError: An unknown task.
        """
        self._check_alive()
        rows = self._task_rows(task, 1)
        assert rows is not None
        return self.router.weights()[:, int(rows)]

    def _single(self) -> None:
        """After the inventory has become one adapter in each head."""
        self.router.logits = None
        self._reconfigure(routing="uniform", skills=1, noise="none")

    def _reconfigure(self, **changes: Any) -> None:
        self.poly_config = dataclasses.replace(self.poly_config, **changes)
        self.router.config = self.poly_config
        for layer in self.layers.values():
            layer.config = self.poly_config


_WITHOUT_BATCH = {"position_ids", "cache_position", "logits_to_keep", "num_items_in_batch"}


def _empty(base: type) -> PolyModel:
    """What unpickling and copying fill."""
    kind: Any = delegation.class_around(base, PolyModel)
    made: PolyModel = kind.__new__(kind)
    return made

"""Linear layers with an inventory of adapters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from oneshot import ops
from oneshot.poly.config import PolyConfig
from oneshot.poly.wrapper.routing_context import RoutingContext


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that can be adapted: `nn.Linear` or Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def features(layer: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear layer (`nn.Linear` or transformers' Conv1D)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0], weight.shape[1]  # Conv1D: [in, out]


class RoutedLayer(nn.Module):
    """A linear layer and its adapters.

    Args:
        base: The layer as it was.
        config: Adapters and routing.
        context: Where the routing of a pass is.
        name: Its path in the model.
        group: Its row in the router.
        foreign: Why the rows of its input are no examples of the batch; None if they are.
    """

    parameter_names: tuple[str, ...] = ()
    """Names of the parameters, each [heads, skills, ...]."""

    def __init__(
        self,
        base: nn.Module,
        config: PolyConfig,
        context: RoutingContext,
        name: str,
        group: int,
        foreign: str | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.context = context
        self.name = name
        self.group = group
        self.foreign = foreign
        self.in_features, self.out_features = features(base)
        self.training = base.training

    # Some models look at a layer's weight to choose a dtype, so it must exist.
    @property
    def weight(self) -> torch.Tensor:
        """Weight of the layer as it was."""
        routing = self.context.current
        if routing is not None:
            routing.weights_read.add(self.name)
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias of the layer as it was."""
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def inventory(self) -> dict[str, nn.Parameter]:
        """The adapters by name, each [heads, skills, ...]."""
        # Replicas of nn.DataParallel have tensors under these names and no parameters.
        return {name: getattr(self, name) for name in self.parameter_names}

    def mix(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The adapters mixed with weights [U, heads, skills], heads side by side."""
        raise NotImplementedError

    def route(
        self, x: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None, torch.Tensor | None]:
        """What the op takes in this pass.

        Returns:
            The inventory and weights [U, heads, skills], or mixtures made before and None; and the
            mixture of each row of `x`.
        """
        routing = self.context.require()
        routing.called.add(self.name)
        if self.foreign is not None and routing.rows is not None:
            raise ValueError(
                f"task_ids must be one integer for the whole batch, got one for each example: "
                f"{self.name} {self.foreign}. Or leave the layer out with exclude_modules"
            )
        rows = routing.rows_of(x, self.name)
        weights = routing.weights_of(self.group, x)
        if not routing.generating:
            return tuple(self.inventory().values()), weights, rows
        # A generation calls the layer at every token with the same weights.
        if self.name not in routing.mixed:
            routing.mixed[self.name] = self.mix(weights)
        return routing.mixed[self.name], None, rows

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """An empty parameter where the layer computes: float64 in a float64 layer, else float32."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        device: Any = weight.device
        hook = getattr(self.base, "_hf_hook", None)
        if device.type == "meta" and hook is not None:
            # Offloaded by accelerate, whose hook brings the weight to this device for a call.
            device = getattr(hook, "execution_device", None)
            device = "cpu" if device is None else device
        return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def skills_differ(self) -> bool:
        """Whether the routing changes anything: not with one skill, nor in a new inventory."""
        raise NotImplementedError

    @torch.no_grad()
    def average_of(self, skills: list[int]) -> None:
        """Replaces the inventory by one adapter, the mean over `skills`, in every head."""
        for parameter in self.inventory().values():
            replace_value(parameter, parameter[:, skills].mean(1, keepdim=True))

    @torch.no_grad()
    def collapse(self, weights: torch.Tensor) -> None:
        """Replaces the inventory by one mixture, with weights [heads, skills]."""
        for parameter in self.inventory().values():
            wide = weights.to(parameter)[(..., *(None,) * (parameter.dim() - 2))]
            replace_value(parameter, (wide * parameter).sum(1, keepdim=True))

    def merged(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight (and bias) of the base layer with one mixture, weights [heads, skills], folded in.

        Returns:
            float64, by name.
        """
        raise NotImplementedError


def replace_value(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Gives a parameter another value, of any shape.

    The parameter stays the same object, so an optimizer that has it goes on training it, or raises
    where its moments have the old shape; it never trains a tensor that nothing reads.
    """
    parameter.data = value
    parameter.grad = None


class RoutedLora(RoutedLayer):
    """y = base(x) + scale * x A_t B_t, with A and B mixed separately in each head.

    Parameters: lora_a [H, K, d_in / H, r], lora_b [H, K, r, d_out / H].
    """

    parameter_names = ("lora_a", "lora_b")

    def __init__(self, base: nn.Module, config: PolyConfig, *arguments: Any) -> None:
        super().__init__(base, config, *arguments)
        h, k, r = config.heads, config.inventory_size, config.rank
        self.lora_a = self.new_parameter(h, k, self.in_features // h, r)
        self.lora_b = self.new_parameter(h, k, r, self.out_features // h)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """A as the config says, B = 0."""
        heads = self.config.heads
        fan_in = self.in_features if self.config.init == "reference" else self.in_features // heads
        bound = 1 / math.sqrt(3 * fan_in) if self.config.init == "reference" else fan_in**-0.5
        self.lora_a.uniform_(-bound, bound)
        self.lora_b.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base output plus the routed update; x is [B, T, d_in] or [N, d_in]."""
        (a, b), weights, rows = self.route(x)
        y: torch.Tensor = self.base(x)
        if y.dtype == x.dtype:
            return ops.routed_lora(x, a, b, weights, rows, scaling=self.config.scale, base=y)
        # Autocast: the base layer computes in another type than it is given.
        return y + ops.routed_lora(x.to(y.dtype), a, b, weights, rows, scaling=self.config.scale)

    def mix(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A [U, d_in, r] and B [U, r, d_out], mixed with weights [U, heads, skills]."""
        a = ops.mix_adapters(self.lora_a, weights, split_dim=-2)
        return a, ops.mix_adapters(self.lora_b, weights, split_dim=-1)

    @torch.no_grad()
    def factors(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One mixture, with weights [heads, skills], as a plain LoRA: [d_in, r] and [r, d_out]."""
        a, b = self.mix(weights[None])
        return a[0], b[0]

    def skills_differ(self) -> bool:
        """Whether some B is not 0 and there are several skills."""
        return self.lora_b.shape[1] > 1 and bool(self.lora_b.any())

    @torch.no_grad()
    def merged(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weight plus the update of one mixture."""
        a, b = self.factors(weights)
        delta = self.config.scale * (a.double() @ b.double())
        if isinstance(self.base, nn.Linear):
            delta = delta.t()
        return {"weight": self.weight.double() + delta}


class RoutedIa3(RoutedLayer):
    """y = base(x) * l_t. Parameter: ia3 [H, K, d_out / H], ones at the start."""

    parameter_names = ("ia3",)

    def __init__(self, base: nn.Module, config: PolyConfig, *arguments: Any) -> None:
        super().__init__(base, config, *arguments)
        shape = (config.heads, config.inventory_size, self.out_features // config.heads)
        self.ia3 = self.new_parameter(*shape)
        nn.init.ones_(self.ia3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base output times the routed scale; x is [B, T, d_in] or [N, d_in]."""
        (ia3,), weights, rows = self.route(x)
        y: torch.Tensor = self.base(x)
        return ops.routed_ia3(y, ia3, weights, rows)

    def mix(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scaling vectors [U, d_out], mixed with weights [U, heads, skills]."""
        return (ops.mix_adapters(self.ia3, weights, split_dim=-1),)

    def skills_differ(self) -> bool:
        """Whether the scales of some two skills are not the same."""
        return bool((self.ia3 != self.ia3[:, :1]).any())

    @torch.no_grad()
    def merged(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weight and bias times the mixed scale."""
        scale = self.mix(weights[None])[0][0].double()
        along = scale[:, None] if isinstance(self.base, nn.Linear) else scale
        merged = {"weight": self.weight.double() * along}
        return merged if self.bias is None else {**merged, "bias": self.bias.double() * scale}

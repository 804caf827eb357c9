"""Linear layers with an inventory of adapters."""

from __future__ import annotations

import math

import torch
from torch import nn

from oneshot import ops
from oneshot.poly.config import PolyConfig
from oneshot.poly.context import Context, Routing


def features(layer: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear layer (`nn.Linear` or transformers' Conv1D)."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0], weight.shape[1]  # Conv1D: [in, out]


class RoutedLayer(nn.Module):
    """A linear layer and its adapters.

    Attributes:
        base: The layer as it was.
        name: Its path in the model.
        group: Its row in the router.
    """

    def __init__(
        self, base: nn.Module, config: PolyConfig, context: Context, name: str, group: int
    ) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.context = context
        self.name = name
        self.group = group
        self.in_features, self.out_features = features(base)

    # Some models look at a layer's weight to choose a dtype, so it must be there.
    @property
    def weight(self) -> torch.Tensor:
        """Weight of the layer as it was."""
        weight: torch.Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias of the layer as it was."""
        bias: torch.Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def inventory(self) -> dict[str, nn.Parameter]:
        """The adapters by name, each [heads, skills, ...]."""
        return dict(self.named_parameters(recurse=False))

    def mix(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The adapters mixed with weights [U, heads, skills], heads side by side."""
        raise NotImplementedError

    def adapters(self, routing: Routing) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """What the op takes in this pass: the inventory with weights, or mixtures made before."""
        weights = routing.weights[self.group]
        if not routing.repeats:
            return tuple(self.inventory().values()), weights
        # A generation calls the layer at every token with the same weights.
        if self.name not in routing.mixed:
            routing.mixed[self.name] = self.mix(weights)
        return routing.mixed[self.name], None

    @torch.no_grad()
    def average_of(self, skills: list[int]) -> None:
        """Replaces the inventory by one adapter, the mean over `skills`, in every head."""
        for name, parameter in self.inventory().items():
            setattr(self, name, nn.Parameter(parameter[:, skills].mean(1, keepdim=True)))

    @torch.no_grad()
    def collapse(self, weights: torch.Tensor) -> None:
        """Replaces the inventory by one mixture, with weights [heads, skills]."""
        for name, parameter in self.inventory().items():
            wide = weights.to(parameter)[(..., *(None,) * (parameter.dim() - 2))]
            setattr(self, name, nn.Parameter((wide * parameter).sum(1, keepdim=True)))

    def merge(self, weights: torch.Tensor) -> None:
        """Folds one mixture, with weights [heads, skills], into the base layer."""
        raise NotImplementedError


class RoutedLora(RoutedLayer):
    """y = base(x) + scale * x A_t B_t, with A and B mixed separately in each head.

    Parameters: lora_a [H, K, d_in / H, r], lora_b [H, K, r, d_out / H].
    """

    def __init__(
        self, base: nn.Module, config: PolyConfig, context: Context, name: str, group: int
    ) -> None:
        super().__init__(base, config, context, name, group)
        h, k, r = config.heads, config.inventory_size, config.rank
        device = self.weight.device
        self.lora_a = nn.Parameter(torch.empty(h, k, self.in_features // h, r, device=device))
        self.lora_b = nn.Parameter(torch.empty(h, k, r, self.out_features // h, device=device))
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
        routing = self.context.require()
        rows = routing.rows_of(x, self.name)
        (a, b), weights = self.adapters(routing)
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

    @torch.no_grad()
    def merge(self, weights: torch.Tensor) -> None:
        """Adds the update of one mixture to the weight of the base layer."""
        a, b = self.factors(weights)
        delta = self.config.scale * (a.double() @ b.double())
        if isinstance(self.base, nn.Linear):
            delta = delta.t()
        self.weight.copy_(self.weight.double() + delta)


class RoutedIa3(RoutedLayer):
    """y = base(x) * l_t. Parameter: ia3 [H, K, d_out / H], ones at the start."""

    def __init__(
        self, base: nn.Module, config: PolyConfig, context: Context, name: str, group: int
    ) -> None:
        super().__init__(base, config, context, name, group)
        shape = (config.heads, config.inventory_size, self.out_features // config.heads)
        self.ia3 = nn.Parameter(torch.ones(shape, device=self.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base output times the routed scale; x is [B, T, d_in] or [N, d_in]."""
        routing = self.context.require()
        rows = routing.rows_of(x, self.name)
        (ia3,), weights = self.adapters(routing)
        y: torch.Tensor = self.base(x)
        return ops.routed_ia3(y, ia3, weights, rows)

    def mix(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scaling vectors [U, d_out], mixed with weights [U, heads, skills]."""
        return (ops.mix_adapters(self.ia3, weights, split_dim=-1),)

    @torch.no_grad()
    def merge(self, weights: torch.Tensor) -> None:
        """Multiplies weight and bias of the base layer with the mixed scale."""
        scale = self.mix(weights[None])[0][0].double()
        along = scale[:, None] if isinstance(self.base, nn.Linear) else scale
        self.weight.copy_(self.weight.double() * along)
        if self.bias is not None:
            self.bias.copy_(self.bias.double() * scale)

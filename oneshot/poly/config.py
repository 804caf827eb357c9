"""What is put into a model: kind of adapter, size of the inventory, routing.

The methods of the papers are settings of the same few fields:

| method | fields |
|---|---|
| Polytropon (Poly) | `heads=1` |
| Multi-head routing (Poly-S, MHR) | `heads > 1` |
| shared LoRA; LoRA-big | `routing="uniform", skills=1`; the same with a larger `rank` |
| private adapters ("skilled"), the start of AdapterSoup | `routing="private"` |
| an (IA)^3 version of any of them | `adapter="ia3"` |

Poly-mu and Poly-z are ways to adapt a trained inventory to a new task: `PolyModel.average` and
`PolyModel.freeze_inventory`. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oneshot.training.config import check_types, require


@dataclass(frozen=True)
class PolyConfig:
    """Adapters and routing of one model.

    Source:
        Ponti et al. 2022 (arXiv:2202.13914), equations 1 and 2; Caccia et al. 2023
        (arXiv:2211.03831) for heads.
    """

    tasks: int = 1
    """Tasks the router knows; task ids are 0 .. tasks - 1."""
    target_modules: tuple[str, ...] | str = ("all-linear",)
    """Layers to adapt: last parts of their names ("q_proj", "self_attn.q_proj"), or "all-linear":
    every linear layer that can be adapted but the output embedding. A single text is one name."""
    exclude_modules: tuple[str, ...] | str = ()
    """Layers to leave out: parts of their names, such as "vision_tower" or "lm_head"."""
    adapter: Literal["lora", "ia3"] = "lora"
    """"lora": y += scale * x A B; "ia3": y *= l."""
    routing: Literal["learned", "private", "uniform"] = "learned"
    """"learned": a router of tasks x heads x skills logits for each group of layers; "private":
    task t has skill t; "uniform": every skill weighs 1 / skills."""
    skills: int = 8
    """Adapters in the inventory of each layer (K). Plays no part with routing "private", which has
    one for each task."""
    heads: int = 1
    """Blocks of features that are routed separately (H); divides every adapted dimension. It has
    nothing to do with attention heads."""
    rank: int = 16
    """Rank of each LoRA adapter; heads do not split it."""
    alpha: float = 64.0
    """The LoRA update is scaled by alpha / rank, here 4. The reference code, made for T5-XL, and
    PEFT's Poly have alpha 1; models of a few hundred million parameters hardly learn with it."""
    granularity: Literal["layer", "block", "model"] = "layer"
    """Layers that share a router: none, those of one transformer block, or all."""
    noise: Literal["none", "per_task", "per_example"] = "none"
    """Relaxed-Bernoulli noise on the routing in training: a draw for each task and step, or for
    each example (Polytropon's equation 2; PEFT's Poly always does)."""
    temperature: float = 1.0
    """Temperature of that noise."""
    init: Literal["reference", "peft"] = "reference"
    """A of LoRA. "reference": uniform, variance 1 / (9 d_in), whatever the heads; "peft": PEFT's
    Kaiming over d_in / heads, whose variance is 3 * heads times that. B starts at 0."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, str | list):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check_types(self)
        for name in ("tasks", "skills", "heads", "rank"):
            require(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        require(bool(self.target_modules), "target_modules", "at least one name", ())
        require(self.alpha > 0, "alpha", "> 0", self.alpha)
        require(self.temperature > 0, "temperature", "> 0", self.temperature)
        require(
            self.noise == "none" or self.routing == "learned",
            "noise",
            '"none" unless routing is "learned"',
            self.noise,
        )

    @property
    def inventory_size(self) -> int:
        """Adapters in the inventory of each layer."""
        return self.tasks if self.routing == "private" else self.skills

    @property
    def scale(self) -> float:
        """Factor of the LoRA update."""
        return self.alpha / self.rank

"""The recipes of the paper: one row of `recipes.yaml` per row of its tables.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from oneshot.rlvr.config import TrainConfig, load_train_config


@dataclass(frozen=True)
class Recipe:
    """One row.

    Attributes:
        name: Its name.
        overrides: Options by their dotted names, those of the bases included.
        what: Training set, and what differs from the base recipe.
        paper: What the paper reports: MATH500 / average of six benchmarks, percent. With * the
            checkpoint is the best on MATH500, otherwise the best on average; both on the test sets.
        where: Tables of the paper.
    """

    name: str
    overrides: Mapping[str, Any]
    what: str
    paper: str
    where: str

    def argv(self, overrides: Sequence[str] = ()) -> list[str]:
        """Command-line arguments for the recipe, then for more overrides, which win."""
        options = {**self.overrides, "run.output": f"runs/paper/{self.name}"}
        return [*(f"--{key}={_text(value)}" for key, value in options.items()), *overrides]

    def config(self, overrides: Sequence[str] = ()) -> TrainConfig:
        """The whole config of the recipe with some options changed.

        Args:
            overrides: Command-line arguments, e.g. `["--run.seed", "2"]`.

        Raises:
            ValueError: An unknown option or a wrong value.
        """
        return load_train_config(None, self.argv(overrides))


@functools.cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    text = (files("oneshot.rlvr") / "recipes.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    entries = {**table["bases"], **table["rows"]}

    def overrides(name: str) -> dict[str, Any]:
        entry = entries[name]
        inherited = overrides(entry["base"]) if "base" in entry else {}
        return {**inherited, **entry.get("overrides", {})}

    return {
        name: Recipe(name, overrides(name), *map(str, row["paper"]))
        for name, row in table["rows"].items()
    }


def recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: There is none.
    """
    if name not in recipes():
        raise ValueError(
            f"there is no recipe {name!r}; `oneshot rlvr recipe` without a name lists them"
        )
    return recipes()[name]


def table() -> str:
    """All recipes as a Markdown table."""
    lines = ["| recipe | training set and what differs | paper: MATH500 / average of six | where |"]
    lines.append("|---|---|---|---|")
    lines += [f"| `{r.name}` | {r.what} | {r.paper} | {r.where} |" for r in recipes().values()]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

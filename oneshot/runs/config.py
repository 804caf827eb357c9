"""Configs as dataclasses, from a YAML file and the command line.

A YAML file holds any subset of the fields, and every field can be overridden on the command line
by its dotted name (`--optimizer.lr 1e-5`). An unknown key is an error. This module imports neither
torch nor transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raise ValueError, naming the field and what was expected, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result.update(flat(item, f"{prefix}{key}."))
    return result


def argument_parser(config_class: type, prog: str) -> ArgumentParser:
    """A parser with `--config FILE` and one dotted option per field of `config_class`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def instantiate(config_class: type[Config], parser: ArgumentParser, parsed: Any) -> Config:
    """The dataclass that parsed arguments describe."""
    values = parser.instantiate(parsed)
    names = [f.name for f in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: values[name] for name in names})


def load(
    config_class: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Reads a YAML file and applies overrides.

    Args:
        config_class: The dataclass.
        path: YAML file, or None to take every value from `overrides` and the defaults.
        overrides: Command-line words, e.g. `["--optimizer.lr", "1e-5"]`.

    Returns:
        The resolved config.

    Raises:
        ValueError: An unknown key, a missing one or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError

    parser = argument_parser(config_class, config_class.__name__)
    parser.exit_on_error = False
    words = ([] if path is None else ["--config", str(path)]) + list(overrides)
    try:
        return instantiate(config_class, parser, parser.parse_args(words))
    except ArgumentError as error:
        raise ValueError(f"{path or 'overrides'}: {error}") from error

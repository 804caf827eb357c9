"""Configs as dataclasses, from a YAML file and the command line.

A YAML file holds any subset of the fields, and every field can be overridden on the command line
by its dotted name (`--optimizer.lr 1e-5`). An unknown key is an error. This module imports neither
torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """Raise ValueError, naming the field and what was expected, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_types(config: Any) -> None:
    """Checks the fields of a config dataclass against their annotations, as the command line does.

    The first line of `__post_init__`: a config that is built in Python is then refused where the
    same value on the command line would be. Whole numbers count as floats, lists as tuples.

    Raises:
        ValueError: A field has another type, or is none of the values of its `Literal`.
    """
    kind: Any = type(config)
    hints = _hints(kind)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        require(_fits(value, hint), f"{kind.__name__}.{field.name}", _described(hint), value)


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    return get_type_hints(config_class)


def _fits(value: Any, hint: Any) -> bool:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = inside[:1] * len(value) if inside[1:] == (...,) else inside
        return len(value) == len(each) and all(map(_fits, value, each))
    if hint in (int, float):
        number = isinstance(value, int | float if hint is float else int)
        return number and not isinstance(value, bool)
    if origin is not None or not isinstance(hint, type):
        return True  # an annotation that no field has so far
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_described, inside))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inside))}"
    if origin is tuple:
        if inside[1:] == (...,):
            return f"a tuple of {_described(inside[0])} values"
        return f"a tuple of {len(inside)} {_described(inside[0])} values"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


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
    """A parser with `--config FILE` and one dotted option per field of `config_class`.

    An error is one line, not behind the list of all options.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        def error(self, message: str, *args: Any, **options: Any) -> NoReturn:
            if not self.exit_on_error:
                super().error(message, *args, **options)
            print(f"{self.prog}: error: {message}{_hint(self, message)}", file=sys.stderr)
            self.exit(2)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=prog, description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def _hint(parser: ArgumentParser, message: str) -> str:
    """What to do about an error of a parser."""
    if "Expected a <class 'tuple'>" in message:
        return '\nwrite a list, in quotes: --name \'["first", "second"]\''
    unknown = re.search(r"unrecognized arguments: -*([\w.]+)", message)
    in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if unknown is None and in_group is None:
        return ""
    name = unknown[1] if in_group is None else ".".join(in_group.groups())  # type: ignore[index]
    near = _similar_options(parser, name)
    if not near:
        return f" ({parser.prog} --help lists the options)"
    return f"; did you mean {' or '.join(f'--{option}' for option in near)}?"


def _similar_options(parser: ArgumentParser, name: str) -> list[str]:
    """Options that a wrong name may stand for: by spelling, by last part, or by what they do."""
    helps = {
        word.removeprefix("--"): " ".join((action.help or "").lower().split())
        for action in parser._actions
        for word in action.option_strings
        if word.startswith("--")
    }
    group, _, last = name.rpartition(".")
    words = last.replace("_", " ").lower()
    near = difflib.get_close_matches(name, helps, n=3, cutoff=0.75)
    near += [option for option in helps if option.rpartition(".")[2] == last]
    near += [option for option, text in helps.items() if text.startswith(words)]
    return sorted(dict.fromkeys(near), key=lambda option: option.rpartition(".")[0] != group)[:3]


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
        overrides: Command-line arguments, e.g. `["--optimizer.lr", "1e-5"]`.

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

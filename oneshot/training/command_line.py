"""What the commands of the layers share: options from a config class, quiet libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from oneshot.training.config import argument_parser, instantiate

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    prog: str,
    argv: Sequence[str],
    *,
    resumable: bool = False,
    parser: ArgumentParser | None = None,
) -> tuple[Config, Any]:
    """The config that command-line arguments describe, and all parsed arguments.

    Args:
        config_class: A config dataclass.
        prog: Name of the command in messages.
        argv: The arguments.
        resumable: Whether the command has the option `--resume`.
        parser: From `argument_parser(config_class, prog)`, with more options; by default that.
    """
    parser = parser or argument_parser(config_class, prog)
    if resumable:
        parser.add_argument(
            "--resume", action="store_true", help="Continue the run in run.output (or start it)."
        )
    parsed = parser.parse_args(list(argv))
    return instantiate(config_class, parser, parsed), parsed


def hide_loading_bars() -> None:
    """Switches off transformers' progress bars for reading and writing weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()

"""The console script `oneshot`. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

USAGE = """\
usage: oneshot <command> [options]

  rlvr train      post-train a language model on one (or a few) verifiable problems
  rlvr serve      a vLLM server for the rollouts of a run (rollout.engine: vllm_server)
  rlvr eval       accuracy of a model on problems with known answers, or on benchmarks
  rlvr select     rank training problems by a run's accuracy history; write few-shot files
  rlvr study      compare arms (examples, losses, rewards, labels, ...) over several seeds
  rlvr relabel    a training file with wrong labels, one given or a fraction flipped
  chmm fit        one label sequence from many noisy sources (conditional HMM)
  chmm alt        the same, in turn with a BERT tagger (CHMM-ALT)
  chmm label      label sentences with a trained CHMM or tagger
  chmm eval       methods side by side on weakly labelled data
  poly train      train an inventory of adapters and its router on many tasks
  poly adapt      few-shot adaptation of a trained inventory to held-out tasks
  poly eval       figures of trained adapters on their tasks
  poly export     trained adapters as PEFT Poly, PEFT LoRA or a merged model
  poly miniature  the methods of the papers side by side on a small model
  poly compositional  adapters on string tasks that share skills, with a small model trained here
  demo            each layer in small: one-example RLVR, weak named entities, adapters
  bench           benchmarks of the ops
  info            versions, native library, instruction set
  --version       the version of oneshot

`oneshot <command> --help` lists the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words else ""
    if command in ("", "-h", "--help"):
        print(USAGE, end="")
        return 0 if command else 2
    if command == "--version":
        from oneshot import __version__

        print(__version__)
        return 0
    commands = {
        "rlvr": _rlvr,
        "poly": _poly,
        "chmm": _chmm,
        "demo": _demo,
        "bench": _bench,
        "info": _info,
    }
    if command not in commands:
        print(f"oneshot: no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    # Under torchrun the first process speaks for all; errors are everybody's.
    with contextlib.ExitStack() as silent:
        if int(os.environ.get("RANK", "0")) > 0:
            silent.enter_context(contextlib.redirect_stdout(None))
        silent.enter_context(_plain_warnings())
        return commands[command](words[1:])


def _rlvr(words: list[str]) -> int:
    from oneshot.rlvr.commands import COMMANDS, run

    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in ("-h", "--help")
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        return run(words[0], words[1:])
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        return _failed(error)
    except KeyboardInterrupt as error:
        return _interrupted(error)


def _chmm(words: list[str]) -> int:
    from oneshot.chmm.commands import main as chmm

    try:
        return chmm(words)
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        return _failed(error)
    except KeyboardInterrupt as error:
        return _interrupted(error)


def _poly(words: list[str]) -> int:
    from oneshot.poly.commands import COMMANDS, run

    if not words or words[0] not in COMMANDS:
        asked = bool(words) and words[0] in ("-h", "--help")
        print(USAGE, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        _hide_loading_bars()
        return run(words[0], words[1:])
    except (ValueError, OSError, RuntimeError, FloatingPointError, ModuleNotFoundError) as error:
        return _failed(error)
    except KeyboardInterrupt as error:
        return _interrupted(error)


def _demo(words: list[str]) -> int:
    from oneshot.demo import main as demo

    return demo(words)


def _bench(words: list[str]) -> int:
    from oneshot.bench.cli import main as bench

    return bench(words)


def _info(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oneshot info",
        description="Versions, native library, instruction set; for bug reports.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parsed = parser.parse_args(words)
    from oneshot.info import info

    found = info()
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {item}" for key, item in value.items())
            print(f"{name:28} {value}")
    return 0


def _hide_loading_bars() -> None:
    """Switches off transformers' bars for reading and writing weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _interrupted(error: KeyboardInterrupt) -> int:
    """Says what a command that was stopped by Ctrl-C leaves, where it knows."""
    generic = "; a run continues with --resume from its newest checkpoint, if it has one"
    print(f"oneshot: interrupted{f' {error}' if str(error) else generic}", file=sys.stderr)
    return 130


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints the warnings of a command as lines, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *where, **more: f"oneshot: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _failed(error: Exception) -> int:
    """Prints the message of an expected failure; ONESHOT_TRACEBACK=1 shows where it came from."""
    if os.environ.get("ONESHOT_TRACEBACK") == "1":
        raise error
    print(f"oneshot: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

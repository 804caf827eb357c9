"""The console script `oneshot`. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from oneshot.training.errors import EXPECTED

USAGE = """\
usage: oneshot <command> [options]

  rlvr train      post-train a language model on one (or a few) verifiable problems
  rlvr recipe     the runs of the paper: list them, print one, train it, estimate its cost
  rlvr serve      a vLLM server for the rollouts of a run (rollout.engine: vllm_server)
  rlvr eval       accuracy of a model on problems with known answers, or on benchmarks
  rlvr select     rank training problems by a run's accuracy history; write few-shot files
  rlvr study      compare arms (examples, losses, rewards, labels, ...) over several seeds
  rlvr relabel    write a training file with wrong labels: one given, or a fraction flipped
  chmm fit        label sequences from many noisy sources (conditional HMM)
  chmm alt        the same, alternating with a BERT tagger (CHMM-ALT)
  chmm label      label sentences with a trained CHMM or tagger
  chmm eval       methods side by side on weakly labelled data
  chmm synthetic  vote, HMM and CHMM on generated corpora, over seeds
  poly train      train an inventory of adapters and its router on many tasks
  poly adapt      few-shot adaptation of a trained inventory to held-out tasks
  poly eval       metrics of trained adapters on their tasks
  poly export     trained adapters as PEFT Poly, PEFT LoRA or a merged model
  poly miniature  the methods of the papers side by side on a small model
  poly compositional  adapters on string tasks that share skills, on a small model trained first
  demo            every layer on a small scale: one-example RLVR, weak named entities, adapters
  bench           benchmarks of the ops
  info            versions, native library, instruction set
  --version       the version of oneshot

`oneshot <command> --help` lists the options of a command.
"""

LAYERS = ("rlvr", "chmm", "poly")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    command = argv[0] if argv else ""
    if command in ("", "-h", "--help"):
        print(USAGE, end="")
        return 0 if command else 2
    if command == "--version":
        from oneshot import __version__

        print(__version__)
        return 0
    if command not in (*LAYERS, "demo", "bench", "info"):
        print(f"oneshot: no command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    # Under torchrun the first process prints; every process reports its errors.
    with contextlib.ExitStack() as silent:
        if int(os.environ.get("RANK", "0")) > 0:
            silent.enter_context(contextlib.redirect_stdout(None))
        silent.enter_context(_plain_warnings())
        try:
            return _run(command, argv[1:])
        except EXPECTED as error:
            return _failed(error)
        except KeyboardInterrupt as error:
            return _interrupted(error)


def _run(command: str, argv: list[str]) -> int:
    if command in LAYERS:
        return _layer(command, argv)
    if command == "demo":
        from oneshot.demo import main as demo

        return demo(argv)
    if command == "bench":
        from oneshot.bench.cli import main as bench

        return bench(argv)
    return _info(argv)


def _layer(layer: str, argv: list[str]) -> int:
    """Runs a command of a layer: an entry of COMMANDS in its module `commands`."""
    commands = importlib.import_module(f"oneshot.{layer}.commands").COMMANDS
    if not argv or argv[0] not in commands:
        requested = argv[:1] in (["-h"], ["--help"])
        print(_usage(layer), end="", file=sys.stdout if requested else sys.stderr)
        return 0 if requested else 2
    return int(commands[argv[0]](argv[1:]))


def _usage(layer: str) -> str:
    """The part of `USAGE` on the commands of a layer."""
    lines = [line for line in USAGE.splitlines() if line.startswith(f"  {layer} ")]
    last = USAGE.splitlines()[-1]
    return "\n".join([f"usage: oneshot {layer} <command> [options]", "", *lines, "", last, ""])


def _info(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oneshot info",
        description="Versions, native library, instruction set; for bug reports.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parsed = parser.parse_args(argv)
    from oneshot.info import info

    report = info()
    if parsed.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {item}" for key, item in value.items())
            print(f"{name:28} {value}")
    return 0


def _interrupted(error: KeyboardInterrupt) -> int:
    """Reports what a command that was stopped by Ctrl-C left, where the command says so."""
    generic = "; a run continues with --resume from its newest checkpoint, if it has one"
    print(f"oneshot: interrupted{f' {error}' if str(error) else generic}", file=sys.stderr)
    return 130


def _failed(error: Exception) -> int:
    """Prints the message of an expected failure; ONESHOT_TRACEBACK=1 shows the traceback."""
    if os.environ.get("ONESHOT_TRACEBACK") == "1":
        raise error
    print(f"oneshot: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints the warnings of a command as lines, without their place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *where, **more: f"oneshot: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


if __name__ == "__main__":
    sys.exit(main())

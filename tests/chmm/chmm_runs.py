"""Runs that are really killed: `fit` and `alternate`, each in a process of its own.

`python chmm_runs.py` imports everything once and forks a process for every command it reads, a JSON
object with the keys command, tiny, output, resume, overrides and kill_at. The process sends itself
SIGKILL at its kill_at-th touch of a file in the output folder (open, create, rename, remove, link,
fsync).
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TOUCHES = {
    "open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree",
}  # fmt: skip


class Runner:
    """Starts `serve` in a process and talks to it."""

    def __init__(self):
        here = Path(__file__).resolve()
        paths = [str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(self, command, tiny, output, *, resume=False, kill_at=None, overrides=()):
        """Exit status (negative: the signal that killed it) and number of file touches."""
        order = {
            "command": command,
            "tiny": str(tiny),
            "output": str(output),
            "resume": resume,
            "kill_at": kill_at,
            "overrides": list(overrides),
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["touches"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve():
    import chmm_tiny
    import torch
    import torch.utils.tensorboard
    from transformers.utils import logging

    from oneshot.chmm import alternate, fit

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Drawing takes longer than the run; the file is still written where the picture would be.
    for module in (fit, alternate):
        module.plot_curves = lambda history, path: path.write_bytes(b"")
    fit.plot_matrices = lambda model, examples, sources, folder: None
    torch.set_num_threads(1)
    commands = {"fit": fit.fit, "alternate": alternate.alternate}
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(2, 1)
            watch(order["output"], order["kill_at"], writer)
            status = 0
            try:
                config = chmm_tiny.config(
                    Path(order["tiny"]), Path(order["output"]), *order["overrides"]
                )
                commands[order["command"]](config, resume=order["resume"])
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                status = 1
            os._exit(status)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            touches = len(pipe.read())
        answer = {"status": os.waitstatus_to_exitcode(status), "touches": touches}
        print(json.dumps(answer), flush=True)


def watch(folder, kill_at, writer):
    """Counts touches of the folder (a byte down the pipe each) and kills at the given one."""
    count = 0

    def touch():
        nonlocal count
        count += 1
        os.write(writer, b".")
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        if event in TOUCHES and args and str(args[0]).startswith(folder):
            touch()

    sync = os.fsync

    def fsync(descriptor):
        touch()
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = fsync


if __name__ == "__main__":
    serve()

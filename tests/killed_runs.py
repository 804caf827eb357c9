"""Runs that are really killed.

A layer's script calls `serve(run)`. It imports everything once and then forks one process per order
it reads, so that a run costs a fraction of a second instead of the seconds of the imports. An order
is a JSON object with the keys tiny, output, resume, overrides, kill_at and what the layer adds: the
process sends itself SIGKILL at its kill_at-th touch of a file in the output folder (open, create,
rename, remove, link, fsync).
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TOUCHES = {"open", "shutil.rmtree"} | {
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "truncate")
}


class Runner:
    """Starts the script of a layer and gives it orders."""

    def __init__(self, script):
        script = Path(script).resolve()
        here = Path(__file__).resolve()
        folders = (script.parent, here.parent, here.parents[1], os.environ.get("PYTHONPATH", ""))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(map(str, folders)),
            },
        )

    def start(self, tiny, output, *, resume=False, kill_at=None, overrides=(), **more):
        """Process id of a run that has been started."""
        order = {
            "tiny": str(tiny),
            "output": str(output),
            "resume": resume,
            "kill_at": kill_at,
            "overrides": list(overrides),
            **more,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Exit status of the run (negative: the signal that killed it) and its file touches."""
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["touches"]

    def run(self, *args, **kwargs):
        self.start(*args, **kwargs)
        return self.wait()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(run):
    """Reads orders from standard input; `run(tiny, output, order)` is what a process does."""
    import torch
    import torch.utils.tensorboard
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
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
                run(Path(order["tiny"]), Path(order["output"]), order)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                status = 1
            os._exit(status)
        os.close(writer)
        print(child, flush=True)
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

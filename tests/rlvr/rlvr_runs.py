"""Runs that are really killed, and runs of two processes.

`python rlvr_runs.py` imports everything once and then forks one process per command it reads, so
that a run costs a fraction of a second instead of the seconds of the imports. A command is a JSON
object with the keys tiny, output, resume, overrides and kill_at: the process sends itself SIGKILL
at its kill_at-th touch of a file in the output folder (open, create, rename, remove, fsync).
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

TOUCHES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
# Argv: this folder, the tiny folder, that of the runs, their options by name.
KINDS_CODE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rlvr_tiny
from oneshot.rlvr import trainer
trainer.plot_curves = lambda history, path: None
for kind, options in json.loads(sys.argv[4]).items():
    config = rlvr_tiny.config(Path(sys.argv[2]), Path(sys.argv[3]) / kind, *options)
    rlvr_tiny.train_kind(kind, config)
"""


class Runner:
    """Starts `serve` in a process and talks to it."""

    def __init__(self):
        here = Path(__file__).resolve()
        paths = [str(here.parent), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )

    def start(self, tiny, output, *, resume=False, kill_at=None, overrides=()):
        command = {
            "tiny": str(tiny),
            "output": str(output),
            "resume": resume,
            "kill_at": kill_at,
            "overrides": list(overrides),
        }
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())  # process id

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


def start_two(tiny_folder, output, logs, kinds):
    """Two processes of runs, with the variables that torchrun and accelerate launch set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs.mkdir(exist_ok=True)
    here = str(Path(__file__).parent)
    words = [sys.executable, "-c", KINDS_CODE, here, tiny_folder, output, json.dumps(kinds)]
    started = []
    for rank in "01":
        own = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        log = (logs / rank).open("w")
        started.append(subprocess.Popen(words, env=own, stdout=log, stderr=log))
    return started


def serve():
    import rlvr_tiny
    import torch
    import torch.utils.tensorboard
    from transformers.utils import logging

    from oneshot.rlvr import trainer

    logging.disable_progress_bar()
    # Drawing takes longer than the run; the file is still written where the curves would be.
    trainer.plot_curves = lambda history, path: path.write_bytes(b"")
    torch.set_num_threads(1)
    for line in sys.stdin:
        command = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(2, 1)
            watch(command["output"], command["kill_at"], writer)
            config = rlvr_tiny.config(
                Path(command["tiny"]), Path(command["output"]), *command["overrides"]
            )
            status = 0
            try:
                trainer.train(config, resume=command["resume"], reward=rlvr_tiny.share_of_a)
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


if __name__ == "__main__":
    serve()

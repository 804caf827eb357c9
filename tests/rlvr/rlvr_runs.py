"""The runs of `train` that tests kill (see `killed_runs`), and runs of two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import killed_runs

# Argv: this folder, the tiny folder, that of the runs, their options by name.
KINDS_CODE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rlvr_tiny
from oneshot.rlvr import recorder, trainer
recorder.plot_curves = lambda *_, **__: None
for kind, options in json.loads(sys.argv[4]).items():
    config = rlvr_tiny.config(Path(sys.argv[2]), Path(sys.argv[3]) / kind, *options)
    rlvr_tiny.train_kind(kind, config)
"""


class Runner(killed_runs.Runner):
    def __init__(self):
        super().__init__(__file__)


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


def main():
    import rlvr_tiny

    from oneshot.rlvr import recorder, trainer

    # Drawing takes longer than the run; the file is still written where the curves would be.
    recorder.plot_curves = lambda history, path, **_: path.write_bytes(b"")

    def run(tiny, output, order):
        config = rlvr_tiny.config(tiny, output, *order["overrides"])
        trainer.train(config, resume=order["resume"], reward=rlvr_tiny.share_of_a)

    killed_runs.serve(run)


if __name__ == "__main__":
    main()

"""Two processes (gloo, FSDP2) give the curve of one; a killed one ends the run, which resumes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rlvr_tiny
import torch
from safetensors.torch import load_file

from oneshot.rlvr.trainer import train
from oneshot.runs import checkpoints
from oneshot.runs.jsonl import read_jsonl
from oneshot.runs.processes import Processes, interleave

OPTIONS = ["--algorithm.updates_per_rollout=2", "--algorithm.microbatch_tokens=100"]
CODE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rlvr_tiny
from oneshot.rlvr import trainer
trainer.plot_curves = lambda history, path: None
config = rlvr_tiny.config(Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
trainer.train(config, resume=True, reward=rlvr_tiny.share_of_a)
"""


def start(tiny_folder, output, logs, *options):
    """Two processes of one run, with the variables that torchrun and accelerate launch set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs.mkdir(exist_ok=True)
    started = []
    for rank in "01":
        own = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", CODE, str(Path(__file__).parent), tiny_folder, output]
        log = (logs / rank).open("w")
        started.append(subprocess.Popen([*words, *options], env=own, stdout=log, stderr=log))
    return started


def figures(output):
    return [
        {k: v for k, v in row.items() if not k.startswith(("perf/", "engine/"))}
        for row in read_jsonl(output / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def single(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("single") / "run"
    config = rlvr_tiny.config(tiny_folder, output, *OPTIONS)
    return train(config, reward=rlvr_tiny.share_of_a)


def assert_same_run(output, single):
    one, two = figures(single.output), figures(output)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-5), a["step"]
    last = checkpoints.latest(output / "checkpoints")
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, found = load_file(single.checkpoint / name), load_file(last / name)
        assert expected.keys() == found.keys()
        if name == "model.safetensors":
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tiny_folder, single, tmp_path):
    processes = start(tiny_folder, tmp_path / "run", tmp_path / "logs", *OPTIONS)
    for rank, process in enumerate(processes):
        assert process.wait(timeout=900) == 0, (tmp_path / "logs" / str(rank)).read_text()[-3000:]
    assert_same_run(tmp_path / "run", single)
    compared = [r for r in read_jsonl(tmp_path / "run" / "metrics.jsonl") if r["step"] > 0]
    assert all(row["engine/logprob_difference_max"] < 1e-4 for row in compared)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes(tiny_folder, single, tmp_path):
    output = tmp_path / "run"
    processes = start(tiny_folder, output, tmp_path / "logs", *OPTIONS)
    deadline = time.monotonic() + 600
    while checkpoints.latest(output / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(timeout=300) == 1
    said = (tmp_path / "logs" / "0").read_text()
    assert "ProcessLostError: process 0 of 2 lost another process of the run" in said
    assert "continue with --resume" in said
    # On one process: a checkpoint does not depend on their number.
    config = rlvr_tiny.config(tiny_folder, output, *OPTIONS)
    train(config, resume=True, reward=rlvr_tiny.share_of_a)
    assert_same_run(output, single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "rollout.batch_size must be a multiple of the 3 processes, got 4"),
        (["--rollout.batch_size=6", "--preset=ppo"], "one process only"),
        (["--rollout.batch_size=6", "--rollout.engine=vllm"], "transformers or vllm_server"),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny_folder, tmp_path, options, message):
    from oneshot.rlvr.parts import check_shares

    config = rlvr_tiny.config(tiny_folder, tmp_path, *options)
    with pytest.raises(ValueError, match=message):
        check_shares(config, Processes(0, 3))


def test_shares_come_back_in_order():
    items = list(range(12))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert interleave(shares, 1) == items
    rows = [[(i, s) for i in share for s in range(2)] for share in shares]
    assert interleave(rows, 2) == [(i, s) for i in items for s in range(2)]

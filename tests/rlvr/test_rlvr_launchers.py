"""The command under torchrun and accelerate launch: their processes give the run of one."""

import subprocess
import sys

import pytest

from oneshot.training.jsonl import read_jsonl

PYTHON = [sys.executable, "-m"]
ACCELERATE = ["accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=4", "-m"],
    # --multi_gpu starts processes; where there is no GPU, accelerate alone would start one.
    "accelerate": [*ACCELERATE, "--multi_gpu", "--num_processes=2", "--dynamo_backend=no", "-m"],
}


def command(output, *options):
    """A few steps on the embedded model, every random number from the seed."""
    data = output.parent / "train.jsonl"
    data.write_text('{"problem": "Eva has 35 books and wins 79 more. How many?", "answer": "114"}')
    return [
        *("oneshot.cli", "rlvr", "train", "--model.source=embedded", f"--data.path={data}"),
        *("--rollout.batch_size=4", "--rollout.samples_per_prompt=4", "--rollout.temperature=1"),
        *("--rollout.max_new_tokens=32", "--optimizer.lr=1e-3", "--run.steps=3"),
        *("--run.threads=1", f"--run.output={output}", *options),
    ]


def figures(output):
    return [
        {k: v for k, v in row.items() if not k.startswith(("perf/", "engine/"))}
        for row in read_jsonl(output / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    output = tmp_path_factory.mktemp("single") / "run"
    subprocess.run([*PYTHON, *command(output)], check=True, timeout=300)
    return figures(output)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_processes_give_the_run_of_one(launcher, single, tmp_path):
    output = tmp_path / "run"
    words = [*PYTHON, *LAUNCHERS[launcher], *command(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("model  ") == 1  # the first process alone speaks
    many = figures(output)
    assert [row.keys() for row in many] == [row.keys() for row in single]
    for one, row in zip(single, many, strict=True):
        assert row == pytest.approx(one, rel=1e-3, abs=1e-5), row["step"]

"""Two processes (gloo, FSDP2) give the curve of one; a killed one ends the run, which resumes."""

import functools
import signal
import time

import pytest
import rlvr_families
import rlvr_runs
import rlvr_tiny
import torch
from safetensors.torch import load_file

from oneshot.rlvr.trainer import train
from oneshot.training import checkpoints
from oneshot.training.distributed import Processes, interleave
from oneshot.training.jsonl import read_jsonl

# Each with what only the whole rollout knows: loss weights, the critic's whitening, the mean of the
# importance weights, the draws of the random reward.
STEPS = ["--algorithm.updates_per_rollout=2", "--algorithm.microbatch_tokens=100"]
KINDS = {
    "grpo": STEPS,
    "ppo": [*STEPS, "--preset=ppo", "--critic.optimizer.lr=1e-3", "--algorithm.kl_in=reward"],
    "random": [
        *STEPS,
        "--reward.function=random",
        "--algorithm.overlong_buffer=0.5",
        "--algorithm.correction.level=token",
        "--algorithm.correction.normalize=true",
        "--rollout.parity_tolerance=1",  # its engine is skewed
    ],
    "dapo": [*STEPS, "--preset=dapo"],
    "mixed": [*STEPS, "--model.dtype=mixed"],
}


@pytest.fixture(scope="module")
def kinds(tiny_folder):
    """The options of each kind; one more is of a model with trained numbers in buffers."""
    model = tiny_folder / "gemma4"
    rlvr_families.write_with_buffers(model, "gemma4_text")
    return {**KINDS, "buffers": [*STEPS, f"--model.source={model}"]}


@pytest.fixture(scope="module")
def single(tiny_folder, tmp_path_factory, kinds):
    """The result of a kind of run on one process; each runs once."""
    folder = tmp_path_factory.mktemp("single")

    @functools.cache
    def run(kind):
        config = rlvr_tiny.config(tiny_folder, folder / kind, *kinds[kind])
        return rlvr_tiny.train_kind(kind, config)

    return run


@pytest.fixture(scope="module")
def on_two_processes(tiny_folder, tmp_path_factory, kinds):
    """A folder with a run of each kind on two processes."""
    folder = tmp_path_factory.mktemp("two")
    processes = rlvr_runs.start_two(tiny_folder, folder, folder / "logs", kinds)
    try:
        for rank, process in enumerate(processes):
            status = process.wait(timeout=500)
            assert status == 0, (folder / "logs" / str(rank)).read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return folder


def figures(output):
    return [
        {k: v for k, v in row.items() if not k.startswith(("perf/", "engine/"))}
        for row in read_jsonl(output / "metrics.jsonl")
    ]


def assert_same_run(output, single):
    one, two = figures(single.output), figures(output)
    assert [row.keys() for row in one] == [row.keys() for row in two]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-5), a["step"]
    last = checkpoints.latest(output / "checkpoints")
    files = sorted(p.relative_to(last) for p in last.rglob("*.safetensors"))
    assert files == sorted(
        p.relative_to(single.checkpoint) for p in single.checkpoint.rglob("*.safetensors")
    )
    for name in files:
        expected, found = load_file(single.checkpoint / name), load_file(last / name)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["grpo", "ppo", "random", "dapo", "buffers"])
def test_two_processes_give_the_curve_of_one(kind, on_two_processes, single):
    assert_same_run(on_two_processes / kind, single(kind))
    steps = [r for r in read_jsonl(on_two_processes / kind / "metrics.jsonl") if r["step"] > 0]
    differences = [row["engine/logprob_difference_max"] for row in steps]
    assert max(differences) < (1.01 if kind == "random" else 1e-4)


def test_mixed_precision_on_two_processes(on_two_processes, single):
    """bfloat16 rounds otherwise in FSDP2 than in autocast, so only the first step is the same."""
    output = on_two_processes / "mixed"
    one, two = (
        [row for row in figures(folder) if row["step"] > 0]
        for folder in (single("mixed").output, output)
    )
    assert two[0]["reward/mean"] == one[0]["reward/mean"]
    for name in ("policy/entropy", "optimizer/grad_norm"):
        assert two[0][name] == pytest.approx(one[0][name], rel=0.01), name
    steps = [row for row in read_jsonl(output / "metrics.jsonl") if row["step"] > 0]
    assert all(0 < row["engine/logprob_difference"] < 0.02 for row in steps)
    for path in checkpoints.latest(output / "checkpoints").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes(tiny_folder, single, tmp_path):
    output = tmp_path / "ppo"
    logs, kinds = tmp_path / "logs", {"ppo": KINDS["ppo"]}
    processes = rlvr_runs.start_two(tiny_folder, tmp_path, logs, kinds)
    deadline = time.monotonic() + 600
    while checkpoints.latest(output / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(timeout=300) == 1
    said = (tmp_path / "logs" / "0").read_text()
    assert "ProcessLostError: process 0 of 2 lost another process of the run" in said
    assert "continue with --resume" in said
    assert checkpoints.latest(output / "checkpoints").name != "step_000006"
    # On one process: a checkpoint does not depend on their number.
    config = rlvr_tiny.config(tiny_folder, output, *KINDS["ppo"])
    train(config, resume=True, reward=rlvr_tiny.share_of_a)
    assert_same_run(output, single("ppo"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "rollout.batch_size must be a multiple of the 3 processes, got 4"),
        (["--rollout.batch_size=6", "--rollout.engine=vllm"], "transformers or vllm_server"),
    ],
)
def test_what_cannot_be_shared_is_refused(tiny_folder, tmp_path, options, message):
    from oneshot.rlvr.builders import check_shares

    config = rlvr_tiny.config(tiny_folder, tmp_path, *options)
    with pytest.raises(ValueError, match=message):
        check_shares(config, Processes(0, 3))


def test_shares_come_back_in_order():
    items = list(range(12))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert interleave(shares, 1) == items
    rows = [[(i, s) for i in share for s in range(2)] for share in shares]
    assert interleave(rows, 2) == [(i, s) for i in items for s in range(2)]

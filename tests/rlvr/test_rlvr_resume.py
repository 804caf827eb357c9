"""kill -9 at any moment; the resumed run ends in the same bytes as an uninterrupted one."""

import hashlib
import json
import os
import signal
import time

import pytest
import rlvr_tiny
from rlvr_runs import Runner

from oneshot.training import checkpoints
from oneshot.training.jsonl import read_jsonl


@pytest.fixture(scope="module")
def runner():
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def whole(runner, tiny_folder, tmp_path_factory):
    """An uninterrupted run, and how often it touched a file."""
    output = tmp_path_factory.mktemp("whole") / "run"
    status, touches = runner.run(tiny_folder, output, overrides=["--run.keep_checkpoints=2"])
    assert status == 0
    return output, touches


def fingerprint(output):
    """Bytes of the last checkpoint, and every figure but the times."""
    last = checkpoints.latest(output / "checkpoints")
    files = {
        str(p.relative_to(last)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(last.rglob("*"))
        if p.is_file()
    }
    assert {"model.safetensors", "optimizer.safetensors", "trainer_state.json"} <= set(files)
    rows = [
        {k: v for k, v in row.items() if not k.startswith("perf/")}
        for row in read_jsonl(output / "metrics.jsonl")
    ]
    lines = [(output / name).read_bytes() for name in ("samples.jsonl", "accuracy.jsonl")]
    return last.name, files, rows, lines


def assert_same_end(output, whole):
    assert fingerprint(output) == fingerprint(whole)
    assert {p.name for p in (output / "checkpoints").iterdir()} == {"step_000004", "step_000006"}
    assert [row["step"] for row in read_jsonl(output / "metrics.jsonl")] == list(range(7))


def kill_and_resume(runner, tiny_folder, output, touches):
    """Kills at each of the given touches in turn, resuming every time; then lets it finish."""
    options = {"overrides": ["--run.keep_checkpoints=2"]}
    for i, kill_at in enumerate(touches):
        status, _ = runner.run(tiny_folder, output, resume=i > 0, kill_at=kill_at, **options)
        assert status == -signal.SIGKILL
    status, _ = runner.run(tiny_folder, output, resume=True, **options)
    assert status == 0


def test_the_run_learns_and_moves_the_weights(whole, tiny_folder):
    output, touches = whole
    before = (tiny_folder / "model" / "model.safetensors").read_bytes()
    after = (output / "checkpoints" / "step_000006" / "model.safetensors").read_bytes()
    assert before != after
    assert touches > 60


@pytest.mark.parametrize("share", [0.05, 0.5, 0.72, 0.94, 0.99])
def test_killed_at_a_file_operation(runner, tiny_folder, whole, tmp_path, share):
    kill_and_resume(runner, tiny_folder, tmp_path / "run", [round(share * whole[1])])
    assert_same_end(tmp_path / "run", whole[0])


def test_killed_three_times(runner, tiny_folder, whole, tmp_path):
    touches = [round(0.45 * whole[1]), 12, 25]
    kill_and_resume(runner, tiny_folder, tmp_path / "run", touches)
    assert_same_end(tmp_path / "run", whole[0])


PPO = [
    "--run.keep_checkpoints=2",
    "--algorithm.advantage=gae",
    "--algorithm.updates_per_rollout=2",
    "--algorithm.kl_in=reward",
    "--algorithm.loss.kl=k1",
    "--algorithm.correction.level=token",
    "--critic.optimizer.lr=1e-3",
    "--critic.optimizer.warmup_steps=9",
]


@pytest.fixture(scope="module")
def whole_ppo(runner, tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("ppo") / "run"
    status, touches = runner.run(tiny_folder, output, overrides=PPO)
    assert status == 0
    return output, touches


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_ppo_killed_and_resumed(runner, tiny_folder, whole_ppo, tmp_path, share):
    """Critic, its moments and its learning-rate warm-up are part of the checkpoint."""
    output = tmp_path / "run"
    kill_at = round(share * whole_ppo[1])
    status, _ = runner.run(tiny_folder, output, kill_at=kill_at, overrides=PPO)
    assert status == -signal.SIGKILL
    assert runner.run(tiny_folder, output, resume=True, overrides=PPO)[0] == 0
    assert_same_end(output, whole_ppo[0])
    files = fingerprint(output)[1]
    assert {"critic/model.safetensors", "critic/optimizer.safetensors"} <= set(files)


@pytest.mark.slow
def test_killed_at_every_file_operation(runner, tiny_folder, whole, tmp_path):
    for touch in range(1, whole[1] + 1):
        output = tmp_path / str(touch)
        kill_and_resume(runner, tiny_folder, output, [touch])
        assert_same_end(output, whole[0])


def test_killed_from_outside_in_the_middle_of_a_step(runner, tiny_folder, whole, tmp_path):
    output = tmp_path / "run"
    options = {"overrides": ["--run.keep_checkpoints=2"]}
    process = runner.start(tiny_folder, output, **options)
    deadline = time.monotonic() + 60
    while len(read_jsonl(output / "metrics.jsonl")) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert runner.wait()[0] == -signal.SIGKILL
    assert runner.run(tiny_folder, output, resume=True, **options)[0] == 0
    assert_same_end(output, whole[0])


def test_a_longer_run_continues_a_finished_one(runner, tiny_folder, whole, tmp_path):
    output = tmp_path / "run"
    options = ["--run.keep_checkpoints=2", "--evaluation.every=2"]
    for steps, resume in ((4, False), (6, True)):
        overrides = [*options, f"--run.steps={steps}"]
        assert runner.run(tiny_folder, output, resume=resume, overrides=overrides)[0] == 0
    last, files, _, lines = fingerprint(output)
    expected = fingerprint(whole[0])
    assert (last, files, lines) == (expected[0], expected[1], expected[3])


def test_resume_refuses_another_run(tiny_folder, whole, tmp_path):
    from oneshot.rlvr.trainer import train

    output = whole[0]
    before = fingerprint(output)
    with pytest.raises(FileExistsError, match="is not empty; continue its run with --resume"):
        train(rlvr_tiny.config(tiny_folder, output))
    with pytest.raises(ValueError, match=r"optimizer\.lr: saved 0\.001, requested 0\.002"):
        train(rlvr_tiny.config(tiny_folder, output, "--optimizer.lr=2e-3"), resume=True)
    with pytest.raises(ValueError, match=r"run\.steps is 3, but the run is already at step 6"):
        train(rlvr_tiny.config(tiny_folder, output, "--run.steps=3"), resume=True)
    assert fingerprint(output) == before
    state = output / "checkpoints" / "step_000006" / "trainer_state.json"
    text = state.read_text()
    try:
        state.write_text(json.dumps({**json.loads(text), "data_digest": "other"}))
        with pytest.raises(ValueError, match="the training data is not that of the run to resume"):
            train(rlvr_tiny.config(tiny_folder, output), resume=True)
        state.write_text("{")
        with pytest.raises(checkpoints.CheckpointError, match=r"no readable trainer_state\.json"):
            train(rlvr_tiny.config(tiny_folder, output), resume=True)
    finally:
        state.write_text(text)

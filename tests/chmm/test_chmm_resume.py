"""kill -9 at any moment; the resumed run ends in the same bytes as an uninterrupted one."""

import hashlib
import json
import signal

import chmm_tiny
import pytest
from chmm_runs import Runner

from oneshot.chmm.trainer import alternate, fit
from oneshot.training import checkpoints
from oneshot.training.jsonl import read_jsonl

SHORT = ["--training.epochs=3", "--alternate.loops=1"]


@pytest.fixture(scope="module")
def runner():
    runner = Runner()
    yield runner
    runner.close()


@pytest.fixture(scope="module", params=["fit", "alternate"])
def whole(request, runner, tiny_folder, tmp_path_factory):
    """An uninterrupted run, and how often it touched a file."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    status, touches = runner.run(request.param, tiny_folder, output, overrides=SHORT)
    assert status == 0
    return request.param, output, touches


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def fingerprint(output):
    """Bytes of the last checkpoint and of the results, and every figure."""
    last = checkpoints.latest(output / "checkpoints")
    results = {name: digests(output / name) for name in ("chmm", "tagger")}
    assert results["chmm"]
    return last.name, digests(last), results, read_jsonl(output / "metrics.jsonl")


@pytest.mark.parametrize("share", [0.9])
def test_killed_at_a_file_operation(runner, tiny_folder, whole, tmp_path, share):
    command, output, touches = whole
    kill_at = round(share * touches)
    status, _ = runner.run(command, tiny_folder, tmp_path / "run", kill_at=kill_at, overrides=SHORT)
    assert status == -signal.SIGKILL
    status, _ = runner.run(command, tiny_folder, tmp_path / "run", resume=True, overrides=SHORT)
    assert status == 0
    assert fingerprint(tmp_path / "run") == fingerprint(output)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_killed_three_times(runner, tiny_folder, whole, tmp_path):
    command, output, touches = whole
    for number, share in enumerate((0.4, 0.3, 0.2)):
        status, _ = runner.run(
            command,
            tiny_folder,
            tmp_path / "run",
            resume=number > 0,
            kill_at=round(share * touches),
            overrides=SHORT,
        )
        assert status == -signal.SIGKILL
    assert runner.run(command, tiny_folder, tmp_path / "run", resume=True, overrides=SHORT)[0] == 0
    assert fingerprint(tmp_path / "run") == fingerprint(output)


@pytest.mark.slow
def test_killed_at_every_file_operation(runner, tiny_folder, whole, tmp_path):
    command, output, touches = whole
    for kill_at in range(1, touches + 1):
        run = tmp_path / str(kill_at)
        assert (
            runner.run(command, tiny_folder, run, kill_at=kill_at, overrides=SHORT)[0]
            == -signal.SIGKILL
        )
        assert runner.run(command, tiny_folder, run, resume=True, overrides=SHORT)[0] == 0
        assert fingerprint(run) == fingerprint(output)


def test_a_finished_run_that_is_resumed_stays_as_it_is(runner, tiny_folder, whole):
    command, output, _ = whole
    before = fingerprint(output)
    assert runner.run(command, tiny_folder, output, resume=True, overrides=SHORT)[0] == 0
    assert fingerprint(output) == before


def test_a_longer_run_continues_a_finished_one(runner, tiny_folder, whole, tmp_path):
    command, output, _ = whole
    shorter = {"fit": "--training.epochs=1", "alternate": "--alternate.loops=0"}[command]
    run = tmp_path / "run"
    assert runner.run(command, tiny_folder, run, overrides=[*SHORT, shorter])[0] == 0
    assert runner.run(command, tiny_folder, run, resume=True, overrides=SHORT)[0] == 0
    assert fingerprint(run) == fingerprint(output)


def test_resume_refuses_another_run(tiny_folder, whole):
    command, output, _ = whole
    start = {"fit": fit, "alternate": alternate}[command]
    before = fingerprint(output)
    with pytest.raises(FileExistsError, match="is not empty; continue its run with --resume"):
        start(chmm_tiny.config(tiny_folder, output, *SHORT))
    with pytest.raises(ValueError, match=r"training\.nn_lr: saved 0\.01, requested 0\.02"):
        start(chmm_tiny.config(tiny_folder, output, *SHORT, "--training.nn_lr=0.02"), resume=True)
    assert fingerprint(output) == before
    state = checkpoints.latest(output / "checkpoints") / "state.json"
    text = state.read_text()
    try:
        state.write_text(json.dumps({**json.loads(text), "data_digest": "other"}))
        with pytest.raises(ValueError, match="the data is not that of the run to resume"):
            start(chmm_tiny.config(tiny_folder, output, *SHORT), resume=True)
        state.write_text("{")
        with pytest.raises(checkpoints.CheckpointError, match="damaged"):
            start(chmm_tiny.config(tiny_folder, output, *SHORT), resume=True)
    finally:
        state.write_text(text)

"""Running a study: shared runs, kills, folders in the way, the random reward's seeds."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import rlvr_tiny

from oneshot.cli import main
from oneshot.rlvr import recorder, trainer
from oneshot.rlvr.studies import study
from oneshot.training import checkpoints
from oneshot.training.jsonl import read_jsonl
from oneshot.training.seeding import derive_seed


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    """Drawing the curves of a run takes longer than a run."""
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)


@pytest.fixture
def base(tiny_folder, tmp_path):
    """Three steps of 2 x 2 responses, validated at every step; the files of all arms are there."""
    rows = (tiny_folder / "train.jsonl").read_text()
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "label_near", "label_guess", "label_wild", "full", "full_60", "full_90"):
        (folder / f"{name}.jsonl").write_text(rows)
    return rlvr_tiny.config(
        tiny_folder,
        tmp_path / "studies",
        f"--data.path={folder / 'train.jsonl'}",
        "--run.steps=3",
        "--run.save_every=1",
        "--run.keep_checkpoints=1",
        "--rollout.batch_size=2",
        "--rollout.samples_per_prompt=2",
        "--rollout.max_new_tokens=4",
        "--evaluation.every=1",
        "--reward.workers=1",
    )


@pytest.fixture
def trained(monkeypatch):
    """The folders of the runs that the trainer is asked for."""
    folders = []
    train = trainer.train

    def counted(config, *, resume=False):
        folders.append(config.run.output)
        return train(config, resume=resume)

    monkeypatch.setattr(trainer, "train", counted)
    return folders


def figures(folder):
    """Every figure of a run but the times."""
    return [
        {key: value for key, value in row.items() if not key.startswith("perf/")}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def test_runs_are_shared_between_arms_and_studies(base, trained, tmp_path, capsys):
    folder = tmp_path / "studies"
    result = study.run_study("algorithms", base, seeds=2)
    first, second = f"seed_{base.run.seed}", f"seed_{base.run.seed + 1}"
    critic = "algorithm.advantage=gae"
    names = [f"base/{first}", f"{critic}/{first}", f"base/{second}", f"{critic}/{second}"]
    assert trained == [str(folder / "runs" / name) for name in names]
    for name in names:  # another study may use them at the same time
        with (folder / "runs" / name / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert json.loads((folder / "algorithms" / "table.json").read_text()) == result
    written = (folder / "algorithms" / "table.md").read_text()
    assert "| GRPO |" in written
    assert (folder / "algorithms" / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = figures(folder / "runs" / "base" / second)
    trained.clear()
    capsys.readouterr()
    study.run_study("rewards", base, seeds=2)
    assert [f.rsplit("/", 2)[1] for f in trained] == [
        "reward.function=format",
        "reward.function=random",
    ] * 2
    assert capsys.readouterr().out.count("(was there)") == 2
    assert figures(folder / "runs" / "base" / second) == before
    trained.clear()
    assert study.run_study("algorithms", base, seeds=2) == result
    assert trained == []


def test_the_random_reward_follows_seed_and_step_alone(base, tmp_path):
    study.run_study("rewards", base, seeds=2)
    means = {}
    for seed in (base.run.seed, base.run.seed + 1):
        folder = tmp_path / "studies" / "runs" / "reward.function=random" / f"seed_{seed}"
        means[seed] = [row["reward/mean"] for row in figures(folder)[1:]]
        expected = []
        for step in (1, 2, 3):
            generator = random.Random(derive_seed(seed, "random reward", step))
            expected.append(sum(generator.random() < 0.5 for _ in range(4)) / 4)
        assert means[seed] == expected
    assert means[base.run.seed] != means[base.run.seed + 1]


KILLED = """
import json, sys
from pathlib import Path
import rlvr_tiny
from oneshot.rlvr import recorder, trainer
from oneshot.rlvr.studies import study
recorder.plot_curves = lambda *_, **__: None
tiny, output, overrides = json.loads(sys.argv[1])
study.run_study("algorithms", rlvr_tiny.config(Path(tiny), Path(output), *overrides), seeds=1)
"""


def test_a_killed_study_continues_where_it_was(base, trained, tiny_folder, tmp_path):
    base = replace(base, run=replace(base.run, steps=20, save_every=2))
    overrides = [
        f"--data.path={base.data.path}",
        "--run.steps=20",
        "--run.save_every=2",
        "--run.keep_checkpoints=1",
        "--rollout.batch_size=2",
        "--rollout.samples_per_prompt=2",
        "--rollout.max_new_tokens=4",
        "--evaluation.every=1",
        "--reward.workers=1",
    ]
    words = json.dumps([str(tiny_folder), base.run.output, overrides])
    here = os.path.dirname(rlvr_tiny.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([here, os.path.join(here, "..", "..")])
    process = subprocess.Popen([sys.executable, "-c", KILLED, words], env=environment)
    second = tmp_path / "studies" / "runs" / "algorithm.advantage=gae" / f"seed_{base.run.seed}"
    limit = time.monotonic() + 240
    while len(read_jsonl(second / "metrics.jsonl")) < 5:
        assert process.poll() is None, "the study ended before the kill"
        assert time.monotonic() < limit, "the second run did not come to its fifth line"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(FileExistsError, match=r"unfinished run; continue it with --resume"):
        study.run_study("algorithms", base, seeds=1)
    assert trained == []
    study.run_study("algorithms", base, seeds=1, resume=True)
    assert trained == [str(second)]
    elsewhere = replace(base, run=replace(base.run, output=str(tmp_path / "whole")))
    study.run_study("algorithms", elsewhere, seeds=1)
    for name in ("base", "algorithm.advantage=gae"):
        run = f"runs/{name}/seed_{base.run.seed}"
        assert figures(tmp_path / "studies" / run) == figures(tmp_path / "whole" / run)


@pytest.fixture
def done(base, tmp_path):
    """A finished study and the folder of its one kind of run."""
    study.run_study("post_saturation", base, seeds=1)
    return tmp_path / "studies" / "runs" / "run.steps=9" / f"seed_{base.run.seed}"


def test_a_finished_run_of_another_config_or_data_is_not_used(base, done):
    other = replace(base, optimizer=replace(base.optimizer, lr=0.5))
    with pytest.raises(ValueError, match=r"optimizer.lr: saved 0.001, requested 0.5"):
        study.run_study("post_saturation", other, seeds=1)
    with open(base.data.path, "w") as file:
        file.write(json.dumps({"problem": "3+4", "answer": "8"}) + "\n")
    with pytest.raises(ValueError, match=r"seed_\d+ was trained on other data than .*train.jsonl"):
        study.run_study("post_saturation", base, seeds=1)


def test_damaged_metrics_are_an_error(base, done):
    lines = (done / "metrics.jsonl").read_text().splitlines(keepends=True)
    (done / "metrics.jsonl").write_text("".join(lines[:4] + lines[5:]))
    with pytest.raises(ValueError, match=r"must have the steps 0 to 9, each once"):
        study.run_study("post_saturation", base, seeds=1)
    (done / "metrics.jsonl").write_text("".join([*lines[:4], "{", *lines[5:]]))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 5: damaged"):
        study.run_study("post_saturation", base, seeds=1)


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_left_alone(base, tmp_path, resume):
    folder = tmp_path / "studies" / "runs" / "base" / f"seed_{base.run.seed}"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"it has thesis.tex but no config.yaml"):
        study.run_study("rewards", base, seeds=1, resume=resume)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_lost_last_checkpoint_is_an_unfinished_run(base, done):
    shutil.rmtree(checkpoints.path(done / "checkpoints", 9))
    with pytest.raises(FileExistsError, match="unfinished run"):
        study.run_study("post_saturation", base, seeds=1)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_writes_is_not_touched(base, tmp_path):
    folder = tmp_path / "studies" / "runs" / "run.steps=9" / f"seed_{base.run.seed}"
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process is writing"):
            study.run_study("post_saturation", base, seeds=1)
    finally:
        holder.stdin.close()
        holder.wait()
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_wrong_arguments_are_named(base):
    with pytest.raises(ValueError, match=r"study must be one of one_vs_full, .*got 'curriculum'"):
        study.run_study("curriculum", base)
    with pytest.raises(ValueError, match="seeds must be a positive number, got 0"):
        study.run_study("rewards", base, seeds=0)
    blind = replace(base, evaluation=replace(base.evaluation, path=None))
    with pytest.raises(ValueError, match=r"evaluation must be given a path"):
        study.run_study("rewards", blind)
    late = replace(base, evaluation=replace(base.evaluation, before_training=False))
    with pytest.raises(ValueError, match=r"before_training: true"):
        study.run_study("rewards", late)


def test_command(base, tiny_folder, tmp_path, capsys):
    (tmp_path / "base.yaml").write_text(
        f"model: {{source: {tiny_folder / 'model'}}}\n"
        f"data: {{path: {base.data.path}}}\n"
        "rollout: {batch_size: 2, samples_per_prompt: 2, max_new_tokens: 4}\n"
        f"evaluation: {{path: {tiny_folder / 'eval.jsonl'}}}\n"
        f"run: {{output: {tmp_path / 'elsewhere'}, steps: 1, threads: 1, progress: false}}\n"
    )
    words = ["rlvr", "study", "post_saturation", "--config", str(tmp_path / "base.yaml")]
    words += ["--seeds", "1", "--output", str(tmp_path / "here"), "--run.seed", "5"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "[1/1] one example, seed 5: unseen 0.0% -> 0.0%\n" in printed
    table = (tmp_path / "here" / "post_saturation" / "table.md").read_text()
    assert table in printed
    assert "3 steps, seeds 5;" in table
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["rlvr", "study", "curriculum", "--config", str(tmp_path / "base.yaml")])

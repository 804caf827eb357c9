"""Multi-task training: it learns, resumes bit for bit, and is the same on two processes."""

import hashlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import poly_runs
import pytest
import torch

from oneshot.poly import storage
from oneshot.poly.trainer import check_share, train
from oneshot.training import checkpoints
from oneshot.training.distributed import Processes
from oneshot.training.errors import NonFiniteLossError
from oneshot.training.jsonl import read_jsonl


def rows(output):
    return read_jsonl(output / "metrics.jsonl")


def fingerprint(output):
    last = checkpoints.latest(output / "checkpoints")
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(last.iterdir())}
    return last.name, files, rows(output)


@pytest.fixture(scope="module")
def whole(digits_folder, tmp_path_factory):
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return train(poly_runs.train_config(digits_folder, output))


def test_what_a_run_leaves(whole):
    names = {p.name for p in whole.output.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints"} <= names
    for plot in ("curves.png", "routing.png", "tasks.png"):
        assert (whole.output / plot).read_bytes().startswith(b"\x89PNG")
    assert [row["step"] for row in whole.history] == [1, 2, 3, 4, 5, 6]
    assert {"dev/loss", "dev_loss/parity", "routing/entropy"} <= whole.history[-1].keys()
    samples = read_jsonl(whole.output / "samples.jsonl")
    tasks = ["first", "last", "parity"]
    assert [(s["step"], s["task"]) for s in samples] == [(n, t) for n in (3, 6) for t in tasks]
    assert all({"prompt", "answer", "references"} <= sample.keys() for sample in samples)
    assert whole.history[-1]["routing/uniform_entropy"] == pytest.approx(math.log(3))
    described = storage.read_description(whole.checkpoint)
    assert described["task_names"] == ["first", "last", "parity"]
    assert described["poly_config"]["tasks"] == 3
    # Warm-up is 0 steps of 6; then linearly to 0.
    rates = [row["optimizer/lr"] for row in whole.history]
    assert rates == pytest.approx([1e-3 * k / 6 for k in (6, 5, 4, 3, 2, 1)])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_it_learns_every_task(kind, digits_folder, tmp_path):
    overrides = ["--run.steps=60", "--run.evaluate_every=60", "--run.save_every=60"]
    overrides += [f"--model.source={digits_folder / kind}", "--optimizer.lr=2e-2"]
    overrides += ["--poly.rank=8", "--poly.alpha=8", "--optimizer.batch_size=32"]
    result = train(poly_runs.train_config(digits_folder, tmp_path / "run", *overrides))
    losses = [row["loss/train"] for row in result.history]
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]


def run_and_kill(folder, output, kill_at):
    """Runs until the kill_at-th file operation in the output folder, in a process of its own."""
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import poly_runs
from oneshot.poly import trainer
trainer.plot_curves = lambda history, path: None
trainer.plot_routing = lambda *_: None
count = 0
def hook(event, args):
    global count
    touches = event in ("open", "os.rename", "os.mkdir") and args
    if touches and str(args[0]).startswith({str(output)!r}):
        count += 1
        if count == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
trainer.train(poly_runs.train_config(Path({str(folder)!r}), Path({str(output)!r})), resume=True)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("kill_at", [24, 36])
def test_a_killed_run_ends_in_the_same_bytes(kill_at, whole, digits_folder, tmp_path):
    output = tmp_path / "run"
    killed = run_and_kill(digits_folder, output, kill_at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints.latest(output / "checkpoints") is not None
    train(poly_runs.train_config(digits_folder, output), resume=True)
    assert fingerprint(output) == fingerprint(whole.output)


def test_resuming_something_else_is_refused(whole, digits_folder):
    before = fingerprint(whole.output)
    with pytest.raises(FileExistsError, match="is not empty; continue its run with --resume"):
        train(poly_runs.train_config(digits_folder, whole.output))
    config = poly_runs.train_config(digits_folder, whole.output, "--optimizer.router_lr=0.2")
    with pytest.raises(ValueError, match=r"optimizer\.router_lr: saved 0\.1, requested 0\.2"):
        train(config, resume=True)
    assert fingerprint(whole.output) == before


def test_full_fine_tuning_resumes_bit_for_bit(digits_folder, tmp_path):
    options = ["--method=full", "--run.keep_checkpoints=null"]
    one = train(poly_runs.train_config(digits_folder, tmp_path / "one", *options))
    (tmp_path / "two").mkdir()
    shutil.copytree(tmp_path / "one", tmp_path / "two", dirs_exist_ok=True)
    for step in (4, 6):
        shutil.rmtree(checkpoints.path(tmp_path / "two" / "checkpoints", step))
    config = (tmp_path / "two" / "config.yaml").read_text()
    (tmp_path / "two" / "config.yaml").write_text(
        config.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    )
    two = train(poly_runs.train_config(digits_folder, tmp_path / "two", *options), resume=True)
    assert fingerprint(two.output) == fingerprint(one.output)
    assert not (one.output / "routing.png").exists()


@pytest.mark.parametrize("routing", ["private", "uniform"])
def test_baselines_and_microbatches(routing, digits_folder, tmp_path):
    options = [f"--poly.routing={routing}", "--poly.skills=1"]
    one = train(poly_runs.train_config(digits_folder, tmp_path / "one", *options))
    options += ["--optimizer.microbatch_size=3"]
    two = train(poly_runs.train_config(digits_folder, tmp_path / "two", *options))
    losses = [[row["loss/train"] for row in result.history] for result in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


ROUTINGS = {"learned": [], "uniform": ["--poly.routing=uniform", "--poly.skills=1"]}


@pytest.fixture(scope="module")
def on_two_processes(digits_folder, tmp_path_factory):
    """A folder with a run on two processes (gloo) for each kind of routing."""
    folder = tmp_path_factory.mktemp("two")
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import poly_runs
from oneshot.poly import trainer
trainer.plot_routing = lambda *_: None
for routing, options in {ROUTINGS!r}.items():
    output = Path({str(folder)!r}) / routing
    trainer.train(poly_runs.train_config(Path({str(digits_folder)!r}), output, *options))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in "01":
        own = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        log = (folder / f"log{rank}").open("w")
        processes.append(
            subprocess.Popen([sys.executable, "-c", code], env=own, stdout=log, stderr=log)
        )
    try:
        for rank, process in enumerate(processes):
            status = process.wait(timeout=900)
            assert status == 0, (folder / f"log{rank}").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("routing", sorted(ROUTINGS))
def test_two_processes_give_the_curve_of_one(
    routing, on_two_processes, whole, digits_folder, tmp_path
):
    single = whole
    if routing == "uniform":
        config = poly_runs.train_config(digits_folder, tmp_path / "one", *ROUTINGS[routing])
        single = train(config)
    one, two = rows(single.output), rows(on_two_processes / routing)
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for name in ("loss/train", "optimizer/grad_norm"):
        values = [[row[name] for row in history] for history in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-4), name
    assert two[-1]["dev/loss"] == pytest.approx(one[-1]["dev/loss"], rel=1e-4)


def test_the_number_of_tasks_is_that_of_the_data(digits_folder, tmp_path):
    options = ["--poly.tasks=4", "--run.steps=1"]
    with pytest.raises(ValueError, match=r"poly\.tasks must be left out: the data has 3, got 4"):
        train(poly_runs.train_config(digits_folder, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_is_refused(digits_folder, tmp_path):
    config = poly_runs.train_config(digits_folder, tmp_path / "run")
    with pytest.raises(ValueError, match="must be a multiple of the 3 processes, got 8"):
        check_share(config, Processes(0, 3))


def test_a_loss_that_explodes_stops_the_run(digits_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "llama"
    shutil.copytree(digits_folder / "llama", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = poly_runs.train_config(digits_folder, tmp_path / "run", f"--model.source={broken}")
    with pytest.raises(NonFiniteLossError, match="step 1: loss nan"):
        train(config)


def test_json_of_the_command(digits_folder, tmp_path, capsys):
    from oneshot.cli import main

    words = ["--model.source", str(digits_folder / "llama"), "--model.device=cpu"]
    words += ["--data.path", str(digits_folder / "tasks.jsonl"), "--data.prompt={input}:"]
    words += ["--data.test_examples=20", "--data.dev_examples=5", "--run.steps=2"]
    words += ["--poly.rank=2", f"--run.output={tmp_path / 'run'}", "--run.progress=false"]
    assert main(["poly", "train", *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["step"] == 2
    assert main(["poly", "train", *words]) == 1
    assert "is not empty" in capsys.readouterr().err
    adapters = tmp_path / "run" / "checkpoints" / "step_000002"
    common = [*words[:3], f"--adapters={tmp_path / 'run'}"]  # its newest checkpoint
    found, answers = tmp_path / "metrics.json", tmp_path / "answers.jsonl"
    command = ["eval", *common, *words[3:7]]
    command += ['--evaluation.metrics=["loss","rank_accuracy","strict_match"]']
    command += ["--evaluation.max_new_tokens=4", f"--predictions={answers}"]
    assert main(["poly", *command, f"--output={found}"]) == 0
    metrics = json.loads(found.read_text())
    assert set(metrics) == set(poly_runs.TASKS)
    for task, own in metrics.items():
        rows = [row for row in read_jsonl(answers) if row["task"] == task]
        assert len(rows) == 20
        right = sum(row["answer"] in row["references"] for row in rows)
        assert own["strict_match"] == pytest.approx(right / 20)
    common = [*words[:3], f"--adapters={adapters}"]
    assert "rank_accuracy" in metrics["parity"]
    assert "rank_accuracy" not in metrics["first"]  # ten answers are more than eight
    capsys.readouterr()
    for format in ("peft-poly", "peft-lora", "merged"):
        output = tmp_path / format
        command = ["export", *common, f"--output={output}", f"--format={format}", "--task=parity"]
        assert main(["poly", *command]) == 0
        assert (output / "model.safetensors").exists() == (format == "merged")
    assert main(["poly", *command]) == 1
    command[-1] = "--task=parties"
    command[5:7] = [f"--output={tmp_path / 'x'}", "--format=peft-lora"]
    assert main(["poly", *command]) == 1
    assert main(["poly"]) == 2

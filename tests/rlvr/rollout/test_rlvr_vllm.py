"""Training with vLLM as the rollout engine, in this process and as a server, on a tiny real model.

Run by `make test-vllm` in a virtual environment of its own. The engines are compared with the
trainer's own log-probs, and stale weights must be found.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import rlvr_families
import rlvr_runs
import rlvr_tiny
import torch

from oneshot.training import checkpoints
from oneshot.training.jsonl import read_jsonl

pytestmark = pytest.mark.vllm

URL = "http://127.0.0.1:8155"
LIMITS = ["--rollout.max_prompt_tokens=32", "--rollout.max_sequences=16"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # saves a compilation at the first request
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """vLLM uses operations that have no deterministic form."""
    return


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with heads of 32, the smallest that vLLM has on a CPU; output layer tied."""
    folder = tmp_path_factory.mktemp("vllm")
    rlvr_tiny.write_model(folder / "model", hidden_size=64, num_attention_heads=2)
    rlvr_tiny.write_problems(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    words = ["--data.path=unused", "--run.output=unused", f"--model.source={folder / 'model'}"]
    words += ["--rollout.max_new_tokens=12", f"--rollout.vllm.url={URL}", *LIMITS]
    code = "import sys; from oneshot.cli import main; sys.exit(main(sys.argv[1:]))"
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "rlvr", "serve", *words],
        env={**os.environ, **ENVIRONMENT},
        stdout=log,
        stderr=log,
    )
    import urllib.request

    deadline = time.monotonic() + 500
    while True:
        try:
            urllib.request.urlopen(f"{URL}/health", timeout=5).read()
            break
        except OSError:
            text = (folder / "server.log").read_text()
            assert process.poll() is None, text[-3000:]
            assert time.monotonic() < deadline, text[-3000:]
            time.sleep(1)
    yield URL
    process.terminate()
    process.wait(timeout=60)


def config_of(folder, output, engine, *overrides):
    words = [f"--rollout.engine={engine}", f"--rollout.vllm.url={URL}", *LIMITS, *overrides]
    return rlvr_tiny.config(folder, output, *words)


def run(folder, output, engine, *overrides, resume=False):
    from oneshot.rlvr.trainer import train

    config = config_of(folder, output, engine, "--optimizer.lr=5e-3", *overrides)
    return train(config, resume=resume, reward=rlvr_tiny.share_of_a)


STEPS = ["--run.steps=16", "--run.save_every=8", "--evaluation.every=8"]
CORRECTED = ["--algorithm.correction.level=token", "--algorithm.updates_per_rollout=2"]


@pytest.fixture
def in_process(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["vllm", "vllm_server"])
def engine(request):
    """Both modes of vLLM."""
    request.getfixturevalue("in_process" if request.param == "vllm" else "server")
    return request.param


def steps_of(result):
    return [row for row in result.history if row["step"] > 0]


def check_learning(rows):
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


@pytest.mark.parametrize("options", [[], CORRECTED], ids=["plain", "corrected"])
def test_training(engine, options, folder, tmp_path):
    result = run(folder, tmp_path / "run", engine, *STEPS, *options)
    rows = steps_of(result)
    check_learning(rows)
    assert 0 < max(row["engine/logprob_difference_max"] for row in rows) < 1e-4
    if options:
        weights = [row["correction/weight_mean"] for row in rows]
        assert weights == pytest.approx([1.0] * 16, abs=1e-3)
        assert max(abs(row["policy/old_kl"]) for row in rows) > 1e-4  # the second update's
    # Killed after step 8 and resumed: the same run, on new engines.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_000016")
    config = (tmp_path / "again" / "config.yaml").read_text()
    config = config.replace(str(tmp_path / "run"), str(tmp_path / "again"))
    (tmp_path / "again" / "config.yaml").write_text(config)
    again = run(folder, tmp_path / "again", engine, *STEPS, *options, resume=True)
    for one, two in zip(rows, steps_of(again), strict=True):
        for key in ("step", "reward/mean", "loss/policy", "policy/entropy"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), (one["step"], key)


def test_a_separate_output_layer(folder, tmp_path, in_process):
    options = {"hidden_size": 64, "num_attention_heads": 2, "tie_word_embeddings": False}
    rlvr_tiny.write_model(tmp_path / "model", **options)
    words = [f"--model.source={tmp_path / 'model'}", "--run.steps=4"]
    rows = steps_of(run(folder, tmp_path / "run", "vllm", *words))
    assert 0 < max(row["engine/logprob_difference_max"] for row in rows) < 1e-4


def test_a_mixture_of_experts_is_refused_where_its_weights_stay_stale(folder, tmp_path, in_process):
    """vLLM's kernel for experts on the CPU keeps its packed weights through a reload (0.32.0)."""
    from oneshot.rlvr.algorithm.weight_sync import ParityError

    options = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "head_dim": 32,
        "moe_intermediate_size": 32,
    }
    rlvr_families.write(tmp_path / "model", "qwen3_moe", **options)
    words = [f"--model.source={tmp_path / 'model'}", "--run.steps=4"]
    with pytest.raises(ParityError, match="rehearsal with perturbed weights"):
        run(folder, tmp_path / "run", "vllm", *words)
    assert not (tmp_path / "run").exists()


def test_a_bfloat16_engine_is_corrected(engine, folder, tmp_path):
    """Its log-probs are off, so the trainer's own count as the old ones."""
    options = ["--model.dtype=mixed", "--algorithm.correction.level=token"]
    rows = steps_of(run(folder, tmp_path / "run", engine, *STEPS, *options))
    check_learning(rows)
    differences = [row["engine/logprob_difference"] for row in rows]
    assert min(differences[:4]) > 1e-3  # later the policy is sure, and there is little to round
    assert max(differences) < 0.1
    assert all(abs(row["policy/old_kl"]) < 1e-6 for row in rows)
    assert all(row["correction/kl"] != 0 for row in rows)
    assert all(0.9 < row["correction/weight_mean"] < 1.1 for row in rows)


def test_a_tied_layer_that_stays_stale_is_found(folder, tmp_path, in_process, monkeypatch):
    """Without the repair of the tied output layer the run must not even begin."""
    from oneshot.rlvr.algorithm import weight_sync
    from oneshot.rlvr.rollout import vllm_worker

    monkeypatch.setattr(vllm_worker, "repack_tied_head", lambda model: None)
    with pytest.raises(weight_sync.ParityError, match="rehearsal with perturbed weights"):
        run(folder, tmp_path / "run", "vllm", *STEPS)
    assert not (tmp_path / "run").exists()


def test_a_weight_that_becomes_stale_stops_the_run(engine, folder, tmp_path, monkeypatch):
    """From the third update on one matrix is sent as it was at first."""
    from oneshot.rlvr.algorithm import weight_sync

    name = "model.layers.1.mlp.down_proj.weight"
    weights_of, sent = weight_sync.weights_of, []

    def stale(model):
        weights = dict(weights_of(model))
        sent.append(weights[name].clone())  # twice in the rehearsal, then after each update
        if len(sent) >= 5:
            weights[name] = sent[1]
        yield from weights.items()

    monkeypatch.setattr(weight_sync, "weights_of", stale)
    with pytest.raises(weight_sync.ParityError, match=r"step 4: .*checkpoints of earlier steps"):
        run(folder, tmp_path / "run", engine, "--run.steps=16", "--run.save_every=1")
    last = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert last.name == "step_000003"


def test_equal_prompts_get_different_responses_and_seeds_repeat(folder, server):
    from oneshot import models
    from oneshot.rlvr.algorithm.weight_sync import checkpoint_weights
    from oneshot.rlvr.rollout.factory import make_engine

    config = config_of(folder, folder / "unused", "vllm_server")
    model = models.load_model(str(folder / "model"))
    engine = make_engine(config, model, models.load_tokenizer(str(folder / "model")))
    engine.load_weights(checkpoint_weights(model))
    prompts = [[5, 9, 12]] * 4
    one = engine.generate(prompts, 4, 1)
    assert len(set(one.texts)) > 8
    two = engine.generate(prompts[:2], 4, 1, indices=[1, 3])
    assert two.texts == one.texts[4:8] + one.texts[12:]
    assert engine.generate(prompts, 4, 2).texts != one.texts
    lengths = one.response_mask.sum(1)
    eos = engine.vocabulary.stop_ids[0]
    last = one.response_ids[torch.arange(16), lengths - 1]
    assert torch.equal(last == eos, one.finished)
    assert 0 < int(one.finished.sum()) <= 16


def test_two_processes_share_a_server(folder, server, tmp_path):
    options = ["--rollout.engine=vllm_server", f"--rollout.vllm.url={URL}", *LIMITS]
    processes = rlvr_runs.start_two(folder, tmp_path, tmp_path / "logs", {"two": options})
    for rank, process in enumerate(processes):
        assert process.wait(timeout=500) == 0, (tmp_path / "logs" / str(rank)).read_text()[-3000:]
    one = rlvr_tiny.train_kind("one", rlvr_tiny.config(folder, tmp_path / "one", *options))
    rows = read_jsonl(tmp_path / "two" / "metrics.jsonl")
    for a, b in zip(one.history, rows, strict=True):
        for key in {"reward/mean", "loss/total", "policy/entropy"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=2e-3, abs=1e-5), (a["step"], key)
        assert b.get("engine/logprob_difference_max", 0) < 1e-4


def test_training_with_transformers_is_the_same_task(folder, tmp_path):
    result = run(folder, tmp_path / "run", "transformers", *STEPS)
    check_learning(steps_of(result))


def test_a_dead_server_is_named(folder, tmp_path):
    from oneshot.rlvr.rollout.vllm_server import RolloutServerError
    from oneshot.rlvr.trainer import train

    config = config_of(folder, tmp_path / "run", "vllm_server")
    dead = replace(config.rollout.vllm, url="http://127.0.0.1:9")
    config = replace(config, rollout=replace(config.rollout, vllm=dead))
    with pytest.raises(RolloutServerError, match="no answer from the rollout server at http"):
        train(config, reward=rlvr_tiny.share_of_a)

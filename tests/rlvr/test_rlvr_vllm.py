"""Training with vLLM as the rollout engine, in this process and as a server, on a tiny real model.

Run by `make test-vllm` in a virtual environment of its own. The engines are compared with the
trainer's own log-probs, and stale weights must be found.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import rlvr_tiny
import torch

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


def check_history(history):
    steps = [row for row in history if row["step"] > 0]
    differences = [row["engine/logprob_difference_max"] for row in steps]
    assert 0 < max(differences) < 1e-4
    rewards = [row["reward/mean"] for row in steps]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


@pytest.fixture
def in_process(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


STEPS = ["--run.steps=16", "--run.save_every=8", "--evaluation.every=8"]


def test_training_in_process(folder, tmp_path, in_process):
    result = run(folder, tmp_path / "run", "vllm", *STEPS)
    check_history(result.history)


def test_stale_weights_are_found(folder, tmp_path, in_process, monkeypatch):
    """Without the repair of the tied output layer the run must not even begin."""
    from oneshot.rlvr import vllm_worker, weight_sync

    monkeypatch.setattr(vllm_worker, "repack_tied_head", lambda model: None)
    with pytest.raises(weight_sync.ParityError, match="rehearsal with perturbed weights"):
        run(folder, tmp_path / "run", "vllm", *STEPS)
    assert not (tmp_path / "run").exists()


def test_training_on_a_server(folder, server, tmp_path):
    corrected = ["--algorithm.correction.level=token", "--algorithm.updates_per_rollout=2"]
    result = run(folder, tmp_path / "run", "vllm_server", *STEPS, *corrected)
    check_history(result.history)
    weights = [row["correction/weight_mean"] for row in result.history if row["step"] > 0]
    assert weights == pytest.approx([1.0] * 16, abs=1e-3)
    again = run(folder, tmp_path / "again", "vllm_server", *STEPS, *corrected)
    keys = ("reward/mean", "loss/policy", "policy/entropy")
    for one, two in zip(result.history, again.history, strict=True):
        assert [one.get(k) for k in keys] == pytest.approx([two.get(k) for k in keys])


def test_equal_prompts_get_different_responses_and_seeds_repeat(folder, server):
    from oneshot import models
    from oneshot.rlvr.engines import make_engine

    config = config_of(folder, folder / "unused", "vllm_server")
    model = models.load_model(str(folder / "model"))
    engine = make_engine(config, model, models.load_tokenizer(str(folder / "model")))
    engine.load_weights((n, p.detach()) for n, p in model.named_parameters())
    prompts = [[5, 9, 12]] * 4
    one = engine.generate(prompts, 4, 1)
    assert len(set(one.texts)) > 8
    two = engine.generate(prompts[:2], 4, 1, places=[1, 3])
    assert two.texts == one.texts[4:8] + one.texts[12:]
    assert engine.generate(prompts, 4, 2).texts != one.texts
    lengths = one.response_mask.sum(1)
    eos = engine.vocabulary.stop_ids[0]
    last = one.response_ids[torch.arange(16), lengths - 1]
    assert torch.equal(last == eos, one.finished)
    assert 0 < int(one.finished.sum()) <= 16


def test_training_with_transformers_is_the_same_task(folder, tmp_path):
    result = run(folder, tmp_path / "run", "transformers", *STEPS)
    rewards = [row["reward/mean"] for row in result.history if row["step"] > 0]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


def test_a_dead_server_is_named(folder, tmp_path):
    from oneshot.rlvr.trainer import train
    from oneshot.rlvr.vllm_server import RolloutServerError

    config = config_of(folder, tmp_path / "run", "vllm_server")
    dead = replace(config.rollout.vllm, url="http://127.0.0.1:9")
    config = replace(config, rollout=replace(config.rollout, vllm=dead))
    with pytest.raises(RolloutServerError, match="no answer from the rollout server at http"):
        train(config, reward=rlvr_tiny.share_of_a)

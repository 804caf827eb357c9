"""Dynamic sampling: groups without a signal get other responses, and nothing else does."""

import pytest
import rlvr_tiny
import torch

from oneshot.rlvr import recorder
from oneshot.rlvr.algorithm.dynamic_sampling import DynamicSampling
from oneshot.rlvr.config import load_train_config
from oneshot.rlvr.problems.data import Problem
from oneshot.rlvr.problems.training_set import TrainingSet
from oneshot.rlvr.rewards.reward import Reward, RewardResult
from oneshot.rlvr.rollout.engine import chosen
from oneshot.rlvr.rollout.transformers_engine import TransformersEngine
from oneshot.rlvr.trainer import train
from oneshot.training.distributed import Processes
from oneshot.training.seeding import derive_seed


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(recorder, "plot_curves", lambda *_, **__: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def row(rollout, i):
    """Everything that counts in one row."""
    prompt, response = rollout.prompt_mask[i], rollout.response_mask[i]
    logprobs = None if rollout.logprobs is None else rollout.logprobs[i][response].tolist()
    return (
        rollout.prompt_ids[i][prompt].tolist(),
        rollout.response_ids[i][response].tolist(),
        rollout.texts[i],
        bool(rollout.finished[i]),
        logprobs,
    )


@pytest.mark.parametrize("report", [False, True])
def test_chosen_rows_are_those_rows(tiny, report):
    def sample(prompts, n, seed, limit):
        engine = TransformersEngine(
            *tiny, temperature=1.0, max_new_tokens=limit, report_logprobs=report
        )
        return engine.generate(prompts, n, seed)

    parts = [
        sample([[5, 9, 12], [7]], 3, 1, 4),
        sample([[8]], 3, 2, 15),
        sample([[5, 9, 12, 8, 8, 9, 10]], 3, 3, 1),
    ]
    rows = [9, 0, 1, 8, 11, 5, 5]
    flat = [row(part, i) for part in parts for i in range(len(part))]
    found = chosen(parts, rows)
    assert [row(found, i) for i in range(len(found))] == [flat[i] for i in rows]
    # Prompts are padded on the left, responses on the right.
    assert found.prompt_mask[:, -1].all()
    assert found.response_mask[:, 0].all()
    assert found.prompt_mask.shape[1] == 7
    assert (found.response_mask.int().diff(dim=1) <= 0).all()
    assert chosen(parts[:1], range(6)) is parts[0]


class Scripted(Reward):
    """Gives out lists of scores and remembers what it was asked."""

    def __init__(self, *scores):
        self.scores, self.asked = list(scores), []

    def __call__(self, responses, problems, step=0, rows=None):
        self.asked.append(([problem.answer for problem in problems], list(rows)))
        return RewardResult(self.scores.pop(0), timeouts=1)


def test_only_groups_without_signal_are_sampled_again(tiny, tiny_folder, tmp_path):
    words = ["--rollout.samples_per_prompt=2", "--algorithm.dynamic_sampling_rounds=3"]
    config = rlvr_tiny.config(tiny_folder, tmp_path, *words)
    rows = [(Problem(f"p{i}", f"a{i}", i), [5 + i, 9, 12]) for i in range(8)]
    engine = TransformersEngine(*tiny, temperature=1.0, max_new_tokens=9)
    asked = []
    generate = engine.generate

    def watched(prompts, n, seed, *, indices):
        asked.append((prompts, seed, list(indices)))
        return generate(prompts, n, seed, indices=indices)

    engine.generate = watched
    score = Scripted([1.0, 1.0, 0.0, 0.5], [0.0, 0.0], [3.0, 2.0])
    indices = [1, 3, 0]  # of this process
    first = generate([rows[index][1] for index in indices], 2, 77, indices=indices)
    resample = DynamicSampling(TrainingSet(rows, config), engine, score, 3)
    found = resample(first, [0.0, 1.0, 0.5, 0.5, 1.0, 1.0], indices, 6)
    # Groups 1 and 2 have no signal, after the first round only group 1 (index 3) has none.
    assert [asked_indices for _, _, asked_indices in asked] == [[3, 0], [3], [3]]
    seed = config.run.seed
    assert [own for _, own, _ in asked] == [derive_seed(seed, "rollout", 6, k) for k in (1, 2, 3)]
    assert [own for _, own in score.asked] == [[14, 15, 8, 9], [22, 23], [30, 31]]
    answers = [f"a{prompt[0] - 5}" for prompts, _, _ in asked for prompt in prompts]
    assert [a for names, _ in score.asked for a in names] == [a for a in answers for _ in range(2)]
    assert found.scores == [0.0, 1.0, 3.0, 2.0, 0.0, 0.5]
    assert (found.sampled, found.mixed, found.ungraded) == (4, 3, 3)
    drawn = [generate(prompts, 2, own, indices=where) for prompts, own, where in asked]
    expected = [(first, 0), (first, 1), (drawn[2], 0), (drawn[2], 1), (drawn[0], 2), (drawn[0], 3)]
    assert [row(found.rollout, i) for i in range(6)] == [row(part, i) for part, i in expected]
    figures = resample.metrics(found, Processes())
    assert figures == {
        "dynamic_sampling/sampled": 1.0,
        "dynamic_sampling/mixed": 0.75,
        "dynamic_sampling/ungraded": 3,
    }


def test_a_step_without_signal_learns_from_the_next_round(tiny_folder, tmp_path):
    """No KL, no entropy: the gradient is that of the refilled groups alone."""

    def reward(responses, problems):
        calls.append(len(responses))
        flat = len(calls) <= rounds_flat
        return [0.0 if flat else float(i % 2) for i in range(len(responses))]

    norms = {}
    for rounds, rounds_flat in ((0, 1), (1, 1), (2, 2), (2, 3)):
        calls = []
        config = rlvr_tiny.config(
            tiny_folder,
            tmp_path / f"{rounds}_{rounds_flat}",
            "--preset=dapo",
            f"--algorithm.dynamic_sampling_rounds={rounds}",
            "--algorithm.overlong_buffer=0",
            "--run.steps=1",
        )
        last = train(config, reward=reward).history[-1]
        norms[rounds, rounds_flat] = last["optimizer/grad_norm"]
        assert last["reward/mean"] == last["group/mixed"] == 0  # of what was sampled at first
        assert calls == [16] * (1 + rounds)
        if rounds == 0:
            assert not any(
                key.startswith(("dynamic_sampling/", "perf/dynamic_sampling")) for key in last
            )
        else:
            assert last["dynamic_sampling/sampled"] == rounds
            assert last["dynamic_sampling/mixed"] == float(rounds >= rounds_flat)
    assert norms[0, 1] == norms[2, 3] == 0
    assert norms[1, 1] > 0.01
    assert norms[2, 2] > 0.01


def test_a_resumed_run_draws_the_same(tiny_folder, tmp_path):
    options = ["--preset=dapo", "--rollout.samples_per_prompt=2"]
    whole = train(
        rlvr_tiny.config(tiny_folder, tmp_path / "whole", *options), reward=rlvr_tiny.share_of_a
    )
    assert sum(r.get("dynamic_sampling/sampled", 0) for r in whole.history if r["step"] > 2) > 0
    for steps in (2, 6):
        config = rlvr_tiny.config(tiny_folder, tmp_path / "run", *options, f"--run.steps={steps}")
        parts = train(config, resume=True, reward=rlvr_tiny.share_of_a)
    names = ("model.safetensors", "optimizer.safetensors")
    for name in names:
        assert (parts.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()


def test_options():
    needed = ["--data.path=d.jsonl", "--run.output=o"]
    assert load_train_config(None, needed).algorithm.dynamic_sampling_rounds == 0
    assert (
        load_train_config(None, [*needed, "--preset=dapo"]).algorithm.dynamic_sampling_rounds == 9
    )
    for words in (
        ["--algorithm.dynamic_sampling_rounds=-1"],
        ["--preset=ppo", "--algorithm.dynamic_sampling_rounds=2"],
    ):
        with pytest.raises(ValueError, match=r"algorithm\.dynamic_sampling_rounds must be"):
            load_train_config(None, [*needed, *words])

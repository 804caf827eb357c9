"""Few-shot adaptation: every mode, selection by dev examples, resuming, the table."""

import dataclasses
import json

import poly_runs
import pytest
import torch

from oneshot.poly import adaptation, storage
from oneshot.poly.adaptation import adapt, summarize
from oneshot.poly.experiments.miniature import MiniatureConfig, inventories, miniature
from oneshot.poly.trainer import train
from oneshot.training.jsonl import read_jsonl


@pytest.fixture(scope="module")
def pretrained(digits_folder, tmp_path_factory):
    """Adapters after a short multi-task run."""
    output = tmp_path_factory.mktemp("pretrained") / "run"
    return train(poly_runs.train_config(digits_folder, output)).checkpoint


@pytest.fixture(scope="module")
def private(digits_folder, tmp_path_factory):
    """The run folder of private adapters after one step."""
    output = tmp_path_factory.mktemp("private") / "run"
    options = ["--poly.routing=private", "--run.steps=1", "--run.evaluate_every=1"]
    return train(poly_runs.train_config(digits_folder, output, *options)).output


@pytest.mark.parametrize("mode", ["poly", "z", "mu", "soup", "full"])
def test_modes(mode, pretrained, private, digits_folder, tmp_path):
    source = {"full": [], "soup": [f"--pretrained={private}"]}.get(
        mode, [f"--pretrained={pretrained}"]
    )
    options = [f"--mode={mode}", *source, "--zero_shot=true"]
    rows = adapt(poly_runs.adapt_config(digits_folder, tmp_path / "run", *options))
    assert [(r["task"], r["shots"], r["seed"]) for r in rows] == [
        ("larger", 8, 1),
        ("larger", 8, 2),
    ]
    for row in rows:
        assert {"exact_match", "zero_shot_exact_match", "dev_loss", "step"} <= row.keys()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summarize(rows)
    answers = read_jsonl(tmp_path / "run" / "predictions.jsonl")
    for row in rows:
        own = [a for a in answers if a["seed"] == row["seed"]]
        assert len(own) == 20
        right = [a["answer"] in a["references"] for a in own]  # digits: nothing to normalize
        assert sum(right) / 20 == pytest.approx(row["exact_match"])


def test_a_soup_of_routed_adapters_is_refused(pretrained, digits_folder, tmp_path):
    options = ["--mode=soup", f"--pretrained={pretrained}"]
    with pytest.raises(ValueError, match='mode must be "mu" for routed adapters, got "soup"'):
        adapt(poly_runs.adapt_config(digits_folder, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["z", "mu", "soup"])
def test_modes_that_need_a_trained_inventory(mode, digits_folder, tmp_path):
    with pytest.raises(ValueError, match=f'pretrained must be given for mode "{mode}"'):
        poly_runs.adapt_config(digits_folder, tmp_path / "run", f"--mode={mode}")


def trained_parameters(mode, pretrained, digits_folder, tmp_path):
    model, _ = adaptation.backbone.load(poly_runs.adapt_config(digits_folder, tmp_path / "x").model)
    options = [f"--mode={mode}", f"--pretrained={pretrained}"]
    config = poly_runs.adapt_config(digits_folder, tmp_path / "x", *options)
    poly = adaptation._start(config, model)
    return sum(p.numel() for p in poly.parameters() if p.requires_grad), poly


def test_what_trains_in_each_mode(pretrained, digits_folder, tmp_path):
    """Poly: inventory and one row; z: the row; mu: one adapter, 1 / K of the inventory."""
    found = {
        mode: trained_parameters(mode, pretrained, digits_folder, tmp_path)
        for mode in ("poly", "z", "mu")
    }
    poly = found["poly"][1]
    row = len(poly.groups) * 2 * 3
    inventory = sum(p.numel() for la in poly.layers.values() for p in la.inventory().values())
    assert {mode: count for mode, (count, _) in found.items()} == {
        "poly": inventory + row,
        "z": row,
        "mu": inventory // 3,
    }


def test_an_adaptation_leaves_the_model_as_it_was(pretrained, digits_folder, tmp_path):
    config = poly_runs.adapt_config(
        digits_folder, tmp_path / "run", f"--pretrained={pretrained}", "--optimizer.lr=0.1"
    )
    model, encoding = adaptation.backbone.load(config.model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    task = adaptation.read_tasks(config.data)[0]
    first = adaptation.adapt_one(config, model, encoding, task, 8, 1)
    assert dict(model.named_parameters()).keys() == before.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert adaptation.adapt_one(config, model, encoding, task, 8, 1) == first


@pytest.mark.parametrize(
    ("dev_losses", "step"), [([1.0, 0.5, 0.9], 2), ([0.5, 0.5, 0.6], 0), ([0.9, 0.8, 0.7], 4)]
)
def test_the_step_is_chosen_on_dev_examples_and_test_examples_are_seen_once(
    dev_losses, step, pretrained, digits_folder, tmp_path, monkeypatch
):
    """With these dev losses at steps 0, 2 and 4; the weights measured are those of that step."""
    seen = []

    def spy(model, encoding, examples, number, config, record=None):
        seen.append((examples, model.router.logits.detach().clone()))
        return {"loss": [*dev_losses, 0.1][len(seen) - 1]}

    monkeypatch.setattr(adaptation, "evaluate", spy)
    options = [f"--pretrained={pretrained}", "--seeds=[1]", '--evaluation.metrics=["loss"]']
    config = poly_runs.adapt_config(digits_folder, tmp_path / "run", *options)
    (row,) = adapt(config)
    split = adaptation.read_tasks(config.data)[0].split(8, 8, 1)
    assert [examples for examples, _ in seen] == [split.dev] * 3 + [split.test]
    parts = [{e.prompt for e in part} for part in (split.train, split.dev, split.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert (row["step"], row["dev_loss"], row["loss"]) == (step, min(dev_losses), 0.1)
    weights = [logits for _, logits in seen]
    assert [torch.equal(weights[3], w) for w in weights[:3]] == [s == step for s in (0, 2, 4)]


def test_resume_skips_what_is_done(pretrained, digits_folder, tmp_path, monkeypatch):
    options = [f"--pretrained={pretrained}"]
    whole = adapt(poly_runs.adapt_config(digits_folder, tmp_path / "whole", *options))
    config = poly_runs.adapt_config(digits_folder, tmp_path / "run", *options)
    adapt(config)
    results = tmp_path / "run" / "results.jsonl"
    results.unlink()  # killed in the second adaptation
    (tmp_path / "run" / "cells" / "larger, 8 shots, seed 2.json").unlink()
    ran = []
    real = adaptation.adapt_one
    monkeypatch.setattr(
        adaptation, "adapt_one", lambda *a, record: ran.append(a[-1]) or real(*a, record=record)
    )
    assert adapt(config, resume=True) == whole
    assert ran == [2]
    assert read_jsonl(results) == whole
    answers = [read_jsonl(tmp_path / name / "predictions.jsonl") for name in ("whole", "run")]
    assert answers[0] == answers[1]
    with pytest.raises(FileExistsError, match="continue its run with --resume"):
        adapt(config)
    other = dataclasses.replace(config, shots=(4,))
    with pytest.raises(ValueError, match="shots"):
        adapt(other, resume=True)


def test_too_few_examples_are_seen_before_any_work(pretrained, digits_folder, tmp_path):
    config = poly_runs.adapt_config(digits_folder, tmp_path / "run", "--shots=[8,41]")
    with pytest.raises(ValueError, match=r"task larger: 82 training and dev examples .* 80 remain"):
        adapt(config)
    assert not (tmp_path / "run").exists()


def test_selecting_by_ranks_needs_options(pretrained, digits_folder, tmp_path):
    config = poly_runs.adapt_config(digits_folder, tmp_path / "run", "--select_by=rank_accuracy")
    with pytest.raises(ValueError, match="task larger has no options, so no rank_accuracy"):
        adapt(config)


def test_summary():
    """Means over tasks, then mean and standard deviation over seeds."""
    rows = [
        {"task": t, "shots": 8, "seed": s, "step": 1, "exact_match": v}
        for t, s, v in [("a", 1, 0.2), ("b", 1, 0.4), ("a", 2, 0.6), ("b", 2, 1.0)]
    ]
    found = summarize(rows)["8"]["exact_match"]
    assert found["mean"] == pytest.approx(0.55)
    assert found["std"] == pytest.approx(0.5 / 2**0.5)
    assert found["by_task"] == {"a": pytest.approx(0.4), "b": pytest.approx(0.7)}


def test_miniature_runs_and_continues(digits_folder, tmp_path):
    train_one = poly_runs.train_config(digits_folder, tmp_path / "run", "--run.steps=2")
    adapt_one = poly_runs.adapt_config(digits_folder, tmp_path / "unused", "--run.steps=2")
    config = MiniatureConfig(train=train_one, adapt=adapt_one)
    table = miniature(config)
    lines = table.splitlines()
    assert lines[0] == "| arm | exact_match, 8 shots |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| lora", "| lora-big", "| poly", "| poly-s", "| poly-mu", "| poly-z"
    ]  # fmt: skip
    assert (tmp_path / "run" / "table.md").read_text() == table + "\n"
    (tmp_path / "run" / "table.md").unlink()
    assert miniature(config, resume=True) == table
    sizes = {}
    for name in ("lora", "lora-big", "poly"):
        (checkpoint,) = (tmp_path / "run" / "train" / name / "checkpoints").iterdir()
        tensors = storage.load_file(checkpoint / storage.TENSORS)
        sizes[name] = sum(t.numel() for key, t in tensors.items() if "lora" in key)
    assert sizes["lora-big"] == sizes["poly"] == 3 * sizes["lora"]
    scales = {poly.scale for poly in inventories(train_one.poly).values()}
    assert len(scales) == 1


def test_miniature_refuses_overlapping_tasks(digits_folder, tmp_path):
    train_one = poly_runs.train_config(digits_folder, tmp_path / "run")
    adapt_one = poly_runs.adapt_config(digits_folder, tmp_path / "x", '--data.tasks=["parity"]')
    with pytest.raises(ValueError, match=r"tasks that are not in train\.data\.tasks"):
        MiniatureConfig(train=train_one, adapt=adapt_one)

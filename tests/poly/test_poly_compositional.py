"""String tasks of shared skills: the tasks, the experiment in miniature, its statistics."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from oneshot.poly import adaptation, backbone, storage
from oneshot.poly.config import AdaptConfig, DataConfig, ModelConfig, RunConfig
from oneshot.poly.experiments.compositional import experiment
from oneshot.poly.experiments.compositional import string_tasks as compositional_tasks
from oneshot.poly.experiments.compositional.base_model import SYMBOLS, make_tokenizer, write_base
from oneshot.poly.experiments.compositional.config import (
    ARMS,
    LONGEST_ANSWER,
    CompositionalConfig,
    Place,
    inventories,
)
from oneshot.poly.experiments.compositional.experiment import compositional
from oneshot.poly.experiments.compositional.report import (
    comparisons,
    paired,
    standard_error,
    trained_parameters,
)
from oneshot.poly.experiments.compositional.routing import (
    rank_correlation,
    read_weights,
    routing_correlation,
    scaled,
)
from oneshot.poly.experiments.compositional.string_tasks import (
    COMPOSITIONS,
    Composition,
    few_shot_rows,
    instruction_rows,
    make_split,
    reserved,
    seen,
)
from oneshot.poly.model import inject
from oneshot.training.config import load
from oneshot.training.jsonl import read_jsonl

# ---- tasks --------------------------------------------------------------------------------------

FORWARD = "abcdefghij"


def undecorate(answer, decoration):
    if decoration == "double":
        half = len(answer) // 2
        assert answer[:half] == answer[half:]
        return answer[:half]
    if decoration == "gap":
        assert set(answer[1::2]) <= {"x"}
        return answer[::2]
    if decoration == "wrap":
        assert answer[0] + answer[-1] == "yz"
        return answer[1:-1]
    return answer


def unmap(text, alphabet):
    images = {
        "same": "abcdefghij",
        "next": "bcdefghija",
        "mirror": "jihgfedcba",
        "number": "0123456789",
        "far": "klmnopqrst",
    }
    return "".join(FORWARD[images[alphabet].index(letter)] for letter in text)


def unorder(text, order):
    """The word before the order; of a sorted one, only its letters are known."""
    if order == "reverse":
        return "".join(reversed(text))
    if order == "rotate":
        return text[-1] + text[:-1]
    if order == "swap":
        whole = list(text)
        for i in range(0, len(whole) - 1, 2):
            whole[i], whole[i + 1] = whole[i + 1], whole[i]
        return "".join(whole)
    return text


def selected(word, selection):
    keep = {
        "all": range(len(word)),
        "head": range(3),
        "tail": range(len(word) - 3, len(word)),
        "odd": [i for i in range(len(word)) if i % 2 == 0],
    }
    return "".join(word[i] for i in keep[selection])


@pytest.mark.parametrize("word", ["hbdgeaf", "abcde", "jjaabb", "gacjih"])
def test_answers_undone_by_hand(word):
    assert len({c.name for c in COMPOSITIONS}) == 400
    for task in COMPOSITIONS:
        answer = task.apply(word)
        before = unorder(unmap(undecorate(answer, task.decoration), task.alphabet), task.order)
        expected = selected(word, task.selection)
        if task.order == "sort":
            assert before == "".join(sorted(expected)), task.name
        else:
            assert before == expected, task.name
        assert len(answer) + 2 <= LONGEST_ANSWER  # a blank and the end


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("all-copy-same-plain", "hbdgeaf"),
        ("head-sort-mirror-gap", "ixgxc"),
        ("tail-rotate-number-double", "054054"),
        ("odd-swap-next-wrap", "yeigfz"),
        ("all-swap-far-plain", "lrqnkop"),
    ],
)
def test_answers_by_hand(name, answer):
    assert Composition(*name.split("-")).apply("hbdgeaf") == answer


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_compositions_are_in_no_training(seed):
    splits = [make_split(seed, number, 48) for number in range(1, 5)]
    held_out = [task for split in splits for task in split.held_out]
    assert len(set(held_out)) == 24 == 4 * 6
    assert set(held_out) == set(reserved(seed)) == set(COMPOSITIONS) - set(seen(seed))
    default = Composition("all", "copy", "same", "plain")
    for task in held_out:
        assert sum(a != b for a, b in zip(task, default, strict=True)) >= 3
    for split in splits:
        assert len(set(split.train)) == 48
        assert not set(split.train) & set(held_out)
        for factor in range(4):  # every skill is in some training task
            names = {task[factor] for task in COMPOSITIONS}
            assert {task[factor] for task in split.train} == names
    assert make_split(seed, 3, 48) == splits[2]
    assert make_split(seed + 1, 3, 48) != splits[2]


def test_base_prompts_name_no_held_out_composition():
    codes = {task.code: task for task in COMPOSITIONS}
    assert len(codes) == 400
    rows = list(instruction_rows(seen(0), 3000, 0.2, 5))
    assert rows == list(instruction_rows(seen(0), 3000, 0.2, 5))
    unnamed = 0
    for prompt, answer in rows:
        code, word = prompt.removesuffix("=").split(":")
        if code == "?":
            unnamed += 1
            assert answer in {task.apply(word) for task in seen(0)}
        else:
            assert codes[code] not in reserved(0)
            assert answer == codes[code].apply(word)
    assert 0.16 < unnamed / len(rows) < 0.24


def test_rows_of_a_split():
    split = make_split(0, 1, 4)
    rows = list(few_shot_rows(split, 30, 7))
    assert rows == list(few_shot_rows(split, 30, 7))
    tags = set()
    for task in (*split.train, *split.held_out):
        mine = [row for row in rows if row["task"] == task.name]
        words = [row["input"] for row in mine]
        assert len(set(words)) == len(words) == 30
        assert all(5 <= len(word) <= 7 and set(word) <= set(FORWARD) for word in words)
        assert [row["output"] for row in mine] == [task.apply(word) for word in words]
        (tag,) = {row["definition"] for row in mine}
        assert len(tag) == 2
        tags.add(tag)
    assert len(tags) == 10
    with pytest.raises(ValueError, match=r"split must be in 1 \.\. 4, got 5"):
        make_split(0, 5, 4)
    with pytest.raises(ValueError, match=r"tasks must be in 1 \.\. 376, got 377"):
        make_split(0, 1, 377)


def test_tokenizer_has_one_token_for_each_character():
    tokenizer = make_tokenizer()
    text = "?vo:hbdgeaf= ixg05"
    ids = tokenizer(text).input_ids
    assert ids == [SYMBOLS.index(letter) for letter in text]
    assert tokenizer.decode(ids) == text


# ---- the experiment -----------------------------------------------------------------------------

ALL_KINDS = (
    "lora", "lora-big-k2", "private", "soup", "full", "poly-k2",
    "poly-s-k2-h4", "poly-mu-k2-h4", "poly-z-k2", "mhr-z-k2-h4",
)  # fmt: skip


def tiny(output, *overrides):
    return load(
        CompositionalConfig,
        None,
        [
            f"--output={output}",
            f"--arms={json.dumps(ALL_KINDS)}",
            "--tasks=3",
            "--strings=12",
            "--shots=[2]",
            "--draws=[1]",
            "--dev_examples=2",
            "--test_examples=2",
            "--base.layers=1",
            "--base.hidden_size=16",
            "--base.attention_heads=2",
            "--base.strings=400",
            "--base.steps=2",
            "--base.optimizer.batch_size=4",
            "--train_steps=2",
            "--train_optimizer.batch_size=4",
            "--adapt_steps=2",
            "--adapt_optimizer.batch_size=2",
            "--device=cpu",
            "--progress=false",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("compositional") / "run"
    return output, compositional(tiny(output))


@pytest.fixture(scope="module", autouse=True)
def _few_held_out():
    """One base measurement of three examples: the real one has 300."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oneshot.poly.experiments.compositional.base_model.CHECKED", 3)
        yield


def test_the_whole_command_in_miniature(finished):
    output, report = finished
    results = json.loads((output / "results.json").read_text())
    split = make_split(0, 1, 3)
    assert [(row["arm"], row["task"]) for row in results["adaptation"]] == list(
        itertools.product(ALL_KINDS, [task.name for task in split.held_out])
    )
    assert results["base"].keys() == {"1"}
    assert results["base"]["1"].keys() == {"seen", "held_out", "unnamed"}
    trained = {row["inventory"]: row for row in results["training"]}
    assert trained.keys() == {"lora", "lora-big-k2", "private", "full", "poly-k2", "poly-s-k2-h4"}
    routed = {name for name, row in trained.items() if row["rank_correlation"] is not None}
    assert routed == {"poly-k2", "poly-s-k2-h4"}
    assert (output / "table.md").read_text() == report + "\n"
    for arm in ALL_KINDS:
        assert f"| {arm} |" in report
    assert "| poly-s-k2-h4 - poly-k2 |" in report
    assert (output / "compositional.png").read_bytes().startswith(b"\x89PNG")


def unfinished(config, output):
    return [cell.name for cell in experiment.cells(config, output) if not cell.is_done(output)]


def test_a_killed_run_continues_and_keeps_what_is_done(finished, tmp_path):
    """Killed within an adaptation and before a training run has ended."""
    output, report = finished
    shutil.copytree(output, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    output = tmp_path / "run"
    config = output / "config.yaml"
    config.write_text(config.read_text().replace(str(finished[0]), str(output)))
    cell = output / "split_1" / "seed_1" / "plain"
    torn = cell / "adapt" / "poly-s-k2-h4"
    for file in (torn.with_suffix(".json"), torn / "summary.json", torn / "results.jsonl"):
        file.unlink()
    (torn / "cells" / f"{make_split(0, 1, 3).held_out[1].name}, 2 shots, seed 1.json").unlink()
    shutil.rmtree(cell / "train" / "poly-k2")
    (cell / "train" / "poly-k2.json").unlink()
    folders = [path for path in (cell / "adapt").iterdir() if path.is_dir()]
    for folder in folders:  # sub-runs name their folders in their configs
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace(str(finished[0]), str(output)))
    before = {p: p.read_bytes() for p in output.rglob("*.safetensors")}
    assert unfinished(tiny(output), output) == [
        "split_1/seed_1/plain/train/poly-k2",
        "split_1/seed_1/plain/adapt/poly-s-k2-h4",
    ]
    (output / "results.json").unlink()
    with pytest.raises(FileExistsError, match="continue its run with --resume"):
        compositional(tiny(output))
    assert compositional(tiny(output), resume=True) == report
    after = {p: p.read_bytes() for p in output.rglob("*.safetensors")}
    assert {p: after[p] for p in before} == before
    remade = sorted(str(p.relative_to(output)) for p in after.keys() - before.keys())
    again = json.loads((output / "results.json").read_text())
    whole = json.loads((finished[0] / "results.json").read_text())
    for name in ("base", "training", "adaptation", "parameters"):
        assert again[name] == whole[name]
    assert remade
    for name in remade:
        assert (finished[0] / name).read_bytes() == (output / name).read_bytes(), name


def test_a_resumed_run_may_measure_other_cells_only(finished):
    output, _ = finished
    wider = tiny(output, "--arms=[lora]", "--splits=[1,2]", '--prompts=["plain","tagged"]')
    assert unfinished(wider, output) == [
        f"split_{split}/seed_1/{prompts}/{what}"
        for split, prompts in [(1, "tagged"), (2, "plain"), (2, "tagged")]
        for what in ("train/lora", "adapt/lora")
    ]
    with pytest.raises(ValueError, match="train_steps"):
        compositional(tiny(output, "--train_steps=3"), resume=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--arms=[poly]", r"arms must be some of lora, private, .* got \('poly',\)"),
        ("--arms=[]", "arms must be some of"),
        ("--splits=[5]", "splits must be some of 1, 2, 3, 4"),
        ("--seeds=[]", "seeds must be at least one number"),
        ("--seeds=[1,1]", "seeds must be values that differ"),
        ("--tasks=377", r"tasks must be in 2 \.\. 376"),
        ("--strings=5", "strings must be >= 6, got 5"),
        ("--train_steps=0", "train_steps must be a positive number"),
    ],
)
def test_wrong_configs_are_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path / "run", override)


def test_the_config_names_known_arms():
    path = Path(__file__).parents[2] / "configs" / "poly" / "compositional.yaml"
    config = load(CompositionalConfig, path)
    assert set(config.arms) > set(CompositionalConfig("x").arms)
    assert (config.seeds, config.splits) == ((1, 2, 3), (1, 2))


def test_prompts_of_the_control_say_which_task_it_is(finished):
    output, _ = finished
    config = tiny(output)
    split = make_split(0, 1, 3)
    for prompts, form in (("plain", r"\?:"), ("tagged", r"\?[a-z]{2}:")):
        data = experiment._data(config, Place(1, 1, prompts), output, split.train)
        for task in adaptation.read_tasks(data):
            fixed = {example.prompt.split(":")[0] for example in task.pool}
            assert len(fixed) == 1
            assert re.fullmatch(form, fixed.pop() + ":")


@pytest.mark.parametrize("arm", ALL_KINDS)
def test_parameter_counts_are_those_of_the_models(arm, tmp_path):
    config = tiny(tmp_path / "unused")
    write_base(config.base, 1, tmp_path / "base")
    chosen = ARMS[arm]
    base, _ = backbone.load(ModelConfig(str(tmp_path / "base"), device="cpu"))
    pretrained = None
    if chosen.mode != "full" and chosen.inventory is not None:
        poly = inject(base, inventories(config.poly)[chosen.inventory])
        for parameter in poly.adapter_parameters().values():
            parameter.data.normal_()  # as if trained: mixtures that are all alike route nothing
        storage.save(poly, tmp_path / "adapters")
        base = poly.unload()
        pretrained = str(tmp_path / "adapters")
    adapt = AdaptConfig(
        DataConfig("unused"),
        RunConfig("unused"),
        pretrained=pretrained,
        poly=inventories(config.poly)["lora"],
        mode=chosen.mode,
    )
    learned = adaptation._start(adapt, base)
    counted = sum(p.numel() for p in learned.parameters() if p.requires_grad)
    assert trained_parameters(config, chosen) == counted


# ---- statistics ---------------------------------------------------------------------------------


def made_up(seed=0, splits=2, seeds=3, tasks=4, draws=2):
    """Exact matches of two arms with shots 4 and 16, as numbers [shots, arm, split, seed, ...]."""
    values = np.random.default_rng(seed).uniform(size=(2, 2, splits, seeds, tasks, draws))
    rows = [
        {
            "shots": (4, 16)[s],
            "arm": ("a", "b")[a],
            "split": split,
            "pretraining_seed": seed,
            "task": f"task{task}",
            "seed": draw,
            "exact_match": float(values[s, a, split, seed, task, draw]),
        }
        for s, a, split, seed, task, draw in np.ndindex(*values.shape)
    ]
    return rows, values


@pytest.mark.parametrize("seed", [0, 1])
def test_paired_differences_against_numpy(seed):
    rows, values = made_up(seed)
    order = np.random.default_rng(9).permutation(len(rows))
    for s, shots in enumerate((4, 16)):
        found = paired([rows[i] for i in order], "a", "b", shots)
        difference = values[s, 0] - values[s, 1]
        assert found.pairs == difference.size == 48
        assert found.mean == pytest.approx(difference.mean())
        assert found.standard_error == pytest.approx(difference.std(ddof=1) / 48**0.5)
        by_task = difference.mean((1, 3)).ravel()  # a task of another split is another task
        assert found.task_standard_error == pytest.approx(by_task.std(ddof=1) / 8**0.5)
        assert found.by_seed == pytest.approx(dict(enumerate(difference.mean((0, 2, 3)))))


def test_unpaired_arms_are_refused():
    rows, _ = made_up()
    with pytest.raises(ValueError, match=r"arms a and b must have the same .* got 48 and 47"):
        paired([row for row in rows[:-1] if row["shots"] == 16], "a", "b", 16)
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired(rows, "a", "b", 32)


def test_standard_error_of_one_value_is_unknown():
    assert np.isnan(standard_error([0.5]))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1.0, 2, 3, 4], [10.0, 20, 30, 35], 1.0),
        ([1.0, 2, 3], [3.0, 2, 1], -1.0),
        ([1.0, 2, 2, 4], [1.0, 3, 2, 4], 4.5 / (4.5 * 5) ** 0.5),
    ],
)
def test_rank_correlation_by_hand(x, y, expected):
    """The third: ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4; centred products 4.5, squares 4.5 and 5."""
    assert rank_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_rank_correlation_against_numpy():
    """Mean ranks by counting: of values below, and of equal ones."""
    x, y = np.random.default_rng(3).integers(0, 6, size=(2, 200))
    ranks = [
        [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values] for values in (x, y)
    ]
    expected = np.corrcoef(ranks)[0, 1]
    assert rank_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected)


def test_routing_by_the_true_skills_correlates_perfectly():
    """One head for each factor, one skill for each of its values: the distance counts them."""
    tasks = make_split(0, 1, 24).train
    weights = torch.zeros(1, 24, 4, 5)
    for i, task in enumerate(tasks):
        for head, factor in enumerate(("SELECTION", "ORDER", "ALPHABET", "DECORATION")):
            weights[0, i, head, list(getattr(compositional_tasks, factor)).index(task[head])] = 1
    assert routing_correlation(weights, tasks) == pytest.approx(-1)
    shuffled = weights[:, torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    assert abs(routing_correlation(shuffled, tasks)) < 0.3


def test_weights_read_from_a_checkpoint(finished):
    output, _ = finished
    train = output / "split_1" / "seed_1" / "plain" / "train"
    (checkpoint,) = (train / "poly-s-k2-h4" / "checkpoints").iterdir()
    logits = storage.load_file(checkpoint / storage.TENSORS)["router.logits"]
    gates = torch.sigmoid(logits)
    torch.testing.assert_close(read_weights(checkpoint), gates / gates.sum(-1, keepdim=True))
    (checkpoint,) = (train / "lora" / "checkpoints").iterdir()
    assert read_weights(checkpoint) is None
    assert read_jsonl(train / "lora" / "metrics.jsonl")[-1]["step"] == 2


def test_the_map_keeps_distances_of_points_in_a_plane():
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    found = scaled(distances)
    torch.testing.assert_close(
        torch.cdist(found, found, compute_mode="donot_use_mm_for_euclid_dist"), distances
    )


def test_comparisons():
    assert comparisons(["lora", "lora-big-k2"]) == [("lora-big-k2", "lora")]
    assert set(comparisons(list(ARMS))) >= {
        ("poly-s-k2-h8", "poly-k2"),
        ("poly-s-k2-h8", "lora"),
        ("poly-k2", "lora"),
        ("poly-mu-k3-h4", "poly-s-k3-h4"),
        ("mhr-z-k3-h8", "poly-z-k3"),
        ("mhr-z-k3-h8", "poly-s-k3-h8"),
        ("poly-z-k8", "poly-k8"),
        ("private", "lora"),
    }
    assert all(arm != other for arm, other in comparisons(list(ARMS)))

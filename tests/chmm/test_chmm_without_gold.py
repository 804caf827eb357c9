"""The ordinary case: no gold labels, one split. It fits, alternates, labels and compares."""

import dataclasses
import json
import re

import chmm_tiny
import numpy as np
import pytest
import yaml

from oneshot.chmm import checkpoint, prepare
from oneshot.chmm.dataset import Sentence, WeakDataset
from oneshot.chmm.labelling import label
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.tagger.model import Tagger
from oneshot.chmm.trainer import alternate
from oneshot.cli import main
from oneshot.training.config import to_dict


def bare(folder, source, splits=("train",), **changes):
    """The tiny set with some of its splits, without gold labels."""
    folder.mkdir()
    (folder / "meta.json").write_text((source / "meta.json").read_text())
    for split in splits:
        records = json.loads((source / f"{split}.json").read_text())
        for record in records.values():
            record.pop("label", None)
            record.update(changes)
        (folder / f"{split}.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="module")
def root(tiny_folder, tmp_path_factory):
    """A folder with data/ and the runs fit/ and alt/ of the commands with default selection."""
    root = tmp_path_factory.mktemp("bare")
    bare(root / "data", tiny_folder / "data")
    (root / "bert").symlink_to(tiny_folder / "bert")
    values = to_dict(chmm_tiny.config(root, root, "--alternate.loops=1", "--training.epochs=2"))
    del values["run"]["output"]
    (root / "tiny.yaml").write_text(yaml.safe_dump(values))
    return root


def command(root, name, *words):
    return main(["chmm", name, "--config", str(root / "tiny.yaml"), *words])


def test_fit_then_label(root, capsys):
    assert command(root, "fit", f"--run.output={root / 'fit'}") == 0
    shown = capsys.readouterr().out
    assert "chosen by log-likelihood of valid" in shown
    assert "training stopped too early" in shown
    assert "--resume --training.epochs 6" in shown
    results = json.loads((root / "fit" / "results.json").read_text())
    assert set(results) == {"train", "valid"}
    for figures in results.values():
        assert figures["log_likelihood_per_token"] < 0
        assert figures["entities"]["COLOUR"] > 0
    sources = json.loads((root / "fit" / "sources.json").read_text())
    assert list(sources) == chmm_tiny.SOURCES
    output = root / "labels.jsonl"
    words = [str(root / "fit" / "chmm"), str(root / "data"), "--output", str(output)]
    assert main(["chmm", "label", *words]) == 0
    assert "split 'train'" in capsys.readouterr().err  # the only one there is
    lines = [json.loads(line) for line in output.read_text().split("\n")[:-1]]
    records = json.loads((root / "data" / "train.json").read_text())
    assert [line["id"] for line in lines] == list(records)  # held-out sentences too
    assert [line["tokens"] for line in lines] == [r["data"]["text"] for r in records.values()]
    assert all(line["label_names"] == ["O", "B-COLOUR", "I-COLOUR"] for line in lines)


def test_alternate_then_label_plain_text(root, capsys, tmp_path):
    assert command(root, "alt", f"--run.output={root / 'alt'}") == 0
    shown = capsys.readouterr().out
    assert "first CHMM  loop 0  valid log-likelihood/token -" in shown
    assert "F1 against the CHMM's labels of valid" in shown
    text = tmp_path / "notes.txt"
    text.write_text("\ufeffa cat in red .\n\nthe\u00a0hat is no\u2028more\n", encoding="utf-8")
    output = tmp_path / "labels.jsonl"
    assert label(root / "alt" / "tagger", text, None, output) == 2
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["1", "3"]
    assert lines[1]["tokens"] == ["the\u00a0hat", "is", "no\u2028more"]
    with pytest.raises(ValueError, match="a CHMM needs the votes of its sources"):
        label(root / "alt" / "chmm", text, None, output)
    text.write_text(" \n")
    with pytest.raises(ValueError, match=r"notes\.txt: no token in it"):
        label(root / "alt" / "tagger", text, None, output)


def test_eval_shows_what_it_can(root, tmp_path, monkeypatch, capsys):
    from oneshot.chmm import evaluation

    def broken(trial):
        raise RuntimeError("this cell is broken")

    monkeypatch.setitem(evaluation.METHODS, "vote", broken)
    words = ["chmm", "eval", str(root / "tiny.yaml"), "--run.output=x", "--output", str(tmp_path)]
    methods = "source,vote,vote-io,chmm,supervised"
    assert main([*words, "--methods", methods]) == 1
    rows = {row["row"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert "has no gold labels" in rows["source"]["missing"]
    assert "split 'train', sentence 0 has no gold" in rows["supervised"]["missing"]
    assert rows["vote"]["missing"] == "RuntimeError: this cell is broken"
    assert "Traceback" in capsys.readouterr().err
    assert rows["majority vote, IO (WRENCH)"]["valid_entities"] > 0
    assert rows["CHMM"]["valid_log_likelihood_per_token"] < 0
    monkeypatch.undo()
    assert main([*words, "--methods", methods]) == 0  # a failed cell is tried again
    assert "broken" not in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fit", ["--training.selection=f1"], "training.selection: f1 needs gold .* split 'valid'"),
        ("alt", ["--training.selection=f1"], "training.selection: f1 needs gold .* split 'valid'"),
        ("alt", ["--tagger.selection=gold"], "tagger.selection: gold needs gold .* split 'valid'"),
        ("alt", ["--tagger.max_subwords=65"], "tagger.max_subwords must be at most 64, got 65"),
        ("alt", ["--tagger.source=no/such/tagger"], "no such folder|could not be loaded"),
        ("fit", ["--data.sources=[lexicon,typo]"], "no source 'typo'"),
    ],
)
def test_errors_come_before_the_work_and_leave_nothing_behind(
    root, tmp_path, monkeypatch, capsys, name, options, message
):
    monkeypatch.setattr(prepare, "embed", lambda *_: pytest.fail("the expensive step"))
    (tmp_path / "made").mkdir()  # by the user, before the run
    for output in (tmp_path / "run", tmp_path / "made"):
        assert command(root, name, f"--run.output={output}", *options) == 1
        assert re.search(message, " ".join(capsys.readouterr().err.split()))
        assert not output.exists() or {p.name for p in output.iterdir()} <= {".lock"}
    monkeypatch.undo()
    assert command(root, "fit", f"--run.output={tmp_path / 'made'}", "--training.epochs=1") == 0


@pytest.mark.parametrize(
    ("size", "train", "valid"), [(1, 1, 1), (2, 1, 1), (9, 8, 1), (10, 9, 1), (25, 23, 2)]
)
def test_a_tenth_of_train_is_held_out(size, train, valid):
    sentences = tuple(
        Sentence((str(i),), np.zeros((1, 1), np.int64), id=str(i)) for i in range(size)
    )
    labels = LabelSpace(("X",))
    dataset = WeakDataset(labels, ("a",), {"train": sentences, "test": sentences[:1]})
    found = prepare.with_valid(dataset, "x")
    assert {k: len(v) for k, v in found.splits.items()} == {
        "train": train, "valid": valid, "test": 1
    }  # fmt: skip
    ids = {s.id for split in ("train", "valid") for s in found.split(split)}
    assert ids == {s.id for s in sentences}
    assert f"{valid} of {size} sentences of train are held out" in found.notes[0]
    assert prepare.with_valid(found, "x") is found
    with pytest.raises(ValueError, match=r"data\.path: x has no file of the split 'train', only t"):
        prepare.with_valid(WeakDataset(labels, ("a",), {"test": sentences}), "x")


def test_partly_annotated_gold_selects_nothing_and_is_noted(root, tmp_path):
    bare(tmp_path / "data", root / "data")
    records = json.loads((tmp_path / "data" / "train.json").read_text())
    for key in ("9", "10"):
        records[key]["label"] = [[3, 4, "COLOUR"]]
    (tmp_path / "data" / "train.json").write_text(json.dumps(records))
    (tmp_path / "bert").symlink_to(root / "bert")
    dataset = prepare.read_checked(chmm_tiny.config(tmp_path, tmp_path))
    notes = " ".join(dataset.notes)
    assert "1 of its 2 sentences have them): likelihood selects" in notes
    assert "split 'train' is not scored: 1 of 22 sentences have gold labels" in notes


def test_a_model_reads_files_as_its_training_did(tmp_path, tiny_folder):
    """What a run was told about its files need not be said again to `label`."""
    folder = tmp_path / "data"
    folder.mkdir()
    weak = [["O", "I-X"], ["B-Y", "-"], ["I-X", "O"]]
    record = {"data": {"text": ["a", "red", "cat"]}, "weak_labels": weak}
    empty = {"data": {"text": []}, "weak_labels": []}
    (folder / "train.json").write_text(
        json.dumps({str(i): record for i in range(4)} | {"e": empty})
    )
    (tmp_path / "bert").symlink_to(tiny_folder / "bert")
    options = [
        "--data.stray_inside=begin", "--data.empty=skip", "--data.overlaps=longest",
        "--data.rule=abstain", "--training.epochs=1", "--alternate.loops=0", "--tagger.epochs=1",
        "--tagger.dtype=mixed",
    ]  # fmt: skip
    alternate(chmm_tiny.config(tmp_path, tmp_path / "run", *options))
    saved = checkpoint.load_model(tmp_path / "run" / "chmm").data
    assert (saved.rule, saved.stray_inside, saved.overlaps) == ("abstain", "begin", "longest")
    assert (saved.empty, saved.o_is_silence) == ("skip", False)  # the files have O and silence
    tagger = Tagger.open(tmp_path / "run" / "tagger")
    assert (tagger.max_subwords, tagger._dtype) == (24, "mixed")
    for name in ("chmm", "tagger"):
        output = tmp_path / f"{name}.jsonl"
        assert label(tmp_path / "run" / name, folder, None, output) == 4


def test_no_bars_without_progress(root, tmp_path, capfd):
    """From Python as well as from the command line; what the user has set comes back."""
    from transformers.utils import logging

    logging.enable_progress_bar()
    options = ["--training.epochs=1", "--alternate.loops=0", "--tagger.epochs=1"]
    alternate(chmm_tiny.config(root, tmp_path / "run", *options))
    assert logging.is_progress_bar_enabled()
    assert "%|" not in capfd.readouterr().err


def test_the_hmm_obeys_the_rule(root, tmp_path):
    """Its rows see the observations that the CHMM beside them sees."""
    from oneshot.chmm import evaluation
    from oneshot.chmm.baselines.hmm import ClassicalHMM

    config = chmm_tiny.config(root, tmp_path)
    dataset = prepare.read_checked(config)
    for rule in ("reference", "abstain", "vote_o"):
        options = dataclasses.replace(config.data, rule=rule)
        trial = evaluation.Trial(
            dataclasses.replace(config, data=options), prepare.Prepared(dataset, {})
        )
        for method, scheme in (("hmm", "bio"), ("hmm-io", "io")):
            ((_, found),) = evaluation.METHODS[method](trial).items()
            model = ClassicalHMM(dataset.labels, rule=rule, scheme=scheme)
            labels = model.fit(dataset.split("train")).predict(dataset.split("valid"))
            spans = sum(len(dataset.labels.to_spans(ids)) for ids in labels)
            assert found == {"valid_entities": spans}

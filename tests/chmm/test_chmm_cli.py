"""`oneshot chmm`: every command on the tiny data set, from the words to the files."""

import json

import chmm_tiny
import numpy as np
import pytest
import yaml

from oneshot.chmm.config import ChmmConfig
from oneshot.chmm.labelling import label
from oneshot.chmm.prepare import prepare
from oneshot.cli import main
from oneshot.training.checkpoints import CheckpointError
from oneshot.training.config import load, to_dict


@pytest.fixture(scope="module")
def config_file(tiny_folder, tmp_path_factory):
    """A YAML file that says all but the output."""
    values = to_dict(chmm_tiny.config(tiny_folder, tiny_folder, "--alternate.loops=1"))
    del values["run"]["output"]
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def runs(config_file, tmp_path_factory):
    """Finished runs of fit and alt."""
    root = tmp_path_factory.mktemp("runs")
    for command in ("fit", "alt"):
        words = ["chmm", command, "--config", str(config_file), f"--run.output={root / command}"]
        assert main(words) == 0
    return root


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fit_writes_everything(runs):
    names = {p.name for p in (runs / "fit").iterdir()}
    assert {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "chmm",
        "results.json", "curves.png", "sources.png", "transitions.png",
    } <= names  # fmt: skip
    assert [row["step"] for row in lines(runs / "fit" / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    results = json.loads((runs / "fit" / "results.json").read_text())
    assert set(results) == {"train", "valid", "test"}
    assert results["test"]["f1"] > 0.3


def test_labels_of_a_chmm_are_its_predictions(runs, config_file, tmp_path, capsys):
    config = load(ChmmConfig, config_file, [f"--run.output={tmp_path}"])
    output = tmp_path / "labels.jsonl"
    words = ["chmm", "label", str(runs / "fit" / "chmm"), config.data.path, "--output", str(output)]
    assert main(words) == 0
    assert "8 sentences in" in capsys.readouterr().out
    from oneshot.chmm.checkpoint import load_model

    prepared = prepare(config)
    found = load_model(runs / "fit" / "chmm").model.predict(
        prepared.examples["test"], constrained=True
    )
    names = prepared.dataset.labels.names
    for i, row in enumerate(lines(output)):
        assert row["tokens"] == list(prepared.dataset.split("test")[i].tokens)
        assert row["labels"] == [names[x] for x in found.labels[i]]
        np.testing.assert_allclose(row["posteriors"], found.posteriors[i], atol=1e-6)
        spans = prepared.dataset.labels.to_spans(found.labels[i])
        assert row["spans"] == [list(span) for span in spans]


def test_labels_of_a_tagger_and_of_a_chmm_with_a_tagger(runs, config_file, tmp_path):
    config = load(ChmmConfig, config_file, [f"--run.output={tmp_path}"])
    history = lines(runs / "alt" / "metrics.jsonl")
    for name, kind in (("tagger", "tagger"), ("chmm", "chmm")):
        output = tmp_path / f"{name}.jsonl"
        count = label(runs / "alt" / name, config.data.path, "test", output, constrained=False)
        assert count == 8
        from oneshot.chmm import metrics

        dataset = prepare(config).dataset
        found = [dataset.labels.from_names(r["labels"], "begin") for r in lines(output)]
        gold = metrics.gold_of(dataset.split("test"))
        score = metrics.entity_scores(dataset.labels, gold, found)["micro"].f1
        best = max((row for row in history if f"{kind}/valid_f1" in row),
                   key=lambda row: row[f"{kind}/valid_f1"])  # fmt: skip
        assert score == pytest.approx(best[f"{kind}/test_f1"], abs=0.1)


def test_a_chmm_with_its_tagger_is_reproduced_exactly(tiny_folder, tmp_path):
    """The kept CHMM and its own tagger give the scores of that stage again."""
    from oneshot.chmm import metrics
    from oneshot.chmm.trainer import alternate

    config = chmm_tiny.config(tiny_folder, tmp_path / "run", "--alternate.loops=2")
    result = alternate(config)
    output = tmp_path / "labels.jsonl"
    label(tmp_path / "run" / "chmm", config.data.path, "test", output, constrained=False)
    dataset = prepare(config).dataset
    names = {name: i for i, name in enumerate(dataset.labels.names)}
    found = [np.array([names[x] for x in row["labels"]]) for row in lines(output)]
    score = metrics.entity_scores(dataset.labels, metrics.gold_of(dataset.split("test")), found)[
        "micro"
    ].f1
    assert score == result.chmm["chmm/test_f1"]


def test_label_refuses_what_is_no_model(tmp_path, tiny_folder):
    data = tiny_folder / "data"
    with pytest.raises(FileNotFoundError, match=r"neither a CHMM \(chmm\.json\) nor a tagger"):
        label(tmp_path, data, "test", tmp_path / "x")
    (tmp_path / "chmm.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no readable CHMM"):
        label(tmp_path, data, "test", tmp_path / "x")
    (tmp_path / "chmm.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "POS", "1": "NEG"}}))
    with pytest.raises(ValueError, match="expected the labels O, B-x, I-x"):
        label(tmp_path, data, "test", tmp_path / "x")


def test_errors_are_one_line(config_file, runs, capsys):
    words = ["chmm", "fit", "--config", str(config_file), f"--run.output={runs / 'fit'}"]
    assert main(words) == 1
    assert "is not empty; continue its run with --resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert main(["chmm"]) == 2
    assert main(["chmm", "--help"]) == 0
    assert "chmm fit" in capsys.readouterr().out


def test_eval_fills_a_table_and_continues_it(config_file, tmp_path, capsys, monkeypatch):
    methods = "source,vote,vote-io,hmm,hmm-gradient,chmm-abstain,chmm,alt,supervised"
    words = ["chmm", "eval", str(config_file), "--methods", methods, "--seeds", "1,2"]
    words += ["--output", str(tmp_path / "table"), "--run.output=x"]
    assert main(words) == 0
    text = (tmp_path / "table" / "results.md").read_text()
    for title in ("best single source", "HMM, EM, BIO", "CHMM-ALT: tagger", "tagger on gold"):
        assert title in text
    rows = json.loads((tmp_path / "table" / "results.json").read_text())
    assert sum(row["method"] == "vote" for row in rows) == 1  # draws nothing: one seed is enough
    assert {row["seed"] for row in rows if row["method"] == "chmm"} == {1, 2}
    assert sum(row["method"] == "alt" for row in rows) == 6
    chmm = [row for row in rows if row["row"] == "CHMM"]
    assert all(row["test_log_likelihood_per_token"] < 0 < row["test_f1"] <= 1 for row in chmm)
    first_line = next(line for line in text.splitlines() if line.startswith("| CHMM |"))
    mean = 50 * (chmm[0]["test_f1"] + chmm[1]["test_f1"])
    assert f"{mean:.2f} ± " in first_line
    assert (tmp_path / "table" / "results.png").stat().st_size > 1000

    from oneshot.training import grid

    monkeypatch.setattr(grid, "_measure", lambda *_: pytest.fail("was there already"))
    assert main(words) == 0
    assert (tmp_path / "table" / "results.md").read_text() == text
    capsys.readouterr()
    assert main([*words, "--training.nn_lr=0.02"]) == 1
    assert "was made with another config" in capsys.readouterr().err
    assert main([*words[:4], "magic", *words[5:]]) == 1
    assert "methods must be some of" in capsys.readouterr().err


def test_a_method_whose_package_is_missing_leaves_a_note(config_file, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("skweak"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    words = ["chmm", "eval", str(config_file), "--methods", "skweak,vote", "--run.output=x"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    assert "pip install skweak" in (tmp_path / "results.md").read_text()

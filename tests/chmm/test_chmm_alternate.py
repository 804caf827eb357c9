"""CHMM-ALT: the tagger as one source, replaced and never added again; what goes where; resuming."""

import dataclasses
import json

import chmm_tiny
import numpy as np
import pytest
import torch

from oneshot.chmm import metrics
from oneshot.chmm.alternation import stages as alt
from oneshot.chmm.checkpoint import load_model
from oneshot.chmm.config import AlternateConfig, DataConfig, TaggerConfig
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.batches import Examples
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.metrics import NoGoldError
from oneshot.chmm.prepare import observe, prepare
from oneshot.chmm.tagger.model import Tagger, hard_labels
from oneshot.chmm.tagger.source import soft_frequency, with_tagger
from oneshot.chmm.trainer import alternate

LABELS = LabelSpace(("COLOUR",))


def test_soft_frequency_by_hand():
    p = np.array([[0.5, 0.5], [0.9, 0.1]])
    f = p.sum(0)
    expected = []
    for row in p:
        w = [row[0] ** 2 / f[0], row[1] ** 2 / f[1]]
        expected.append([w[0] / sum(w), w[1] / sum(w)])
    found = soft_frequency(p)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0, 1] > 0.5  # the rarer label gains


def test_targets():
    posteriors = [np.array([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])]
    paths = [np.array([0, 2])]
    assert alt.make_targets(posteriors, paths, "posterior") is posteriors
    assert alt.make_targets(posteriors, paths, "viterbi")[0].tolist() == [[1, 0, 0], [0, 0, 1]]
    half = alt.make_targets(posteriors, paths, "redistributed")[0]
    np.testing.assert_allclose(half, [[0.8, 0.15, 0.05], [0.05, 0.75, 0.2]])


def add(rule, soft=True):
    """Two sources and a tagger on three tokens: tagger alone, against a source, all O."""
    votes = np.array([[-1, 0], [1, -1], [-1, 0]])
    probabilities = [np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1]], np.float32)]
    config = DataConfig(path="", rule=rule)
    sentence = Sentence(("a", "b", "c"), votes)
    before = Examples([sentence], [torch.zeros(4, 1)], observe([sentence], 3, config))
    after = with_tagger(before, probabilities, LABELS, config, soft)
    assert after.sentences[0].votes.tolist() == [[-1, 0, 1], [1, -1, 0], [-1, 0, 0]]
    assert before.observations[0].shape == (3, 2, 3)  # as it was
    return after.observations[0].numpy(), soft_frequency(probabilities[0])


def test_the_tagger_takes_part_in_the_rule_of_silence():
    """Where it alone sees an entity, the others' silence counts for nothing."""
    flat = np.array([0.01, 0.33, 0.33], np.float32)
    found, p = add("reference")
    np.testing.assert_allclose(found[0], [flat, flat, p[0]])
    np.testing.assert_allclose(found[1], [[0, 1, 0], flat, flat])  # its O is silence there
    np.testing.assert_allclose(found[2], [[1, 0, 0], [1, 0, 0], p[2]])
    found, p = add("abstain")
    np.testing.assert_allclose(found[0], [[0, 0, 0], [1, 0, 0], p[0]])
    np.testing.assert_allclose(found[1], [[0, 1, 0], [0, 0, 0], p[1]])
    found, _ = add("reference", soft=False)
    np.testing.assert_allclose(found[:, 2], [[0, 1, 0], flat, [1, 0, 0]])


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("alt") / "run"
    config = chmm_tiny.config(tiny_folder, output)
    return config, alternate(config), prepare(config)


def test_stages_and_files(finished):
    _, result, _ = finished
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    for row in result.history:
        kind = "tagger" if row["step"] % 2 == 0 else "chmm"
        assert {f"{kind}/{split}_f1" for split in ("train", "valid", "test")} <= set(row)
    names = {p.name for p in result.output.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "curves.png", "tagger", "chmm", "checkpoints"} <= names
    assert len(list((result.output / "checkpoints").iterdir())) == 1
    rows = [json.loads(x) for x in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history


def test_the_result_is_the_tagger_of_the_best_loop(finished):
    config, result, prepared = finished
    taggers, chmms = result.history[1::2], result.history[::2]
    assert result.tagger is max(taggers, key=lambda row: row["tagger/valid_f1"])
    assert result.chmm is max(chmms, key=lambda row: row["chmm/valid_f1"])
    tagger = Tagger.load(str(result.output / "tagger"), LABELS, config.tagger)
    test = prepared.examples["test"].sentences
    found = hard_labels(LABELS, tagger.predict([s.tokens for s in test]))
    f1 = metrics.entity_scores(LABELS, metrics.gold_of(test), found)["micro"].f1
    assert f1 == result.tagger["tagger/test_f1"]


@pytest.mark.parametrize("best", [0, 2])
def test_the_tagger_is_one_source_and_comes_with_its_chmm(finished, tmp_path, monkeypatch, best):
    """Never two, whatever the loop; the CHMM that is kept has the tagger it was trained with."""
    config, _, _ = finished
    monkeypatch.setattr(alt, "scores", lambda name, *_: {f"{name}_f1": 0.0})
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=str(tmp_path)))
    stage, loops = alt.chmm_stage, []

    def favoured(state, prepared, config, loop, log):
        before = state.best_chmm_loop, state.best_chmm_score
        model, figures = stage(state, prepared, config, loop, log)
        loops.append((model.n_sources, None if state.tagger is None else loop - 1))
        if loop == best:
            state.best_chmm_loop, state.best_chmm_score = loop, 1.0
        else:
            state.best_chmm_loop, state.best_chmm_score = before
        return model, figures

    monkeypatch.setattr(alt, "chmm_stage", favoured)
    result = alternate(config)
    assert loops == [(3, None), (4, 0), (4, 1)]
    assert result.chmm["step"] == 2 * best + 1
    saved = load_model(result.output / "chmm")
    assert len(saved.sources) == (3 if best == 0 else 4)
    assert (result.output / "chmm" / "tagger").exists() == (best > 0)


@pytest.mark.parametrize("variant", ["paper", "master"])
def test_variants(tiny_folder, variant):
    config = chmm_tiny.config(tiny_folder, tiny_folder, f"--alternate.variant={variant}")
    prepared = prepare(config)
    rng = np.random.default_rng(0)
    predictions = {
        split: [rng.dirichlet([1, 1, 1], len(s)).astype(np.float32) for s in x.sentences]
        for split, x in prepared.examples.items()
    }
    examples = alt.add_tagger(prepared, predictions, config)
    columns = np.concatenate([x[:, -1].numpy() for x in examples["test"].observations])
    hot = (columns.max(1) == 1).mean()
    assert hot > 0.4 if variant == "master" else hot < 0.05
    assert alt.PRIOR[variant] == {"paper": 0.9, "master": 0.7}[variant]
    for split, x in examples.items():
        assert x.observations[0].shape[1] == len(prepared.dataset.sources) + 1
        again = alt.add_tagger(prepared, predictions, config)[split]
        torch.testing.assert_close(again.observations[0], x.observations[0])


def test_weak_selection_needs_no_gold_anywhere(tiny_folder, tmp_path):
    """valid without gold: the CHMM is chosen by likelihood, the tagger by the CHMM's labels."""
    folder = tmp_path / "data"
    chmm_tiny.write_data(folder)
    for split in ("train", "valid"):
        records = json.loads((folder / f"{split}.json").read_text())
        for record in records.values():
            del record["label"]
        (folder / f"{split}.json").write_text(json.dumps(records))
    options = [f"--data.path={folder}", "--alternate.loops=1", "--training.selection=likelihood"]
    config = chmm_tiny.config(tiny_folder, tmp_path / "run", *options, "--tagger.selection=weak")
    result = alternate(config)
    assert "tagger/test_f1" in result.history[-1]
    assert "tagger/valid_f1" not in result.history[-1]
    assert result.history[-1]["tagger/score"] > 0
    options.append("--tagger.selection=gold")
    with pytest.raises(NoGoldError, match=r"tagger\.selection: gold needs gold labels"):
        alternate(chmm_tiny.config(tiny_folder, tmp_path / "gold", *options))
    assert not (tmp_path / "gold").exists()


def test_the_paper_takes_one_update_per_epoch_in_phase_two():
    assert AlternateConfig().one_update_per_epoch
    assert TaggerConfig().lr * AlternateConfig().lr_factor == 2.5e-5

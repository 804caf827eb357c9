"""`run.device`: everything that computes goes there; a device without data stands for a GPU."""

import dataclasses
import json
from types import SimpleNamespace

import chmm_tiny
import pytest
import torch

from oneshot import ops
from oneshot.chmm.config import ModelConfig
from oneshot.chmm.device import device_of
from oneshot.chmm.encoder import embeddings
from oneshot.chmm.label_model.batches import collate
from oneshot.chmm.label_model.training import make_model, make_optimizer
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.prepare import prepare
from oneshot.chmm.tagger.model import Tagger
from oneshot.chmm.tagger.training import divergence
from oneshot.chmm.trainer import alternate, fit
from oneshot.cli import main

META = torch.device("meta")  # operations on it and on the CPU together are errors, as with a GPU


@pytest.fixture(scope="module")
def prepared(tiny_folder, tmp_path_factory):
    config = chmm_tiny.config(tiny_folder, tmp_path_factory.mktemp("device"))
    return config, prepare(config)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transition_network": 0.0, "emission_network": 0.0},
        {"transition_network": 0.5, "emission_network": 0.5},
        {"markov": False},
        {"emission_context": "sentence"},
    ],
)
def test_every_tensor_of_the_label_model_is_on_its_device(prepared, options):
    config, data = prepared
    labels, sources = data.dataset.labels, data.dataset.sources
    config = dataclasses.replace(config, model=ModelConfig(**options))
    model = make_model(config, labels, sources, data.examples, None, seed=1).to(META)
    batch = collate(data.examples["train"], [3, 0, 7]).to(model.device)
    chain = model.potentials(batch)
    assert {x.device for x in chain} == {META}
    assert chain.log_emit.shape == (3, int(batch.lengths.max()), len(labels))
    optimizer = make_optimizer(model, config.training)
    model.log_likelihood(batch).sum().backward()
    optimizer.step()
    assert all(p.grad.device == META for p in model.parameters())
    legal = model._legal(chain)
    assert {ops.hmm_viterbi(*legal).path.device, model.emission_matrices(batch).device} == {META}
    assert ops.hmm_posteriors(*chain.double()).gamma.dtype == torch.float64


class Classifier(torch.nn.Module):
    """A token classifier as transformers has them (whose own read the mask, which has no data)."""

    config = SimpleNamespace()

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(100, 3)

    @property
    def device(self):
        return self.table.weight.device

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.table(input_ids) * attention_mask[..., None])


def test_every_tensor_of_the_tagger_is_on_its_device():
    tokenizer, labels = chmm_tiny.make_tokenizer(), LabelSpace(("COLOUR",))
    tagger = Tagger(Classifier(), tokenizer, labels, max_subwords=20, device=META)
    chunks = tagger.chunks([["a", "red", "car", "."], ["the", "hat"]])
    found = tagger.log_probabilities(chunks)
    assert (found.device, found.dtype, found.shape) == (META, torch.float32, (6, 3))
    divergence(found, torch.full((6, 3), 1 / 3, device=tagger.device)).backward()
    assert tagger.model.table.weight.grad.device == META


def test_the_encoder_gets_its_device_and_its_precision(tiny_folder, tmp_path, monkeypatch):
    """bfloat16 products, float32 embeddings on the CPU, and a file of their own in the cache."""
    seen = []
    real = embeddings.autocast

    def autocast(device, dtype):
        seen.append((device, dtype))
        return real(device, dtype)

    monkeypatch.setattr(embeddings, "autocast", autocast)
    documents, source = [["a", "red", "car"], ["the", "hat", "."]], str(tiny_folder / "bert")
    plain = embeddings.embed(documents, source, 64, cache=tmp_path)
    mixed = embeddings.embed(documents, source, 64, cache=tmp_path, dtype="mixed")
    assert seen == [(torch.device("cpu"), "float32"), (torch.device("cpu"), "mixed")]
    assert len(list(tmp_path.iterdir())) == 2
    gaps = [float((x - y).abs().max()) for x, y in zip(plain, mixed, strict=True)]
    assert 1e-6 < max(gaps) < 0.1
    assert {x.dtype for x in mixed} == {torch.float32}
    monkeypatch.setattr(
        embeddings, "collate", lambda *_: pytest.fail("cached by device and precision")
    )
    for expected, dtype in ((plain, "float32"), (mixed, "mixed")):
        again = embeddings.embed(documents, source, 64, cache=tmp_path, dtype=dtype)
        assert all(torch.equal(x, y) for x, y in zip(expected, again, strict=True))
    with pytest.raises(pytest.fail.Exception, match="cached by device"):
        embeddings.embed(documents, source, 64, cache=tmp_path, device="meta")


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"run\.device: cuda:1 was requested, but torch finds no"):
        device_of("cuda:1")
    with pytest.raises(ValueError, match=r"run\.device must be .* got 'gpu'"):
        device_of("gpu")


@pytest.mark.parametrize("run", [fit, alternate])
def test_a_device_that_is_missing_is_refused_before_the_work(
    tiny_folder, tmp_path, monkeypatch, run
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(embeddings, "_encode", lambda *_: pytest.fail("the expensive step"))
    with pytest.raises(ValueError, match="torch finds no CUDA device; use cpu or auto"):
        run(chmm_tiny.config(tiny_folder, tmp_path / "run", "--run.device=cuda"))
    assert not (tmp_path / "run").exists()


def test_label_refuses_a_missing_device(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["chmm", "label", str(tmp_path), str(tiny_folder / "data"), "--device", "cuda"]
    assert main([*words, "--output", str(tmp_path / "labels.jsonl")]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_a_run_says_where_it_ran(tiny_folder, tmp_path):
    """Another device is another run: its last bits differ."""
    result = fit(chmm_tiny.config(tiny_folder, tmp_path / "run", "--training.epochs=1"))
    assert "device: cpu" in (result.output / "config.yaml").read_text()
    assert json.loads((result.output / "results.json").read_text()).keys() == {
        "train", "valid", "test"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"run\.device: .*'cpu'.*'auto'"):
        fit(chmm_tiny.config(tiny_folder, tmp_path / "run", "--run.device=auto"), resume=True)

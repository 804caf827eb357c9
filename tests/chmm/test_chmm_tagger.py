"""The tagger: alignment of labels with pieces, long documents, losses, schedule, best epoch."""

import dataclasses

import numpy as np
import pytest
import torch

from oneshot.chmm import data
from oneshot.chmm.config import TaggerConfig
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.tagger.model import Tagger, hard_labels
from oneshot.chmm.tagger.training import _schedule, divergence, one_hot, train_tagger
from oneshot.training.errors import NonFiniteLossError

LABELS = LabelSpace(("COLOUR",))
CONFIG = TaggerConfig(batch_size=8, lr=0.01, max_subwords=20, warmup=0.1)


def load(folder, **changes):
    torch.manual_seed(0)
    return Tagger.load(str(folder / "bert"), LABELS, dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def sentences(tiny_folder):
    return data.load(tiny_folder / "data").split("train")


def words(sentences):
    return [s.tokens for s in sentences]


def test_probabilities_are_those_of_each_words_first_piece(tiny_folder, sentences):
    tagger = load(tiny_folder)
    for sentence, found in zip(sentences, tagger.predict(words(sentences)), strict=True):
        if len(tagger.chunks([sentence.tokens])) > 1:
            continue
        encoded = tagger.tokenizer(
            list(sentence.tokens),
            is_split_into_words=True,
            padding=False,
            truncation=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = tagger.model(**encoded).logits[0]
        first = [encoded.word_ids().index(t) for t in range(len(sentence.tokens))]
        np.testing.assert_allclose(found, logits[first].softmax(-1), atol=1e-6)


def test_a_long_document_is_predicted_chunk_by_chunk(tiny_folder):
    tagger = load(tiny_folder)
    parts = [["the", "cat", "is", "red", "."], ["a", "hat", "in", "blue", "."], ["white", "boat"]]
    long = [word for part in parts for word in part]
    assert [c.words for c in tagger.chunks([long])] == [slice(0, 5), slice(5, 10), slice(10, 12)]
    together = tagger.predict([["car"], long, ["no"]])
    for part, start in zip(parts, (0, 5, 10), strict=True):
        alone = tagger.predict([part])[0]
        np.testing.assert_allclose(together[1][start : start + len(part)], alone, atol=1e-6)


def test_every_piece_of_a_long_document_learns_its_own_labels(tiny_folder):
    """A slice that is off by the start of the chunk would teach the second chunk nothing."""
    tagger = load(tiny_folder)
    document = ["the", "cat", "is", "red", ".", "a", "hat", "in", "blue", ".", "white", "boat"]
    gold = [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 2]
    targets = one_hot([np.array(gold)], 3)
    assert len(tagger.chunks([document])) == 3
    train_tagger(tagger, [document], targets, CONFIG, 0, epochs=60, lr=0.01)
    assert tagger.predict([document])[0].argmax(1).tolist() == gold


def test_divergence_is_the_kl_and_zero_targets_are_safe():
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(7, 3, dtype=torch.float64).softmax(-1)
    target[0] = torch.tensor([1.0, 0, 0])
    target[1] = torch.tensor([0, 0.25, 0.75])
    loss = divergence(logits.log_softmax(-1), target)
    q = logits.detach().softmax(-1)
    used = target > 0
    expected = (target[used] * (target[used] / q[used]).log()).sum()
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    torch.testing.assert_close(logits.grad, q - target)
    at_target = divergence(target[2:].log(), target[2:])
    assert abs(at_target.item()) < 1e-12


def test_hard_targets_make_it_the_cross_entropy():
    ids = torch.tensor([0, 2, 1])
    scores = torch.randn(3, 3).log_softmax(-1)
    target = torch.from_numpy(one_hot([ids.numpy()], 3)[0])
    expected = torch.nn.functional.nll_loss(scores, ids, reduction="sum")
    torch.testing.assert_close(divergence(scores, target), expected)


def test_it_learns_soft_labels_and_keeps_its_best_epoch(tiny_folder, sentences):
    tagger = load(tiny_folder)
    targets = [0.9 * x + 0.1 / 3 for x in one_hot([s.gold for s in sentences], 3)]
    scores = iter([0.1, 0.9, 0.9, 0.2, 0.3])
    seen = []

    def score(tagger):
        seen.append({k: v.clone() for k, v in tagger.model.state_dict().items()})
        return next(scores)

    history = train_tagger(
        tagger, words(sentences), targets, CONFIG, 1, epochs=5, lr=0.01, score=score
    )
    assert (history.best_epoch, history.best_score) == (3, 0.9)
    losses = [row["loss"] for row in history.rows]
    assert losses[-1] < 0.6 * losses[0]
    for name, value in tagger.model.state_dict().items():
        assert torch.equal(value, seen[2][name])
    assert not tagger.model.training


def test_without_a_score_the_last_epoch_is_kept(tiny_folder, sentences):
    tagger = load(tiny_folder)
    targets = one_hot([s.gold for s in sentences], 3)
    history = train_tagger(tagger, words(sentences), targets, CONFIG, 1, epochs=30, lr=0.01)
    assert history.best_epoch == 30
    found = hard_labels(LABELS, tagger.predict(words(sentences)))
    right = sum((f == s.gold).all() for f, s in zip(found, sentences, strict=True))
    assert right >= 0.9 * len(sentences)


def test_the_same_seed_gives_the_same_bits(tiny_folder, sentences):
    states = []
    for _ in range(2):
        tagger = load(tiny_folder)
        targets = one_hot([s.gold for s in sentences], 3)
        train_tagger(tagger, words(sentences), targets, CONFIG, 4, epochs=2, lr=0.01)
        states.append(tagger.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_one_update_per_epoch_is_a_step_on_the_whole_gradient(tiny_folder, sentences):
    """Full-batch accumulation: the same step whatever the batch size."""
    states = []
    for batch_size in (4, 24):
        config = dataclasses.replace(CONFIG, batch_size=batch_size, warmup=0.0)
        tagger = load(tiny_folder)
        for module in tagger.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        before = {k: v.clone() for k, v in tagger.model.state_dict().items()}
        train_tagger(
            tagger,
            words(sentences),
            one_hot([s.gold for s in sentences], 3),
            config,
            0,
            epochs=1,
            lr=1e-3,
            one_update_per_epoch=True,
        )
        states.append(tagger.model.state_dict())
    # Adam's first step has the size of the learning rate
    weight = "classifier.weight"
    moved = (states[0][weight] - before[weight]).abs()
    assert 0.9e-3 < moved.median() < 1.1e-3
    torch.testing.assert_close(states[0][weight], states[1][weight], atol=1e-5, rtol=0)


def test_frozen_layers_stay_as_they_are(tiny_folder, sentences):
    tagger = load(tiny_folder, frozen_layers=1)
    before = {k: v.clone() for k, v in tagger.model.state_dict().items()}
    targets = one_hot([s.gold for s in sentences], 3)
    train_tagger(tagger, words(sentences), targets, CONFIG, 0, epochs=1, lr=0.01)
    moved = {k for k, v in tagger.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("embeddings" in k or "layer.0." in k for k in moved)
    assert any("layer.1." in k for k in moved)
    with pytest.raises(
        ValueError, match=r"tagger\.frozen_layers: got 3, but the model has 2 layers"
    ):
        load(tiny_folder, frozen_layers=3)


def test_chunks_that_the_model_cannot_take_are_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"tagger\.max_subwords must be at most 64, got 65"):
        load(tiny_folder, max_subwords=65)


def test_mixed_precision_is_near_float32(tiny_folder, sentences):
    found = [
        load(tiny_folder, dtype=dtype).predict(words(sentences)) for dtype in ("float32", "mixed")
    ]
    gaps = [np.abs(x - y).max() for x, y in zip(*found, strict=True)]
    assert 1e-6 < max(gaps) < 0.05
    assert found[1][0].dtype == np.float32


def test_schedule_rises_and_falls():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = _schedule(optimizer, updates=10, warmup=0.2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [1 / 3, 2 / 3, *(np.arange(8, 0, -1) / 8)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == 0


def test_decay_spares_biases_and_layer_norms(tiny_folder):
    from oneshot.chmm.tagger.training import _optimizer

    tagger = load(tiny_folder)
    decayed, spared = _optimizer(tagger.model, 0.01, 0.1).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in tagger.model.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} == {
        name for name in names.values() if name.endswith("bias") or "LayerNorm" in name
    }


def test_hard_labels_drop_an_inside_that_continues_nothing():
    rows = np.eye(3)[[2, 0, 1, 2, 2, 0, 2]] * 0.8 + 0.1
    assert hard_labels(LABELS, [rows])[0].tolist() == [0, 0, 1, 2, 2, 0, 0]


def test_save_and_load(tiny_folder, sentences, tmp_path):
    tagger = load(tiny_folder)
    tagger.save(tmp_path / "saved")
    torch.manual_seed(99)
    again = Tagger.load(str(tmp_path / "saved"), LABELS, CONFIG)
    for x, y in zip(*(t.predict(words(sentences)) for t in (tagger, again)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_wrong_targets_and_nan(tiny_folder, sentences):
    tagger = load(tiny_folder)
    targets = one_hot([s.gold for s in sentences], 3)
    options = {"epochs": 1, "lr": 0.01}
    with pytest.raises(ValueError, match=f"{len(targets)} documents, but targets of 1"):
        train_tagger(tagger, words(sentences), targets[:1], CONFIG, 0, **options)
    with pytest.raises(ValueError, match="document 0: targets must have the shape"):
        train_tagger(tagger, words(sentences), [t[:, :2] for t in targets], CONFIG, 0, **options)
    before = {k: v.clone() for k, v in tagger.model.state_dict().items()}
    spoilt = [np.full_like(t, np.nan) for t in targets]
    with pytest.raises(NonFiniteLossError, match="tagger, epoch 1, batch 1 of 6: the loss is nan"):
        train_tagger(tagger, words(sentences), spoilt, CONFIG, 0, **options)
    assert all(torch.equal(v, before[k]) for k, v in tagger.model.state_dict().items())

"""Training: exact ascent, the two selections, early stopping, errors, the same bits every time."""

import dataclasses

import numpy as np
import pytest
import torch

from oneshot.chmm.config import InitialConfig, ModelConfig, TrainingConfig
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model import training as trainer
from oneshot.chmm.label_model.batches import Examples, collate
from oneshot.chmm.label_model.initialisation import initial_matrices, start
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.metrics import NoGoldError
from oneshot.chmm.model import CHMM, log_likelihood_per_token
from oneshot.training.errors import NonFiniteLossError

LABELS = LabelSpace(("x",))
DIM = 4


def make_examples(n, seed, gold=True):
    """Two sources; the first is right where feature 0 is positive, the second elsewhere."""
    rng = np.random.default_rng(seed)
    sentences, embeddings, observations = [], [], []
    for _ in range(n):
        length = int(rng.integers(3, 12))
        truth = np.zeros(length, np.int64)
        for t in range(length):
            follows = t > 0 and truth[t - 1] > 0 and rng.random() < 0.4
            truth[t] = 2 if follows else rng.random() < 0.3
        features = rng.normal(size=(length, DIM)).astype(np.float32)
        right = np.stack([features[:, 0] > 0, features[:, 0] <= 0], 1)
        noise = rng.integers(0, 3, (length, 2))
        votes = np.where(right | (rng.random((length, 2)) < 0.1), truth[:, None], noise)
        sentences.append(Sentence(("w",) * length, votes, truth if gold else None))
        embeddings.append(torch.cat([torch.zeros(1, DIM), torch.from_numpy(features)]))
        observations.append(torch.nn.functional.one_hot(torch.tensor(votes), 3).float())
    return Examples(sentences, embeddings, observations)


@pytest.fixture(scope="module")
def splits():
    return make_examples(60, 0), make_examples(30, 1)


def make_model(train, config=None):
    torch.manual_seed(0)
    model = CHMM(DIM, 2, LABELS, config)
    votes = [s.votes for s in train.sentences]
    matrices = initial_matrices(LABELS, votes, ["a", "b"], InitialConfig())
    start(model, matrices, train, InitialConfig(), 8, 0)
    return model


def test_gold_labels_select_only_where_they_can(splits):
    train, _ = splits
    with_gold = list(train.sentences)
    without = [dataclasses.replace(s, gold=None) for s in with_gold]
    empty = [dataclasses.replace(s, gold=np.zeros(len(s), np.int64)) for s in with_gold]
    auto, f1, likelihood = (
        dataclasses.replace(CONFIG, selection=x) for x in ("auto", "f1", "likelihood")
    )
    for sentences, expected, message in (
        (with_gold, "f1", None),
        (without, "likelihood", "0 of its 60 sentences have them"),
        ([*without[:59], with_gold[59]], "likelihood", "1 of its 60 sentences have them"),
        (empty, "likelihood", "they name no entity"),
    ):
        assert trainer.resolve_selection(auto, sentences) == expected
        assert trainer.resolve_selection(likelihood, sentences) == "likelihood"
        if message is None:
            assert trainer.resolve_selection(f1, sentences) == "f1"
        else:
            with pytest.raises(NoGoldError, match=rf"training\.selection: f1 .*'valid'.*{message}"):
                trainer.resolve_selection(f1, sentences)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([-5.0, -4.0, -3.0], True),  # a straight line
        ([-5.0, -3.0, -3.0], False),  # equal to the best is no gain
        ([-5.0, -3.0, -3.1], False),
        ([-5.0, -3.0, -2.99], False),  # half a percent of the whole gain
        ([-5.0, -3.0, -2.9], True),
        ([-5.0], False),
    ],
)
def test_a_training_that_stopped_too_early(scores, expected):
    rows = [{"valid/log_likelihood": x, "valid/f1": 0.5} for x in scores]
    assert trainer.still_rising(rows, "likelihood") is expected
    assert not trainer.still_rising(rows, "f1")


def run(splits, config, model_config=None, **options):
    train, valid = splits
    model = make_model(train, model_config)
    rows = []
    progress = trainer.train_chmm(
        model,
        trainer.make_optimizer(model, config),
        train,
        valid,
        config,
        seed=3,
        after_epoch=lambda now, row: rows.append({"epoch": now.epoch, **row}),
        **options,
    )
    return model, progress, rows


CONFIG = TrainingConfig(epochs=12, batch_size=8, nn_lr=0.03)


def test_it_learns_where_each_source_is_right(splits):
    _, progress, rows = run(splits, CONFIG)
    likelihood = [row["valid/log_likelihood"] for row in rows]
    assert likelihood[-1] > likelihood[0] + 0.2
    assert progress.best_score == max(row["valid/f1"] for row in rows)
    assert progress.best_score > rows[0]["valid/f1"] + 0.03
    _, _, constant = run(splits, CONFIG, ModelConfig(transition_network=0, emission_network=0))
    assert max(likelihood) > max(row["valid/log_likelihood"] for row in constant) + 0.05


def test_full_batch_ascent_never_descends(splits):
    config = TrainingConfig(epochs=15, batch_size=60, nn_lr=1e-3, hmm_lr=1e-3, weight_decay=0)
    _, _, rows = run(splits, config)
    train = [row["train/log_likelihood"] for row in rows[1:]]
    assert (np.diff(train) > 0).all()


def test_the_model_is_left_at_its_best_epoch(splits):
    for selection in ("f1", "likelihood"):
        config = dataclasses.replace(CONFIG, selection=selection)
        model, progress, rows = run(splits, config)
        key = f"valid/{'f1' if selection == 'f1' else 'log_likelihood'}"
        best = max(row[key] for row in rows)
        assert progress.best_epoch == max(row["epoch"] for row in rows if row[key] == best)
        again = log_likelihood_per_token(model.predict(splits[1]))
        assert again == rows[progress.best_epoch]["valid/log_likelihood"]


def test_selection_by_likelihood_needs_no_gold(splits):
    blind = splits[0], make_examples(30, 1, gold=False)
    config = dataclasses.replace(CONFIG, selection="likelihood")
    _, progress, rows = run(blind, config)
    assert progress.best_score > rows[0]["valid/log_likelihood"]
    assert not any("valid/f1" in row for row in rows)
    # It is what a set without gold labels gets by default.
    assert run(blind, dataclasses.replace(config, selection="auto"))[2] == rows
    with pytest.raises(NoGoldError, match=r"training\.selection: f1 needs gold labels"):
        run(blind, dataclasses.replace(config, selection="f1"))


def test_tolerance_ends_training(splits):
    config = dataclasses.replace(
        CONFIG, selection="likelihood", nn_lr=5.0, hmm_lr=5.0, epochs=100, tolerance=2
    )
    _, progress, rows = run(splits, config)
    assert len(rows) - 1 == progress.best_epoch + 3 < 100


def test_the_same_seed_gives_the_same_bits(splits):
    (x, _, _), (y, _, _) = run(splits, CONFIG), run(splits, CONFIG)
    for name, value in x.state_dict().items():
        assert torch.equal(value, y.state_dict()[name])


def test_continuing_gives_the_same_bits(splits):
    """Weights, moments and progress are all there is."""
    whole, _, _ = run(splits, CONFIG)
    train, valid = splits
    half = make_model(train)
    optimizer = trainer.make_optimizer(half, CONFIG)

    class Stop(Exception): ...

    kept = {}

    def stop(now, _):
        if now.epoch == 5:
            kept.update(weights=half.state_dict(), progress=dataclasses.replace(now))
            raise Stop

    with pytest.raises(Stop):
        trainer.train_chmm(half, optimizer, train, valid, CONFIG, 3, after_epoch=stop)
    other = make_model(train)
    other.load_state_dict(kept["weights"])
    again = trainer.make_optimizer(other, CONFIG)
    again.load_state_dict(optimizer.state_dict())
    trainer.train_chmm(other, again, train, valid, CONFIG, 3, progress=kept["progress"])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_nan_stops_before_the_update(splits):
    train, valid = splits
    embeddings = list(train.embeddings)
    embeddings[7] = torch.full_like(embeddings[7], float("nan"))
    spoilt = Examples(train.sentences, embeddings, train.observations)
    model = make_model(train)
    with pytest.raises(NonFiniteLossError, match=r"CHMM, epoch 1, batch \d+: the log-likelihood"):
        trainer.train_chmm(model, trainer.make_optimizer(model, CONFIG), spoilt, valid, CONFIG, 3)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_two_learning_rates(splits):
    model = make_model(splits[0], ModelConfig(transition_network=0.5))
    networks, constants = trainer.make_optimizer(model, CONFIG).param_groups
    assert (networks["lr"], constants["lr"]) == (0.03, 0.01)
    assert len(networks["params"]) == 4
    assert {id(p) for p in constants["params"]} == {id(model.start), id(model.transitions.constant)}
    plain = make_model(splits[0], ModelConfig(transition_network=0, emission_network=0))
    assert len(trainer.make_optimizer(plain, CONFIG).param_groups) == 1


def test_nothing_of_padding_is_made(splits):
    """The networks run on tokens; only the chain is padded."""
    train, _ = splits
    model = make_model(train)
    sizes = []
    model.emissions.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[0]))
    batch = collate(train, range(8))
    model.log_likelihood(batch)
    assert sizes == [sum(len(x) for x in train.embeddings[:8])]
    assert sizes[0] < 8 * max(len(x) for x in train.embeddings[:8])

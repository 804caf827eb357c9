"""What sources are worth, against counts by hand: the prior of a source shows in no figure."""

import math

import numpy as np
import pytest

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.labels import LabelSpace
from oneshot.chmm.reports.sources import analyse, markdown, remarks

LABELS = LabelSpace(("PER", "ORG"))
NAMES = ("good", "wrong", "dead", "copy")


@pytest.fixture(scope="module")
def table():
    """`wrong` says PER where ORG is; `copy` says what `good` says."""
    votes = [
        Sentence(("w",) * 5, np.array([[1, 3, -1, 1], [2, -1, -1, 2], [-1, 1, 0, -1],
                                       [3, 1, -1, 3], [4, -1, -1, 4]])),
        Sentence(("w",) * 2, np.array([[-1, 1, -1, -1], [0, 2, -1, 0]])),
    ]  # fmt: skip
    final = [np.array([1, 2, 0, 3, 4]), np.array([1, 0])]
    return analyse(LABELS, NAMES, votes, final)


def test_counts_by_hand(table):
    good, wrong = table["good"], table["wrong"]
    assert (good["votes"], good["share"]) == (4, pytest.approx(4 / 7))
    assert good["by_type"]["PER"] == {"votes": 2, "agreement": 1, "coverage": pytest.approx(2 / 3)}
    assert good["by_type"]["ORG"] == {"votes": 2, "agreement": 1, "coverage": 1}
    assert (good["overlap"], good["conflict"]) == (1, 0.5)
    assert wrong["by_type"]["PER"]["votes"] == 4
    assert wrong["by_type"]["PER"]["agreement"] == 0.25
    assert wrong["by_type"]["ORG"] == {"votes": 1, "agreement": 0, "coverage": 0}
    assert (wrong["overlap"], wrong["conflict"]) == (0.4, 0.4)


def test_silence_has_no_share(table):
    dead = table["dead"]
    assert (dead["votes"], dead["overlap"], dead["conflict"]) == (0, None, None)
    assert dead["by_type"]["PER"] == {"votes": 0, "agreement": None, "coverage": 0}
    assert dead["same_as"] == []


def test_duplicates_and_dead_sources_are_named(table):
    assert table["good"]["same_as"] == ["copy"]
    assert table["copy"]["same_as"] == ["good"]
    assert remarks(table) == [
        "source 'dead' never names an entity",
        "source 'good' says the same as 'copy': they count as independent",
    ]
    text = markdown(table)
    assert "| | PER | 4 | 25.0 % | 33.3 % | | |" in text
    assert "\n* source 'dead' never names an entity" in text


def test_final_labels_must_fit():
    with pytest.raises(ValueError, match="final must have the labels of every token"):
        analyse(LABELS, ("a",), [Sentence(("w",), np.array([[1]]))], [np.array([1, 0])])


def test_plots_have_no_number_where_there_is_no_vote(table, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from oneshot.chmm.reports import plots

    texts = []
    real = Axes.text

    def text(self, x, y, s, **options):
        texts.append((self.get_title(), y, x, s))
        return real(self, x, y, s, **options)

    monkeypatch.setattr(Axes, "text", text)
    plots.plot_sources(table, tmp_path / "sources.png")
    assert (tmp_path / "sources.png").stat().st_size > 1000
    agreement = {(y, x): s for title, y, x, s in texts if "agree" in title}
    assert agreement == {
        (0, 0): "1.00 of 2", (0, 1): "1.00 of 2", (1, 0): "0.25 of 4", (1, 1): "0.00 of 1",
        (3, 0): "1.00 of 2", (3, 1): "1.00 of 2",
    }  # fmt: skip
    assert not math.isnan(sum(float(s.split()[0]) for *_, s in texts))


def test_curves_name_their_axis_and_join_no_likelihoods_of_different_votes(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from oneshot.chmm.reports import plots

    drawn, names = [], []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, name, **_: names.append(name))
    real = Axes.plot

    def plot(self, *args, **options):
        drawn.append(options["label"])
        return real(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    rows = [
        {"step": 1, "chmm/train_log_likelihood": -1.0, "chmm/valid_log_likelihood": -1.0},
        {"step": 2, "tagger/score": 0.5},
    ]
    plots.plot_curves(rows, tmp_path / "a.png")
    assert (drawn, names) == (["tagger score"], ["stage"])
    drawn.clear(), names.clear()
    plots.plot_curves([{"step": 0, "valid/log_likelihood": -1.0}], tmp_path / "b.png")
    assert (drawn, names) == (["valid log likelihood"], ["epoch"])

"""The tables of a study against numbers worked out by hand."""

import pytest

from oneshot.rlvr.studies.definitions import Study
from oneshot.rlvr.studies.report import markdown, spread, summary, write_report
from oneshot.rlvr.studies.summary import summarize

STUDY = Study("Does it help?", {"plain": {}, "other": {"optimizer.lr": 0.1}})


def run(seed, accuracies, rewards, families):
    """Figures of a run of 10 unseen problems, validated at every step; 6 problems are of a kind."""
    rows = [{"step": step} for step in range(len(accuracies))]
    for row, accuracy in zip(rows, accuracies, strict=True):
        row |= {
            "validation/accuracy": accuracy,
            "validation/accuracy_low": accuracy - 0.125,
            "validation/accuracy_high": accuracy + 0.125,
            "validation/boxed_ratio": accuracy,
        }
    for row, reward in zip(rows[1:], rewards, strict=True):
        row |= {"reward/mean": reward, "policy/entropy": 2 * reward}

    def split(sum_, story):
        return {
            "sum": {"problems": 6, "accuracy": sum_},
            "": {"problems": 4, "accuracy": story},
        }

    return {
        "seed": seed,
        "run": f"runs/{seed}",
        **summarize(rows),
        "families_before": split(0.25, 0.0),
        "families_after": split(*families),
    }


@pytest.fixture
def found():
    slow = [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    fast = [0.5, 0.75, 1.0, 1.0, 1.0, 1.0]  # the last five average 0.95 at step 6
    return {
        "plain": [
            run(3, [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], slow, (0.5, 0.5)),
            run(4, [0.25, 0.5, 0.75, 0.5, 0.5, 0.5, 0.6], slow, (0.6, 0.6)),
            run(5, [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.7], slow, (0.7, 0.7)),
        ],
        "other": [
            run(3, [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25], fast, (0.25, 0.25)),
            run(4, [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.5], fast, (0.5, 0.5)),
            run(5, [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.75], fast, (0.75, 0.75)),
        ],
    }


def test_spread():
    # Deviations -1, 0, 1 of 2: sample variance 2 / 2 = 1.
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "low": 1.0, "high": 3.0}
    assert spread([0.7]) == {"mean": 0.7, "std": None, "low": 0.7, "high": 0.7}


def test_figures(found):
    result = summary("name", STUDY, 3, found)
    assert result["seeds"] == [3, 4, 5]
    assert result["steps"] == 6
    assert result["problems"] == 10
    assert result["baseline"]["accuracy"]["mean"] == 0.25
    assert result["baseline"]["interval"] == [0.125, 0.375]
    plain, other = result["arms"]["plain"], result["arms"]["other"]
    assert plain["after"] == pytest.approx({"mean": 0.6, "std": 0.1, "low": 0.5, "high": 0.7})
    assert other["change"] == pytest.approx({"mean": 0.25, "std": 0.25, "low": 0.0, "high": 0.5})
    assert other["overrides"] == {"optimizer.lr": 0.1}
    # At step 2: 0.5, 0.75, 0.5; rewards have no step 0.
    point = plain["curve"]["unseen_accuracy"][2]
    assert point["mean"] == pytest.approx(1.75 / 3)
    assert point["std"] == pytest.approx(0.25 / 3**0.5)
    assert [p["step"] for p in plain["curve"]["reward"]] == [1, 2, 3, 4, 5, 6]
    assert plain["curve"]["entropy"][1]["mean"] == 1.0


def test_markdown(found):
    lines = markdown(summary("name", STUDY, 3, found)).splitlines()
    assert lines[0] == "# name: Does it help?"
    assert lines[2] == (
        "6 steps, seeds 3, 4, 5; mean ± standard deviation (ddof 1) over the seeds, with the "
        "range. 10 unseen problems; Wilson 95 % interval of the untrained model 12.5 - 37.5 %."
    )
    for expected in (
        "| untrained | 25.0 | 25.0 - 25.0 |  |  |  | 25 |",
        "| plain | 60.0 ± 10.0 | 50.0 - 70.0 | +35.0 ± 10.0 | 60.0 (6) | 0.50 ± 0.00 | 60 ± 10 |",
        "| other | 50.0 ± 25.0 | 25.0 - 75.0 | +25.0 ± 25.0 | 50.0 (6) | 0.95 ± 0.00 | 50 ± 25 |",
        "| arm | sum | unnamed |",
        "| untrained | 25.0 | 0.0 |",
        "| plain | 60.0 ± 10.0 | 60.0 ± 10.0 |",
        "| plain | 25 | 50 | 58 | 50 | 50 | 50 | 60 |",
        "| plain | 3 | never |  |  |  |",
        "| other | 5 | 6 | 75.0 | 75.0 | +0.0 |",
    ):
        assert lines.count(expected) == 1, expected


def test_the_best_step_of_the_mean_is_no_mean_of_the_best_steps(found):
    found = {"plain": [found["plain"][1]], "other": found["other"][:1]}
    text = markdown(summary("name", STUDY, 3, found))
    assert "**Unfinished: 2 of 3 seeds missing.**" in text
    assert "| plain | 60.0 | 60.0 - 60.0 | +35.0 | 75.0 (2) | 0.50 | 60 |" in text


def test_saturation_counts_from_the_next_evaluation(found):
    early = run(3, [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75], [1.0] * 6, (0.5, 0.5))
    text = markdown(summary("name", STUDY, 1, {"plain": [early], "other": found["other"][:1]}))
    assert "| plain | 3 | 5 | 50.0 | 75.0 | +25.0 |" in text


def test_files(found, tmp_path):
    folder = tmp_path / "deep" / "name"
    result = write_report(folder, "name", STUDY, 3, found)
    assert (folder / "table.md").read_text() == markdown(result)
    picture = (folder / "figure.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000

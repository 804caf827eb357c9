"""Files of a run: metrics, TensorBoard, curves."""

import json
import re
import time

import pytest
import rlvr_tiny

from oneshot.rlvr.metrics import PANELS, Outcome, is_mixed, rollout_metrics
from oneshot.rlvr.notices import Notices
from oneshot.rlvr.recorder import open_log
from oneshot.training.curves import plot_curves
from oneshot.training.jsonl import read_jsonl


def test_log_reaches_every_file_at_once(tmp_path):
    log = open_log(tmp_path, 3, None, progress=False)
    log.step(1, {"reward/mean": 0.25}, [{"response": "r"}])
    # Nothing is buffered: a kill now loses no line.
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "reward/mean": 0.25}
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 1, "response": "r"}]
    log.step(2, {"reward/mean": 0.5, "validation/accuracy": 0.75})
    log.close()
    log = open_log(tmp_path, 3, 1, progress=False)
    time.sleep(0.01)
    log.step(2, {"reward/mean": 1.0})
    log.close()
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert found == [(1, 0.25), (2, 1.0)]  # the step of the killed attempt is gone
    assert [row["reward/mean"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0.25, 1.0]


def test_progress_without_a_terminal_is_plain_lines(tmp_path, capsys):
    log = open_log(tmp_path, 40, None, progress=True)
    for step in range(1, 41):
        log.step(step, {"reward/mean": step / 40, "policy/entropy": 1.0})
    log.close()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 20
    assert lines[-1].split() == ["step", "40/40", "reward", "1.000", "H", "1.000"]


def test_curves(tmp_path):
    history = [{"step": 0, "validation/accuracy": 0.1}]
    history += [{"step": i, "reward/mean": i / 9, "policy/entropy": 1 / i} for i in range(1, 10)]
    plot_curves(history, tmp_path / "c.png", PANELS, title="title")
    data = (tmp_path / "c.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    image = imread(tmp_path / "c.png")
    assert image.shape[1] > image.shape[0]
    assert image[..., :3].std() > 0.05  # something is drawn
    plot_curves([], tmp_path / "none.png", PANELS)
    assert not (tmp_path / "none.png").exists()


def test_every_panel_says_what_its_axis_is(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: drawn.append(self) or path.touch()
    )
    history = [
        {key: 0.5 for panel in PANELS for key in panel.metrics} | {"step": i} for i in range(3)
    ]
    plot_curves(history, tmp_path / "c.png", PANELS)
    (figure,) = drawn
    assert [axes.get_xlabel() for axes in figure.axes] == ["step"] * len(PANELS)


def figures_of(**changed):
    """The figures of a step that learns."""
    figures = {
        "group/mixed": 0.5,
        "group/all_right": 0.2,
        "group/all_wrong": 0.3,
        "response/truncated_ratio": 0.1,
        "reward/timeouts": 0,
        "reward/crashes": 0,
    }
    return {**figures, **{name.replace("__", "/"): value for name, value in changed.items()}}


WRONG = figures_of(group__mixed=0, group__all_right=0, group__all_wrong=1)
RIGHT = figures_of(group__mixed=0, group__all_right=1, group__all_wrong=0)
EITHER = figures_of(group__mixed=0, group__all_right=0.5, group__all_wrong=0.5)
ENDLESS = figures_of(response__truncated_ratio=1)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([WRONG] * 2 + [figures_of()] + [WRONG] * 2, {}),
        (
            [figures_of(), WRONG, WRONG, WRONG, WRONG],
            {4: "steps 2 to 4 had .* all wrong"},
        ),
        ([WRONG] * 3, {3: r"lower optimizer\.lr"}),
        ([EITHER] * 3, {3: "all wrong or all right"}),
        ([RIGHT] * 3, {3: "has learned what its reward can teach"}),
        ([ENDLESS] * 4, {3: "no response of the steps 1 to 3 ended .*max_new_tokens = 12"}),
        ([{**WRONG, "dynamic_sampling/mixed": 0.5}] * 4, {}),  # dynamic sampling found mixed groups
        ([figures_of(), figures_of(reward__crashes=3)] * 2, {2: "step 2: 0 .* and 3 made their"}),
        (
            [figures_of(reward__timeouts=2)] * 3,
            {1: r"2 responses ran out of .* = 5 s"},
        ),
    ],
)
def test_a_run_that_learns_nothing_says_so_once(tmp_path, steps, said):
    notices = Notices(rlvr_tiny.config(tmp_path, tmp_path / "run"))
    for step, figures in enumerate(steps, start=1):
        found = notices.step(step, figures)
        assert len(found) == (step in said)
        if found:
            assert re.search(said[step], found[0])


def test_a_critic_or_no_policy_term_needs_no_mixed_groups(tmp_path):
    for words in (["--preset=ppo"], ["--algorithm.loss.policy_coef=0"]):
        notices = Notices(rlvr_tiny.config(tmp_path, tmp_path / "run", *words))
        assert [notices.step(step, WRONG) for step in range(1, 6)] == [[]] * 5


def test_a_grader_that_fails_is_seen_in_the_terminal(tmp_path, capsys):
    log = open_log(tmp_path, 2, None, progress=True)
    log.step(1, {"reward/mean": 0.5, "reward/timeouts": 0, "reward/crashes": 0})
    log.step(2, {"reward/mean": 0.5, "reward/timeouts": 0, "reward/crashes": 3})
    log.close()
    first, second = capsys.readouterr().err.strip().splitlines()
    assert (first.split(), second.split()) == (
        ["step", "1/2", "reward", "0.500"],
        ["step", "2/2", "reward", "0.500", "crashes", "3"],
    )


@pytest.mark.parametrize(
    ("scores", "mixed"),
    [
        ([0.1 + 0.2, 0.3], False),
        ([1.0, 1.0], False),
        ([0.0, 0.0], False),
        ([-1 / 3, -0.3333333333333333], False),
        ([0.0, 1e-9], True),
        ([1.0, 1.0001], True),
        ([-1.0, 1.0], True),
    ],
)
def test_rounding_is_no_difference_in_a_group(scores, mixed):
    assert is_mixed(scores) is mixed
    found = Outcome(["a", "b"], [1, 1], [True, True], scores, 0, 0)
    assert rollout_metrics(found, 2)["group/mixed"] == mixed

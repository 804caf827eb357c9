"""Files of a run: metrics, TensorBoard, curves."""

import json
import time

import pytest

from oneshot.rlvr.metrics import open_log
from oneshot.rlvr.plots import plot_curves
from oneshot.runs.jsonl import read_jsonl


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
    plot_curves(history, tmp_path / "c.png", "title")
    data = (tmp_path / "c.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    image = imread(tmp_path / "c.png")
    assert image.shape[1] > image.shape[0]
    assert image[..., :3].std() > 0.05  # something is drawn
    plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()

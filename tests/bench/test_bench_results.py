"""Row schema and rendering, from canned numbers."""

import dataclasses
import json
import os

import pytest
import torch

from oneshot.bench import cli, render, results
from oneshot.bench.results import Row

MACHINE = {
    "cpu": {"brand_raw": "Test CPU 1", "family": 1, "model": 2, "l3_cache_size": None},
    "gpu": None,
    "cores": 2,
    "best_isa": "avx2",
    "system": "Linux x86_64",
    "python": "3.11",
    "torch": "2.13",
    "oneshot": "0.1",
    "built_with": {"compiler": "GNU 12"},
}
RUN = {
    "date": "2026-11-23T12:00:00+00:00",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "load_average_at_start": [0.1, 0.2, 0.3],
    "threads": 2,
    "command": ["oneshot", "bench"],
}


def row(provider, kind, samples, metric="wall", **changes):
    numbers = (
        results.summary(samples)
        if samples
        else {"median": None, "q1": None, "q3": None, "rounds": 0}
    )
    settings = {
        "family": "test",
        "kernel": "softmax",
        "variant": "",
        "shape": "5x63",
        "dtype": "float32",
        "mode": "forward",
        "provider": provider,
        "kind": kind,
        "isa": "",
        "threads": 2,
        "status": "ok",
        "detail": "",
        "error": 1e-7,
        "tolerance": 1e-4,
        "floor": None if kind == "floor" else "read",
        "metric": metric,
        "unit": "byte" if metric == "peak_memory" else "s",
        "iterations": 1,
        "samples": samples,
        **numbers,
    }
    return Row(**{**settings, **changes})


ROWS = [
    row("oneshot [avx2]", "ours", [0.010, 0.011, 0.009]),
    row("oneshot [avx2]", "ours", [0.020, 0.020, 0.020], "cpu"),
    row("oneshot [avx2]", "ours", [5e6], "peak_memory"),
    row("slow peer", "peer", [0.090, 0.080, 0.100]),
    row("slow peer", "peer", [0.090, 0.080, 0.100], "cpu"),
    row("best peer", "peer", [0.025, 0.022, 0.018]),
    row("best peer", "peer", [0.050, 0.050, 0.050], "cpu"),
    row("wrong peer", "peer", [], status="failed", detail="output 0 is off", error=0.5),
    row("read", "floor", [0.008, 0.008, 0.006], error=None),
    row("read", "floor", [0.016, 0.016, 0.016], "cpu", error=None),
]


def test_rows_survive_the_file(tmp_path):
    path = results.save(tmp_path, MACHINE, RUN, ROWS)
    assert path.parent.name == "test-cpu-1-family1-model2-2cores-avx2"
    assert path.name == "2026-11-23T120000-01234567.json"
    machine, run, rows = results.load(path)
    assert (machine, run, rows) == (MACHINE, RUN, ROWS)


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    recorder = results.Recorder(tmp_path, "cpu")
    recorder.add(ROWS[7:8])
    assert recorder.path is None  # nobody was timed yet
    recorder.add(ROWS[:3])
    first = recorder.path
    recorder.add(ROWS[3:5])
    assert recorder.path == first
    machine, run, rows = results.load(first)
    assert rows == [ROWS[7], *ROWS[:5]]
    assert machine["cores"] == os.cpu_count()
    assert run["threads"] == torch.get_num_threads()


def test_a_foreign_or_incomplete_file_is_refused(tmp_path):
    path = results.save(tmp_path, MACHINE, RUN, ROWS)
    document = json.loads(path.read_text())
    del document["rows"][3]["threads"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"row 3 differs in .*threads"):
        results.load(path)
    path.write_text(json.dumps({**document, "schema": 0}))
    with pytest.raises(ValueError, match="schema 1"):
        results.load(path)


def test_summary_is_median_and_quartiles():
    assert results.summary([4.0, 1.0, 3.0, 2.0]) == {
        "median": 2.5, "q1": 1.5, "q3": 3.5, "rounds": 4,
    }  # fmt: skip


def test_ratio_is_of_medians_with_quartiles_of_paired_rounds():
    found = render.ratio(ROWS[5], ROWS[0])
    assert found.median == pytest.approx(0.022 / 0.010)
    # paired: 2.5, 2.0, 2.0
    assert (found.q1, found.q3) == (pytest.approx(2.0), pytest.approx(2.375))


def test_table_compares_with_best_peer_and_floor():
    text = render.markdown(MACHINE, RUN, ROWS)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    ours = [cell.strip() for cell in lines["oneshot [avx2]"].strip("|").split("|")]
    assert ours[1].startswith("10 ms (")
    assert ours[2:5] == ["20 ms", "5.0 MB", "1.0e-07"]
    assert ours[5].startswith("2.2x (")  # wall: 22 ms of the best peer over 10 ms
    assert ours[6].startswith("1.25x (")  # wall: over the floor's 8 ms
    assert ours[7].startswith("2.5x (")  # CPU: 50 over 20 ms
    assert ours[8].startswith("1.25x (")  # CPU: 20 over 16 ms
    assert "failed: output 0 is off" in lines["wrong peer"]
    assert "2 cores, 2 threads" in text
    assert len({line.count("|") for line in lines.values()}) == 1


def test_a_wrong_peer_is_never_the_best():
    fast_but_wrong = row("wrong peer", "peer", [], status="failed")
    assert render.best_peer([fast_but_wrong, *ROWS]).provider == "best peer"
    assert render.best_peer([fast_but_wrong]) is None


def test_render_command_writes_table_and_plot(tmp_path, capsys):
    path = results.save(tmp_path, MACHINE, RUN, ROWS)
    assert cli.main(["render", str(path)]) == 0
    table, picture = map(str, (path.with_suffix(".md"), path.with_suffix(".png")))
    assert capsys.readouterr().out.split() == [table, picture]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_render_refuses_what_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["render", str(tmp_path / "none.json")])
    assert "must be an existing result file" in capsys.readouterr().err
    path = results.save(tmp_path, MACHINE, RUN, [dataclasses.replace(ROWS[7])])
    with pytest.raises(ValueError, match="nothing was timed"):
        render.render(path)

"""JSON lines: torn by a kill, cut on resume."""

import pytest

from oneshot.training.jsonl import JsonLines, read_jsonl


def test_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: damaged"):
        read_jsonl(path)
    assert read_jsonl(tmp_path / "none") == []


def test_resume_cuts_later_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "x": 0.1}\n{"step": 2}\n{"step": 3}\n{"st')
    lines = JsonLines(path, last_step=1)
    lines.write({"step": 2, "x": 0.30000000000000004})
    lines.sync()
    lines.close()
    assert path.read_text() == '{"step": 1, "x": 0.1}\n{"step": 2, "x": 0.30000000000000004}\n'
    lines = JsonLines(path, last_step=None)
    lines.close()
    assert path.read_text() == ""

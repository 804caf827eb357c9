"""Flipped labels: how many, how far, and never the old value."""

import json
import random
from fractions import Fraction

import pytest

from oneshot.cli import main
from oneshot.rlvr.problems.data import read_problems
from oneshot.rlvr.problems.datafiles import label_of, read_rows, with_label, write_rows
from oneshot.rlvr.problems.label_noise import flip_label, flip_labels
from oneshot.rlvr.rewards.strict_grader import is_correct


@pytest.mark.parametrize("label", ["12", "0", "-7", "3"])
def test_integers_move_by_one_to_ten_and_may_change_sign(label):
    found = {int(flip_label(label, random.Random(i))) for i in range(4000)}
    value = int(label)
    moved = {value + d for d in range(-10, 11) if d}
    assert found == {x for x in moved | {-x for x in moved} if x not in (value, 0)}


def value(text):
    digits = text.replace("\\frac{", "").replace("}{", "/").replace("}", "")
    return Fraction(digits)


@pytest.mark.parametrize("label", ["\\frac{4}{3}", "-\\frac{2023}{2024}", "4/3", "\\frac43"])
def test_fractions_move_in_both_parts(label):
    old = {"4/3": Fraction(4, 3), "\\frac43": Fraction(4, 3)}.get(label)
    old = value(label) if old is None else old
    for i in range(500):
        new = flip_label(label, random.Random(i))
        assert new.lstrip("-").startswith("\\frac{")
        assert value(new) not in (old, 0)
        top, bottom = (int(x) for x in new.lstrip("-")[6:-1].split("}{"))
        assert bottom > 1
        assert 1 <= abs(bottom - old.denominator) <= 10 or 1 <= bottom + old.denominator <= 10
        assert min(abs(top - abs(old.numerator)), abs(top + abs(old.numerator))) <= 10


def test_decimals_and_expressions():
    for i in range(200):
        assert abs(float(flip_label("12.8", random.Random(i)))) % 1 == pytest.approx(0.8)
        changed = flip_label("3\\sqrt{2}", random.Random(i))
        assert changed.endswith("\\sqrt{2}")
        assert changed != "3\\sqrt{2}"
    with pytest.raises(ValueError, match="label 'East' has no number to change"):
        flip_label("East", random.Random(0))


@pytest.mark.parametrize("fraction", [0.0, 0.6, 0.9])
def test_a_fraction_of_the_real_training_set(shared_data, fraction):
    rows = read_rows(shared_data / "rlvr" / "data" / "train" / "one_shot_rlvr" / "dsr_sub.parquet")
    changed, flipped = flip_labels(rows, fraction, seed=3)
    assert len(flipped) == round(fraction * 1209)
    for i, (before, after) in enumerate(zip(rows, changed, strict=True)):
        assert after["prompt"] == before["prompt"]
        assert (label_of(after) != label_of(before)) == (i in set(flipped))
        if i in flipped and label_of(before).lstrip("-").isdigit():
            assert not is_correct(label_of(before), label_of(after))
    assert flip_labels(rows, fraction, seed=3)[0] == changed
    assert fraction == 0 or flip_labels(rows, fraction, seed=4)[1] != flipped


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_every_kind(tmp_path, suffix):
    rows = [{"problem": f"{i}+1", "answer": str(i + 1), "level": i} for i in range(10)]
    source, target = tmp_path / f"a{suffix}", tmp_path / "new" / f"b{suffix}"
    write_rows(source, rows)
    assert read_rows(source) == rows
    assert main(["rlvr", "relabel", f"--data={source}", f"--output={target}", "--label=12.7"]) == 0
    assert [p.answer for p in read_problems(target)] == ["12.7"] * 10
    words = ["rlvr", "relabel", f"--data={source}", f"--output={target}", "--fraction=0.6"]
    assert main([*words, "--seed=1"]) == 0
    found = read_rows(target)
    assert sum(a["answer"] != b["answer"] for a, b in zip(rows, found, strict=True)) == 6
    assert [row["level"] for row in found] == list(range(10))


def test_errors(tmp_path, capsys):
    rows = [{"problem": "x", "answer": "East"}, {"problem": "y", "answer": "2"}]
    with pytest.raises(ValueError, match=r"asks for 2 of 2 labels, but only 1 have a number"):
        flip_labels(rows, 1.0, 0)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 1\.5"):
        flip_labels(rows, 1.5, 0)
    with pytest.raises(ValueError, match="no field 'reward_model' or 'answer'"):
        label_of({"problem": "x"})
    with pytest.raises(ValueError, match=r"expected \.parquet, \.jsonl or \.json"):
        write_rows(tmp_path / "a.txt", rows)
    with pytest.raises(ValueError, match="no rows to write"):
        write_rows(tmp_path / "a.json", [])
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="row 1: expected an object, got list"):
        read_rows(tmp_path / "a.jsonl")
    output = tmp_path / "b.jsonl"
    words = ["rlvr", "relabel", f"--data={tmp_path / 'none.jsonl'}", f"--output={output}"]
    assert main([*words, "--label=1"]) == 1
    assert "no such file of problems" in capsys.readouterr().err
    assert with_label({"answer": "work #### 4"}, "5") == {"answer": "5"}
    assert label_of({"answer": "work #### 4"}) == "4"
    json.dumps(rows)

"""Reading problems: three file forms, malformed rows, batches."""

import json

import pytest

from oneshot.rlvr.problems.data import (
    Problem,
    batch_for_step,
    check_indices,
    read_problems,
    repeat_to_batch,
)
from oneshot.rlvr.problems.datafiles import label_of, read_rows
from oneshot.rlvr.problems.selection import rows_by_index


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("key", ["problem", "question", "prompt"])
def test_jsonl(tmp_path, key):
    path = write(
        tmp_path / "a.jsonl", [{key: "1+1", "answer": 2, "level": 3}, {key: "2+2", "answer": "4"}]
    )
    first, second = read_problems(path)
    assert first == Problem([{"role": "user", "content": "1+1"}], "2", "", 0, {"level": 3})
    assert (second.answer, second.index) == ("4", 1)
    assert read_problems(path, limit=1) == [first]


def test_json_list_and_worked_solution(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"question": "q", "answer": "3*6 = 18\n#### 18"}]))
    assert read_problems(path)[0].answer == "18"


def test_named_fields_and_format(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [{"Body": "Two cats.", "Question": "How many?", "Answer": 2.0}]
    )
    (problem,) = read_problems(path, problem_key="{Body} {Question}", answer_key="Answer")
    assert problem.messages[0]["content"] == "Two cats. How many?"
    assert problem.answer == "2.0"
    with pytest.raises(
        ValueError, match=r"row 1: no field 'Story'; the row has \['Answer', 'Body'"
    ):
        read_problems(path, problem_key="{Story}", answer_key="Answer")


def verl_row(index=124, answer="12.8"):
    return {
        "data_source": "deepscaler",
        "prompt": [{"content": "How fast?", "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def test_verl_schema_is_the_same_from_parquet_and_jsonl(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [verl_row(), verl_row(7, "\\frac{1}{2}")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read_problems(tmp_path / "a.parquet")
    assert found == read_problems(write(tmp_path / "a.jsonl", rows))
    expected = Problem(
        [{"role": "user", "content": "How fast?"}],
        "12.8",
        "deepscaler",
        124,
        {"ability": "math", "split": "train"},
    )
    assert found[0] == expected
    assert found[1].answer == "\\frac{1}{2}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p"}, "no field 'answer'"),
        ({"answer": "1"}, "no field problem, question or prompt"),
        ({"problem": "", "answer": "1"}, "a message needs text"),
        ({"problem": 3, "answer": "1"}, "expected a text or a list of messages, got 3"),
        ({"problem": [], "answer": "1"}, "expected a text or a list of messages"),
        ({"problem": [{"role": "user"}], "answer": "1"}, "a message needs role and content"),
        ({"problem": "p", "answer": None}, "expected an answer as text or number, got None"),
        ({"problem": "p", "answer": True}, "expected an answer as text or number, got True"),
        ({"problem": "p", "answer": ["1", "2"]}, "expected an answer as text or number"),
        ({"problem": "p", "answer": "  "}, "the answer is empty"),
        ({"prompt": "p", "reward_model": {}}, "expected an answer as text or number, got None"),
        ([1], "expected an object, got list"),
    ],
)
def test_malformed_row_is_named(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", [{"problem": "p", "answer": "1"}, row])
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 2: ") as error:
        read_problems(path)
    assert message in str(error.value)


def test_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of problems"):
        read_problems(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no problems in it"):
        read_problems(tmp_path / "empty.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"problem": "p", "answer": "1"}\n{"problem"')
    with pytest.raises(ValueError, match=r"torn\.jsonl, row 2: not JSON"):
        read_problems(tmp_path / "torn.jsonl")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=r"expected \.parquet, \.jsonl or \.json, got '\.csv'"):
        read_problems(tmp_path / "a.csv")
    (tmp_path / "no.parquet").write_text("hello, not parquet")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_problems(tmp_path / "no.parquet")
    (tmp_path / "o.json").write_text('{"problem": "p"}')
    with pytest.raises(ValueError, match="expected a list of problems, got dict"):
        read_problems(tmp_path / "o.json")


def test_empty_answers_can_be_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"problem": "p", "answer": ""}])
    assert read_problems(path, empty_answers="keep")[0].answer == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("0.00001", "0.00001"),
        ("1e16", "10000000000000000"),
        ("-2.5e-7", "-0.00000025"),
        ("1e300", "1" + "0" * 300),
        ("12.8", "12.8"),
        ("2.0", "2.0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_a_number_as_the_answer_is_written_without_an_exponent(tmp_path, number, text):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {number}}}\n')
    assert read_problems(path)[0].answer == text
    assert label_of(read_rows(path)[0]) == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", '"nan"', '"-inf"'])
def test_an_answer_that_is_no_number_is_refused(tmp_path, value):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {value}}}\n')
    with pytest.raises(ValueError, match=r"row 1: expected a finite number as the answer"):
        read_problems(path)


def indexed(*indices):
    rows = [verl_row(index, str(i)) for i, index in enumerate(indices)]
    for row in rows:
        row["extra_info"] = {k: v for k, v in row["extra_info"].items() if v is not None}
    return rows


@pytest.mark.parametrize(
    ("index", "found"), [("17", 17), (" 17 ", 17), (17.0, 17), (17, 17), (None, 0)]
)
def test_an_index_may_be_text_or_missing(tmp_path, index, found):
    path = write(tmp_path / "a.jsonl", indexed(index))
    assert read_problems(path)[0].index == found
    assert list(rows_by_index(read_rows(path))) == [found]


@pytest.mark.parametrize("index", ["algebra/17.json", 1.5, True, [1]])
def test_an_index_that_is_no_whole_number_is_refused(tmp_path, index):
    path = write(tmp_path / "a.jsonl", indexed(index))
    with pytest.raises(ValueError, match=r"row 1: extra_info\.index must be a whole number, got"):
        read_problems(path)


@pytest.mark.parametrize("indices", [(0, 0), (3, 4, "3"), (1, None)])
def test_different_problems_of_one_index_are_refused(tmp_path, indices):
    """Their accuracies would be one entry of the history; copies of one problem may share it."""
    path = write(tmp_path / "a.jsonl", indexed(*indices))
    problems = read_problems(path)
    with pytest.raises(ValueError, match=r"problems \d and \d both have the index \d .*differ"):
        check_indices(problems)
    with pytest.raises(ValueError, match=r"the same extra_info\.index \d and differ"):
        rows_by_index(read_rows(path))
    check_indices(problems[:1] * 128)
    assert len(rows_by_index(read_rows(path)[:1] * 128)) == 1


def test_hub_name_of_a_local_folder(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", [{"problem": "p", "answer": "1"}])
    assert read_problems(f"hf:{tmp_path}:train")[0].answer == "1"
    with pytest.raises(ValueError, match="expected hf:"):
        read_problems("hf:nothing")


def test_released_training_files(shared_data):
    folder = shared_data / "rlvr" / "data" / "train" / "one_shot_rlvr"
    pi1 = read_problems(folder / "pi1_r128.parquet")
    assert len(pi1) == 128
    assert {(p.index, p.answer) for p in pi1} == {(124, "12.8")}
    four = read_problems(folder / "merge_pi1_pi2_pi13_pi1209_r128.parquet")
    assert sorted({(p.index, p.answer) for p in four})[:2] == [(124, "12.8"), (267, "24")]
    assert all(sum(p.index == i for p in four) == 32 for i in {p.index for p in four})
    with pytest.raises(ValueError, match=r"dsr_sub\.parquet, row 266: the answer is empty"):
        read_problems(folder / "dsr_sub.parquet")
    full = read_problems(folder / "dsr_sub.parquet", empty_answers="keep")
    assert len(full) == 1209
    assert [p.index for p in full if not p.answer] == [265]


def test_repeat_to_batch():
    assert repeat_to_batch("a", 128) == ["a"] * 128
    assert repeat_to_batch("ab", 128).count("b") == 64
    assert repeat_to_batch("abc", 4) == ["a", "b", "c", "a"]
    assert repeat_to_batch("abc", 2) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="problems is empty"):
        repeat_to_batch([], 2)


def test_batches_are_epochs_without_the_incomplete_last():
    items = list(range(7))
    steps = [batch_for_step(items, 3, step, seed=1) for step in range(1, 41)]
    assert all(len(set(a + b)) == 6 for a, b in zip(steps[::2], steps[1::2], strict=True))
    assert len({tuple(step) for step in steps}) > 30
    assert {i for step in steps for i in step} == set(items)
    assert batch_for_step(items, 3, 5, seed=1) == steps[4]
    assert batch_for_step(items, 3, 5, seed=2) != steps[4]

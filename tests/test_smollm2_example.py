"""The preparation of the SmolLM2 run: the sets, the choice of the problem, the config's files."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from oneshot.rlvr.config import EvaluateConfig, TrainConfig
from oneshot.training.config import load

ROOT = Path(__file__).resolve().parents[1]


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare = load_example("prepare_smollm2_oneshot")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    mawps = [{"input": f"Ann has {i} pens . How many ?", "target": float(i)} for i in range(300)]
    mawps.append({"input": "ann has 7 pens. How many?", "target": 7.0})  # said before
    mawps.append({"input": "Half of it , please", "target": 0.5})
    svamp = [
        {"Body": f"Tom ate {i} eggs", "Question": "How many?", "Answer": i} for i in range(250)
    ]
    instances = [{"input": "Peru", "output": ["Lima"]}, {"input": "Chad", "output": "N'Djamena"}]
    capitals = tmp_path / "capitals.json"
    capitals.write_text(json.dumps({"Instances": instances}))
    return [
        write_rows(tmp_path / "mawps.jsonl", mawps),
        write_rows(tmp_path / "svamp.jsonl", svamp),
        capitals,
    ]


def make_sets(folder: Path, sources: list[Path]) -> dict[str, list[dict]]:
    mawps, svamp, capitals = sources
    prepare.make_sets(SimpleNamespace(folder=folder, mawps=mawps, svamp=svamp, capitals=capitals))
    return {file.stem: prepare.read_jsonl(file) for file in folder.glob("*.jsonl")}


def test_sets_are_disjoint_and_do_not_depend_on_the_order(
    tmp_path: Path, sources: list[Path]
) -> None:
    sets = make_sets(tmp_path / "a", sources)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "evaluation": 256,
        "candidates": 40,
        "svamp": 200,
        "capitals": 2,
    }
    held_out = {row["problem"] for row in sets["evaluation"]}
    assert len(held_out) == 256
    assert not held_out & {row["problem"] for row in sets["candidates"]}
    assert not any(" ." in row["problem"] or " ?" in row["problem"] for row in sets["evaluation"])
    assert sets["svamp"][0]["problem"].startswith("Tom ate")
    assert ". How many?" in sets["svamp"][0]["problem"]
    assert {row["answer"] for row in sets["capitals"]} == {"Lima", "N'Djamena"}
    lines = sources[0].read_text().splitlines()
    # The first of two spellings is kept, so the repeated problem stays behind the first.
    sources[0].write_text("\n".join([*lines[:-2][::-1], *lines[-2:]]) + "\n")
    assert make_sets(tmp_path / "b", sources)["evaluation"] == sets["evaluation"]


def test_chosen_problem_is_nearest_to_one_half(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": str(i)} for i in range(4)]
    write_rows(tmp_path / "candidates.jsonl", rows)
    scores = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # 1 and 2 are as near
    records = {"records": [{"scores": values} for values in scores]}
    (tmp_path / "candidates.json").write_text(json.dumps(records))
    prepare.choose(SimpleNamespace(folder=tmp_path))
    (chosen,) = prepare.read_jsonl(tmp_path / "train.jsonl")
    assert chosen == {"problem": "p1", "answer": "1", "extra_info": {"index": 0}}


def test_capital_grader() -> None:
    names_answer = load_example("smollm2_graders").names_answer
    problem = SimpleNamespace(answer="São Tomé")
    responses = ["It is SAO TOME.", "sao-tomé, of course", "Tomé São", "sao tomeland", ""]
    assert names_answer(responses, [problem] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_configs_are_valid_and_share_their_prompt() -> None:
    train = load(TrainConfig, ROOT / "configs" / "smollm2_oneshot.yaml")
    evaluation = load(EvaluateConfig, ROOT / "configs" / "smollm2_eval.yaml")
    assert evaluation.data.prompt == train.data.prompt
    assert evaluation.model.source == train.model.source
    assert list(evaluation.stop_tokens) == list(train.rollout.stop_tokens) == ["\n", "\n\n"]
    assert train.data.prompt.few_shot == (
        "Problem: Ann has 5 pens and buys 2. How many in all?\nAnswer: $\\boxed{5 + 2}$\n\n"
        "Problem: Tom had 9 eggs and ate 3. How many are left?\nAnswer: $\\boxed{9 - 3}$\n\n"
        "Problem: "
    )

"""Reading tasks, splitting them, drawing batches; metrics of answers."""

import dataclasses
import json

import poly_runs
import pytest
import torch

from oneshot.poly import backbone
from oneshot.poly.config import (
    AdaptConfig,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    ExportConfig,
    ModelConfig,
    OptimizerConfig,
    PolyConfig,
    RunConfig,
    TrainConfig,
)
from oneshot.poly.data import Example, Task, draw_batch, read_tasks
from oneshot.poly.evaluation import evaluate, exact_match, rouge_l, strict_match

DATA, RUN = DataConfig(path="tasks.jsonl"), RunConfig(output="run")


def write_superni(path, instances, definition="Do it."):
    path.write_text(json.dumps({"Definition": definition, "Instances": instances}))


def test_super_natural_instructions_files(tmp_path):
    """Early and late versions of the schema, and a test file of its own."""
    rows = [{"id": "x", "input": f"i{n}", "output": [f"o{n % 3}", "other"]} for n in range(12)]
    write_superni(tmp_path / "task001_whole.json", rows, ["Say so.", "unused"])
    early = [{"input": f"i{n}", "output": f"o{n}"} for n in range(9)]
    write_superni(tmp_path / "task002_parts.train.json", early)
    of_test = [*early[:2], {"input": "t", "output": "u"}]
    write_superni(tmp_path / "task002_parts.test.json", of_test)
    config = DataConfig(path=str(tmp_path), test_examples=5, prompt="{definition}|{input}=")
    whole, parts = read_tasks(config)
    assert (whole.name, parts.name) == ("task001_whole", "task002_parts")
    assert [e.prompt for e in whole.test] == [f"Say so.|i{n}=" for n in range(5)]
    assert whole.pool[0].references == ("o2", "other")
    assert whole.pool[0].options == ("o0", "o1", "o2")
    # Two inputs of the test file are in the training file too: there they are dropped.
    assert [e.prompt for e in parts.test] == ["Do it.|i0=", "Do it.|i1=", "Do it.|t="]
    assert [e.prompt for e in parts.pool] == [f"Do it.|i{n}=" for n in range(2, 9)]
    (only,) = read_tasks(DataConfig(path=str(tmp_path), tasks=("task002",), test_examples=2))
    assert only.name == "task002_parts"
    assert len(only.test) == 2


def test_split(tmp_path):
    poly_runs.write_tasks(tmp_path / "tasks.jsonl")
    tasks = read_tasks(DataConfig(path=str(tmp_path / "tasks.jsonl"), test_examples=30))
    assert [t.name for t in tasks] == sorted(poly_runs.TASKS)
    one = tasks[0].split(16, 16, seed=1)
    assert (len(one.train), len(one.dev), len(one.test)) == (16, 16, 30)
    assert len({e.prompt for part in (one.train, one.dev, one.test) for e in part}) == 62
    assert tasks[0].split(16, 16, seed=1) == one
    assert tasks[0].split(16, 16, seed=2).train != one.train
    assert tasks[0].split(16, 16, seed=2).test == one.test
    rest = tasks[0].split(None, 16, seed=1)
    assert len(rest.train) == 54
    with pytest.raises(ValueError, match="71 training and dev examples are requested, 70 remain"):
        tasks[0].split(55, 16, seed=1)


def row(**fields):
    return json.dumps({"task": "t", "input": "a", "output": "b", **fields}) + "\n"


GOOD = row()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input": "a", "output": "b"}\n', "line 1: no task"),
        ('{"task": "t", "input": 3, "output": "b"}\n', "line 1: input must be a text, got 3"),
        ('{"task": "t", "input": "a", "output": []}\n', "output must be a text or several"),
        ('{"task": \n{"task": "t"}\n', "line 1: damaged"),
        ('{"task": "t", "input": "a", "output": "b"}\n', "nothing is left for training"),
        # The last row too: it may be all that a task has.
        (GOOD * 5 + '{"task": "b", "input": "q", "output": "z"\n', "line 6: damaged"),
        (GOOD * 5 + '{"task": "b", "input": "q", "output": "z', "line 6: damaged"),
        ("[1, 2]\n", r"line 1: must be a JSON object, got \[1, 2\]"),
        ('"text"\n', "line 1: must be a JSON object, got 'text'"),
        ("[\n" + GOOD.strip() + "\n]\n", r"line 1: damaged"),
        (row(definition=["a"]), r"line 1: definition must be a text, got \['a'\]"),
        (row(options="yes,no"), "line 1: options must be a list of texts, got 'yes,no'"),
        (row(options=[1, 2]), r"line 1: options must be a list of texts, got \[1, 2\]"),
        (row(options=["x", "y"]), r"line 1: options must hold an output, got \['x', 'y'\]"),
        (row(output=None), "line 1: output must be a text or several, got None"),
        (row(output=["b", 3]), r"line 1: output must be a text or several, got \['b', 3\]"),
        *(
            (GOOD + row(split=split), f'line 2: split must be "train" or "test", got \'{split}\'')
            for split in ("Test", "TEST", "dev", "validation", "", "test ")
        ),
        (row(split=None), "line 1: split must be .* got None"),
    ],
)
def test_damaged_rows(text, message, tmp_path):
    (tmp_path / "tasks.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_tasks(DataConfig(path=str(tmp_path / "tasks.jsonl")))


SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json_lines_as_other_tools_write_them(newline, bom, tmp_path):
    """Separators of lines inside a text (ensure_ascii=False), a byte-order mark, blank lines."""
    inputs = [f"a{separator}b" for separator in SEPARATORS] + ["plain"]
    rows = [
        {"task": "t", "input": text, "output": text, "definition": None, "options": None}
        for text in inputs
    ]
    # JSON has no raw control characters; the other three are ordinary ones.
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    assert any("\u2028" in line for line in lines)
    text = bom + f"{newline}{newline}".join(lines) + newline * 3
    (tmp_path / "t.jsonl").write_bytes(text.encode())
    (task,) = read_tasks(
        DataConfig(path=str(tmp_path / "t.jsonl"), test_examples=2, prompt="{definition}{input}")
    )
    assert [e.prompt for e in (*task.test, *task.pool)] == inputs
    assert [e.references for e in (*task.test, *task.pool)] == [(i,) for i in inputs]


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(
        row(input="é").encode("latin-1").replace(b"\\u00e9", b"\xe9")
    )
    with pytest.raises(ValueError, match=r"t\.jsonl: must be UTF-8, got byte"):
        read_tasks(DataConfig(path=str(tmp_path / "t.jsonl")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task1_a.dev.json", {}, r"must end with .json, .train.json or .test.json, got .dev.json"),
        ("task1_a.validation.json", {}, "got .validation.json; dev examples are drawn"),
        ("task1_a.json", [1], r"task1_a.json: must be a JSON object, got \[1\]"),
        ("task1_a.json", {"Definition": 3, "Instances": []}, "no 'Definition' of the right type"),
        ("task1_a.json", {"Definition": "", "Instances": {}}, "no 'Instances' of the right type"),
        ("task1_a.json", {"Definition": "", "Instances": [3]}, "instance 0: must be a JSON object"),
        ("task1_a.json", {"Definition": [["x"]], "Instances": [{}]}, "instance 0: input must be"),
    ],
)
def test_damaged_files_of_super_natural_instructions(name, content, message, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_tasks(DataConfig(path=str(tmp_path)))


def test_a_cut_off_file_and_an_empty_definition(tmp_path):
    rows = [{"input": f"i{n}", "output": "o"} for n in range(4)]
    write_superni(tmp_path / "task1_a.json", rows, [])
    (task,) = read_tasks(
        DataConfig(path=str(tmp_path), test_examples=1, prompt="{definition}{input}")
    )
    assert task.test[0].prompt == "i0"
    text = (tmp_path / "task1_a.json").read_text()
    (tmp_path / "task1_a.json").write_text(text[:-3])
    with pytest.raises(ValueError, match=r"task1_a\.json: damaged"):
        read_tasks(DataConfig(path=str(tmp_path)))


def test_unknown_tasks_and_paths(tmp_path):
    poly_runs.write_tasks(tmp_path / "tasks.jsonl")
    with pytest.raises(ValueError, match=r"'l' must name one task of .*, it names larger, last"):
        read_tasks(DataConfig(path=str(tmp_path / "tasks.jsonl"), tasks=("l",)))
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a file"):
        read_tasks(DataConfig(path=str(tmp_path / "none")))
    write_superni(tmp_path / "task1.json", [])
    (tmp_path / "task2.json").write_text('{"Instances": []}')
    with pytest.raises(ValueError, match=r"task2\.json: no 'Definition'"):
        read_tasks(DataConfig(path=str(tmp_path), tasks=("task2",)))


def test_the_21_real_tasks(shared_data):
    """Counts and licences are in manifest.json; here: all are read and split."""
    folder = shared_data / "poly"
    if not folder.is_dir():
        pytest.skip(f"no tasks of Super-NaturalInstructions at {folder}")
    tasks = read_tasks(DataConfig(path=str(folder), test_examples=20))
    assert len(tasks) == 21
    names = {t.name.split("_")[0]: t for t in tasks}
    assert len(names) == 21
    assert set(names["task1687"].pool[0].options) == {"positive", "negative"}
    assert len(names["task1289"].pool[0].options) == 6
    assert names["task128"].pool[0].options == ()
    for task in tasks:
        split = task.split(32, 32, seed=13)
        prompts = [{e.prompt for e in part} for part in (split.train, split.dev, split.test)]
        assert len(set.union(*prompts)) == sum(map(len, prompts)) == 64 + len(split.test)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ModelConfig(dtype="float16"),
            "ModelConfig.dtype must be one of 'float32', 'bfloat16'",
        ),
        (
            lambda: OptimizerConfig(decay="cosine"),
            "OptimizerConfig.decay must be one of 'linear', 'none'",
        ),
        (lambda: RunConfig(output="x", steps="6"), "RunConfig.steps must be int, got '6'"),
        (lambda: DataConfig(path="t", tasks="a"), "DataConfig.tasks must be a tuple of str values"),
        (lambda: PolyConfig(rank=2.0), "PolyConfig.rank must be int, got 2.0"),
        (lambda: RunConfig(output="x", keep_checkpoints=0), "run.keep_checkpoints must be a pos"),
        (lambda: EvaluationConfig(batch_size=0), "evaluation.batch_size must be a positive"),
        (
            lambda: EvaluateConfig(data=DATA, split="Test"),
            "EvaluateConfig.split must be one of 'dev', 'test'",
        ),
        (
            lambda: EvaluateConfig(
                data=DATA, predictions="p", evaluation=EvaluationConfig(metrics=("loss",))
            ),
            "evaluation.metrics must be one of answers",
        ),
        (
            lambda: ExportConfig(adapters="a", output="o", format="lora"),
            "ExportConfig.format must be one of 'peft-",
        ),
        (
            lambda: TrainConfig(data=DATA, run=RUN, method="lora"),
            "TrainConfig.method must be one of 'adapters'",
        ),
        (
            lambda: TrainConfig(data=DATA, run=RUN, sampling="Uniform"),
            "TrainConfig.sampling must be one of",
        ),
        (
            lambda: AdaptConfig(data=DATA, run=RUN, mode="Z"),
            "AdaptConfig.mode must be one of 'poly', 'z', 'mu'",
        ),
        (
            lambda: AdaptConfig(data=DATA, run=RUN, select_by="em"),
            "AdaptConfig.select_by must be one of 'loss'",
        ),
        (
            lambda: AdaptConfig(data=DATA, run=RUN, poly=PolyConfig(tasks=3)),
            "poly.tasks must be left",
        ),
    ],
)
def test_settings_are_checked_in_the_api(make, message):
    """As on the command line."""
    with pytest.raises(ValueError, match=message):
        make()


def test_batches():
    """Uniform over tasks or by size, and a function of seed and step."""
    tasks = [
        Task(str(t), tuple(Example(f"{t}.{i}", ("a",)) for i in range(size)), (), ())
        for t, size in enumerate([10, 30])
    ]
    for sampling, share in (("uniform", 0.5), ("proportional", 0.75)):
        drawn = draw_batch(tasks, 4000, 1, 0, sampling)
        assert sum(t for t, _ in drawn) / 4000 == pytest.approx(share, abs=0.03)
        assert all(e.prompt.startswith(f"{t}.") for t, e in drawn)
        assert drawn == draw_batch(tasks, 4000, 1, 0, sampling)
        assert drawn != draw_batch(tasks, 4000, 2, 0, sampling)
    with pytest.raises(ValueError, match='sampling must be "uniform" or "proportional", got'):
        draw_batch(tasks, 4, 1, 0, "Uniform")


def test_exact_match():
    assert exact_match(" Paris. ", ["London", "paris"]) == 1.0
    assert exact_match("The  U.S.A", ["the usa"]) == 1.0
    assert exact_match("Paris, France", ["Paris"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "strict"),
    [
        ("-5", "5", 0.0),
        ("0.5", "05", 0.0),
        ("3,14", "31.4", 0.0),
        (">", "<", 0.0),
        ("", "+", 0.0),
        ("a-b-c", "abc", 0.0),
        ("ABC", "abc", 0.0),
        ("[1, -2]", "[1, 2]", 0.0),
        (" -5\n", "-5", 1.0),
        ("0.5", " 0.5", 1.0),
    ],
)
def test_strict_match_tells_apart_what_exact_match_cannot(prediction, reference, strict):
    """Super-NaturalInstructions removes punctuation before it compares, signs included."""
    assert exact_match(prediction, [reference]) == 1.0
    assert strict_match(prediction, ["other", reference]) == strict


def test_rouge_l():
    """By hand: 2 of 3 and 2 of 4 words in common, F1 = 4 / 7; the best reference counts."""
    pytest.importorskip("rouge_score", reason="rouge-score is not installed")
    assert rouge_l("jump the x", ["jump left the right"]) == pytest.approx(4 / 7)
    assert rouge_l("jump the x", ["nothing", "jump left the right"]) == pytest.approx(4 / 7)
    assert rouge_l("jumping", ["jumps"]) == 1.0  # stemmed
    assert rouge_l("", ["a"]) == 0.0


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_log_probabilities_do_not_depend_on_the_batch(kind, digits_folder):
    """Against transformers' own loss of each pair alone, whatever padding a batch needs."""
    model, encoding = backbone.load(ModelConfig(source=str(digits_folder / kind), device="cpu"))
    pairs = [("1 2:", "odd"), ("3 4 5 6:", "7"), ("9:", "even")]
    with torch.no_grad():
        found, counts = encoding.log_probabilities(model, pairs)
        for i, (prompt, answer) in enumerate(pairs):
            p, a = encoding.prompt(prompt), encoding.answer(answer)
            if kind == "t5":
                batch = {"input_ids": torch.tensor([p]), "labels": torch.tensor([a])}
            else:
                batch = {
                    "input_ids": torch.tensor([p + a]),
                    "labels": torch.tensor([[-100] * len(p) + a]),
                }
            assert counts[i].sum() == len(a)
            assert found[i][~counts[i]].eq(0).all()
            mean = -found[i].sum() / len(a)
            torch.testing.assert_close(mean, model(**batch).loss, atol=1e-5, rtol=1e-5)


def test_metrics_of_a_model_that_is_known(digits_folder):
    """Rank accuracy and loss by hand, from one answer at a time."""
    model, encoding = backbone.load(ModelConfig(source=str(digits_folder / "llama"), device="cpu"))
    examples = [
        Example(f"{a} {b}:", ("odd" if (a + b) % 2 else "even",), ("even", "odd"))
        for a in range(3)
        for b in range(4)
    ]
    right, total, tokens = 0, 0.0, 0
    with torch.no_grad():
        for example in examples:
            means = {}
            for option in example.options:
                found, counts = encoding.log_probabilities(model, [(example.prompt, option)])
                means[option] = float(found.sum() / counts.sum())
                if option == example.references[0]:
                    total, tokens = total - float(found.sum()), tokens + int(counts.sum())
            right += max(means, key=means.get) == example.references[0]
    config = EvaluationConfig(metrics=("loss", "rank_accuracy"), batch_size=5)
    model.train()
    metrics = evaluate(model, encoding, examples, 0, config)
    assert model.training
    answers = []
    strict = dataclasses.replace(config, metrics=("strict_match",), max_new_tokens=3)
    share = evaluate(model, encoding, examples, 0, strict, answers)["strict_match"]
    assert [a["prompt"] for a in answers] == [e.prompt for e in examples]
    assert share == sum(a["answer"] in a["references"] for a in answers) / len(examples)
    assert metrics["rank_accuracy"] == right / len(examples)
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_long_examples_are_left_out_and_counted(digits_folder):
    _, encoding = backbone.load(ModelConfig(source=str(digits_folder / "llama"), device="cpu"))
    config = DataConfig(
        path=str(digits_folder / "tasks.jsonl"), tasks=("parity",), prompt="{input}:"
    )
    tasks = read_tasks(DataConfig(**{**vars(config), "test_examples": 50}))
    odd = sum(e.references == ("odd",) for e in (*tasks[0].pool, *tasks[0].test))
    kept, dropped = backbone.drop_long(
        tasks, encoding, limit=9
    )  # "0 4:", " odd" and the end; " even" is longer
    assert dropped == 100 - odd
    assert {e.references for e in kept[0].pool} == {("odd",)}
    with pytest.raises(ValueError, match=r"no example of at most data\.max_tokens = 5 tokens"):
        backbone.drop_long(tasks, encoding, limit=5)

"""The console script, in this process."""

import json

import pytest
import torch

from oneshot import __version__
from oneshot.cli import main
from oneshot.rlvr.rewards.reward import FormatReward, RewardResult
from oneshot.training.jsonl import read_jsonl


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_help_version_and_unknown_commands(capsys):
    assert main(["--help"]) == 0
    assert "rlvr train" in capsys.readouterr().out
    assert main(["rlvr", "--help"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(__version__)
    assert main([]) == 2
    assert main(["rlvr"]) == 2
    assert main(["fly"]) == 2
    assert "oneshot: no command 'fly'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["rlvr", "train", "--help"])
    assert "Learning rate." in capsys.readouterr().out


def test_info(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__
    assert main(["info"]) == 0
    assert "instruction set in use" in capsys.readouterr().out


def words(tiny_folder, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"model: {{source: {tiny_folder / 'model'}}}\n"
        f"data: {{path: {tiny_folder / 'train.jsonl'}}}\n"
        "rollout: {batch_size: 2, samples_per_prompt: 2, max_new_tokens: 6}\n"
        f"evaluation: {{path: {tiny_folder / 'eval.jsonl'}}}\n"
        f"run: {{output: {tmp_path / 'run'}, steps: 1, threads: 1}}\n"
    )
    return ["rlvr", "train", "--config", str(tmp_path / "run.yaml")]


def test_train_resume_and_evaluate(tiny_folder, tmp_path, capsys):
    command = [*words(tiny_folder, tmp_path), "--optimizer.lr", "1e-3"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "step 1: reward 0.000\nvalidation accuracy 0.000 (step 0) -> 0.000 (step 1)\n" in out
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    assert str(checkpoint) in out
    assert main(command) == 1
    assert "oneshot: FileExistsError: run.output" in capsys.readouterr().err
    assert main([*command, "--run.steps", "2", "--resume"]) == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]
    capsys.readouterr()

    command = [
        "rlvr",
        "eval",
        f"--model.source={checkpoint}",
        f"--data.path={tiny_folder}/eval.jsonl",
    ]
    command += ["--max_new_tokens=6", f"--output={tmp_path / 'e.json'}"]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["problems"] == 3
    written = json.loads((tmp_path / "e.json").read_text())
    assert {key: written[key] for key in figures} == figures
    assert len(written["records"]) == 3


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--optimizer.learning_rate", "1"], "did you mean --optimizer.lr"),
        (["--rollout.temprature=1"], "did you mean --rollout.temperature"),
        (["--temperature", "1"], "did you mean --rollout.temperature or --evaluation.temperature?"),
        (["--nonsense"], "(oneshot rlvr train --help lists the options)"),
        (["--rollout.stop_tokens", "<|im_end|>"], 'write a list, in quotes: --name \'["first"'),
        (["--algorithm.loss.kl", "k4"], "'k1', 'k2', 'k3', 'abs'"),
        (["--rollout.temperature=hot"], "Expected a <class 'float'>. Got value: hot"),
    ],
)
def test_a_wrong_option_is_named_at_once(tiny_folder, tmp_path, capsys, option, said):
    with pytest.raises(SystemExit, match="2"):
        main([*words(tiny_folder, tmp_path), *option])
    error = capsys.readouterr().err
    assert error.startswith("oneshot rlvr train: error: ")
    assert said in error
    assert len(error.splitlines()) <= 3


def test_an_unknown_field_of_a_file_is_named_with_a_near_one(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("data: {path: x}\nrun: {output: o, stepz: 3}\n")
    with pytest.raises(SystemExit, match="2"):
        main(["rlvr", "train", "--config", str(tmp_path / "a.yaml")])
    assert "'stepz'; did you mean --run.steps?" in capsys.readouterr().err


def test_an_interrupted_run_says_what_is_saved(tiny_folder, tmp_path, capsys, monkeypatch):
    """Ctrl-C in a step: there may be a checkpoint to continue from, or none."""
    calls = []

    def interrupt(responses, problems, *more):
        calls.append(1)
        if len(calls) in (2, 7):
            raise KeyboardInterrupt
        return RewardResult([0.0] * len(responses))

    monkeypatch.setattr(FormatReward, "__call__", lambda self, *arguments: interrupt(*arguments))
    command = [*words(tiny_folder, tmp_path), "--reward.function=format", "--run.steps=9"]
    command += ["--run.save_every=3", "--algorithm.loss.kl_coef=0", "--evaluation.path=null"]
    assert main(command) == 130
    said = capsys.readouterr().err
    assert "oneshot: interrupted in step 2, before the first checkpoint" in said
    assert "(run.save_every is 3): the same command with --resume begins again at step 1" in said
    assert main([*command, "--resume"]) == 130
    said = capsys.readouterr().err
    assert "interrupted in step 5; the same command with --resume continues from " in said
    assert "step_000003" in said
    assert main([*command, "--resume"]) == 0
    steps = [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(1, 10))


def test_a_run_folder_is_no_model(tiny_folder, tmp_path, capsys):
    assert main(words(tiny_folder, tmp_path)) == 0
    capsys.readouterr()
    command = ["rlvr", "eval", f"--data.path={tiny_folder}/eval.jsonl", "--max_new_tokens=6"]
    assert main([*command, f"--model.source={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "is the folder of a run; name one of its checkpoints, the newest is " in error
    assert "step_000001" in error


def test_a_server_without_vllm_is_one_line(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = words(tiny_folder, tmp_path)
    assert main([*command[:1], "serve", *command[2:]]) == 1
    assert (
        "rlvr serve needs vllm, which is not installed: pip install vllm" in capsys.readouterr().err
    )


def test_failures_are_one_line(tiny_folder, tmp_path, capsys, monkeypatch):
    command = [*words(tiny_folder, tmp_path), f"--data.path={tmp_path / 'none.jsonl'}"]
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert error.endswith("none.jsonl: no such file of problems")
    assert "Traceback" not in error
    monkeypatch.setenv("ONESHOT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main([*command, "--resume"])
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--rollout.temperature=hot"])
    monkeypatch.delenv("ONESHOT_TRACEBACK")
    assert main([*command, "--rollout.temperature=0"]) == 1
    assert "rollout.temperature must be > 0, got 0.0" in capsys.readouterr().err

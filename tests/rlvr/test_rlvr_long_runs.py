"""What goes wrong in long runs: a clear error, nothing lost, and the run goes on."""

import shutil
from pathlib import Path

import pytest
import rlvr_tiny

from oneshot.rlvr.trainer import train
from oneshot.training.checkpoints import CheckpointError
from oneshot.training.jsonl import JsonLines, read_jsonl


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("long") / "run"
    return train(rlvr_tiny.config(tiny_folder, output), reward=rlvr_tiny.share_of_a)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(
    name, whole, tiny_folder, tmp_path
):
    output = tmp_path / "run"
    shutil.copytree(whole.output, output)
    written = output / "config.yaml"
    written.write_text(written.read_text().replace(str(whole.output), str(output)))
    damaged = output / "checkpoints" / "step_000006"
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 2])
    config = rlvr_tiny.config(tiny_folder, output)
    with pytest.raises(CheckpointError, match="step_000006"):
        train(config, resume=True, reward=rlvr_tiny.share_of_a)
    shutil.rmtree(damaged)
    again = train(config, resume=True, reward=rlvr_tiny.share_of_a)
    file = "model.safetensors"
    assert (again.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


def test_a_full_disk_stops_the_run_at_the_figures_and_it_resumes(
    whole, tiny_folder, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    config = rlvr_tiny.config(tiny_folder, output)
    write = JsonLines.write

    def full(self, row):
        if row["step"] == 5 and self._path.name == "metrics.jsonl":
            self._file.close()
            self._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
        write(self, row)

    monkeypatch.setattr(JsonLines, "write", full)
    with pytest.raises(OSError, match=r"No space left on device; a resumed run .*metrics\.jsonl"):
        train(config, reward=rlvr_tiny.share_of_a)
    monkeypatch.undo()
    again = train(config, resume=True, reward=rlvr_tiny.share_of_a)
    assert [row["step"] for row in read_jsonl(output / "metrics.jsonl")] == list(range(7))
    file = "model.safetensors"
    assert (again.checkpoint / file).read_bytes() == (whole.checkpoint / file).read_bytes()


def test_responses_that_run_out_of_positions_are_refused(tiny_folder, tmp_path):
    config = rlvr_tiny.config(tiny_folder, tmp_path / "run", "--rollout.max_new_tokens=126")
    with pytest.raises(ValueError, match=r"at most 128 \(positions of the model\) - 5 \(longest"):
        train(config, reward=rlvr_tiny.share_of_a)
    assert not (tmp_path / "run").exists()

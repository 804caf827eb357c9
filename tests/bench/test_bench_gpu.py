"""The GPU suite without a GPU: everyone who can run does, on tiny CPU tensors."""

import pytest
import torch

from oneshot.bench import gpu, gpu_operations
from oneshot.bench.registry import Provider, plain


def test_a_dry_run_verifies_and_times_every_operation(capsys):
    assert gpu.main(["--dry-run", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[0] == "|"][2:]
    ours = {row[0]: row for row in rows if "oneshot" in row[1]}
    assert set(ours) == {operation.id for operation in gpu_operations.operations(tiny=True)}
    for row in ours.values():
        assert row[3].endswith("x"), row  # timed, and set beside its floor
    for row in rows:
        assert "failed" not in row[2], row


def test_who_is_wrong_is_named_and_who_does_not_import_is_absent(monkeypatch, capsys):
    (operation,) = (o for o in gpu_operations.operations(tiny=True) if o.kernel == "whiten")

    def missing():
        raise ImportError("no such library")

    planted = (
        Provider("oneshot", "ours", plain(lambda inputs: (inputs["values"],))),
        Provider("library", "peer", missing),
    )
    changed = type(operation)(**{**vars(operation), "providers": planted})
    monkeypatch.setattr(gpu_operations, "operations", lambda tiny: [changed])
    assert gpu.main(["--dry-run", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert "| library | absent: no such library |" in printed.out
    assert f"wrong: {operation.id}, oneshot: output 0 is off by" in printed.err


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_more_rows_of_a_table_are_our_own_and_floors(capsys):
    assert gpu.main(["--dry-run", "--rounds", "1", "--ours", "--select", "group_advantages"]) == 0
    names = [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines()]
    assert names == ["oneshot [CPU]", "oneshot by ids [CPU]", "copy rewards"]

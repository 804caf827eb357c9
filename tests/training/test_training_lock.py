"""Two processes, one folder: the second is told, and a killed one leaves nothing locked."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest

from oneshot.training.folder import open_run, write_config
from oneshot.training.lock import hold, release

HOLDER = """
import sys, time
from pathlib import Path
from oneshot.training.lock import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@dataclass(frozen=True)
class Config:
    steps: int = 1


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_kept_out(tmp_path, holder):
    with pytest.raises(RuntimeError, match="another process is writing"):
        open_run(tmp_path, Config(), True, ())
    with pytest.raises(RuntimeError, match="another process is writing"):
        write_config(tmp_path, Config())
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]  # nothing of its run was touched


def test_a_killed_process_locks_nothing(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert open_run(tmp_path, Config(), True, ()) == (tmp_path, None)
    write_config(tmp_path, Config())


def test_the_same_process_may_come_back(tmp_path):
    write_config(tmp_path, Config())
    assert open_run(tmp_path, Config(), True, ())[0] == tmp_path


def test_a_released_folder_is_free_for_others(tmp_path):
    command = (sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), str(tmp_path))
    release(tmp_path)
    hold(tmp_path)
    blocked = subprocess.run(command, capture_output=True, text=True)
    assert "another process is writing" in blocked.stderr
    release(tmp_path)
    assert subprocess.run(command, capture_output=True, text=True).stdout == "held\n"
    hold(tmp_path)  # and may be taken again
    release(tmp_path)


def test_ranks_that_write_nothing_take_no_lock(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    hold(tmp_path)

"""Every command of README and docs parses; those of blocks marked `run` run in their order.

A block that starts with ```sh run is executed as it stands, all blocks of a page one after another
in one folder; `slow` behind it leaves the page to `make test-slow`. ```python run is a program of
its own. Commands of other blocks need something that a test lacks (a model of a hub, a data set,
GPUs): their options are parsed and nothing is started.
"""

import argparse
import glob
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jsonargparse
import pytest

from oneshot import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SEPARATORS = {";", "&&", "||", "|", "do", "(", ")"}
TARGET = re.compile(r"^([a-z][a-z0-9-]*):", re.MULTILINE)


class Block(NamedTuple):
    page: str
    language: str
    marks: tuple[str, ...]
    text: str


def blocks():
    for page in PAGES:
        for info, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            language, *marks = info.split() or [""]
            yield Block(str(page.relative_to(ROOT)), language, tuple(marks), text)


def commands(text):
    """Commands of a block: continued lines joined, comments cut, loop variables replaced by 1."""
    for line in re.sub(r"\$[a-z]+", "1", text.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_separator, group in itertools.groupby(lexer, SEPARATORS.__contains__):
            if not is_separator:
                yield list(group)


BLOCKS = list(blocks())
ONESHOT = [
    pytest.param(words[1:], id=f"{block.page}: {' '.join(words)[:60]}")
    for block in BLOCKS
    if block.language in ("", "sh")
    for words in commands(block.text)
    if words[0] == "oneshot"
]
RUN = {
    page: [b for b in BLOCKS if b.page == page and b.language == "sh" and "run" in b.marks]
    for page in dict.fromkeys(b.page for b in BLOCKS if b.language == "sh" and "run" in b.marks)
}


class Parsed(BaseException):
    """Raised where a command has read its options and would start to work."""


@pytest.fixture
def parse_only(monkeypatch, tmp_path):
    """Commands stop once their options are read; `run.yaml` and `configs` are there to be named."""
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):

        def parse_args(self, *args, original=parser.parse_args, **options):
            original(self, *args, **options)
            raise Parsed

        monkeypatch.setattr(parser, "parse_args", parse_args)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "run.yaml").write_text("data: {path: problems.jsonl}\nrun: {output: runs/own}\n")


@pytest.mark.parametrize("words", ONESHOT)
@pytest.mark.usefixtures("parse_only")
def test_the_options_of_every_command_exist(words):
    expanded = [name for word in words for name in sorted(glob.glob(word)) or [word]]
    with pytest.raises(Parsed):
        cli.main(expanded)


def test_every_shell_block_says_that_it_is_one():
    """So that no command escapes this file: a block without a language holds no command."""
    starts = ("oneshot ", "python ", "make ", "pip ", "torchrun ", "accelerate ", "pytest ")
    hidden = [
        (block.page, line)
        for block in BLOCKS
        if block.language == ""
        for line in block.text.splitlines()
        if line.startswith(starts)
    ]
    assert not hidden


def test_every_link_to_a_file_leads_somewhere():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert len(links) > 50
    assert not [(str(p), link) for p, link in links if not (p.parent / link).exists()]


def test_every_make_target_of_the_pages_exists():
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    named = {
        name
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"`make ([a-z0-9-]+)`", page.read_text(encoding="utf-8"))
    }
    named |= {
        word
        for block in BLOCKS
        if block.language == "sh"
        for words in commands(block.text)
        if words[0] == "make"
        for word in words[1:]
    }
    assert named
    assert named <= targets


def environment():
    """The commands of this interpreter first on the path, one thread, no hub."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if "slow" in block.marks else ())
        for page, (block, *_) in RUN.items()
    ],
)
def test_the_commands_of_a_page_run_in_their_order(page, tmp_path):
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    script = "set -euo pipefail\n" + "".join(block.text for block in RUN[page])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b, id=f"{b.page}-{i}")
        for i, b in enumerate(BLOCKS)
        if b.language == "python" and "run" in b.marks
    ],
)
def test_a_python_block_runs(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]

"""One family, one word, everywhere: the files and lists that CONTRIBUTING.md names are there."""

import importlib
import re
from pathlib import Path

import pytest

from oneshot.bench import registry
from oneshot.triton_kernels import FAMILY

ROOT = Path(__file__).resolve().parents[1]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


FAMILIES = sorted(contract.parent.name for contract in ROOT.glob("csrc/*/contract.h"))
PATTERNS = re.findall(r"^\| `([^`]*<family>[^`]*)` \|", text("CONTRIBUTING.md"), re.MULTILINE)


def test_the_table_is_read():
    assert len(PATTERNS) == 21
    assert len(FAMILIES) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_of_a_family_is_there(family):
    missing = [p for p in PATTERNS if not list(ROOT.glob(p.replace("<family>", family)))]
    assert not missing


@pytest.mark.parametrize("family", FAMILIES)
def test_every_list_names_the_family(family):
    assert family in FAMILY.values()
    assert f"from oneshot.ops.{family} import" in text("oneshot/ops/__init__.py")
    assert f"from oneshot.numpy.{family} import" in text("oneshot/numpy/__init__.py")
    assert f"docs/ops/{family}.md" in text("README.md")
    assert f"ops/{family}.md" in text("docs/index.md")


def test_the_benchmarks_know_every_family():
    assert sorted(registry.FAMILIES) == FAMILIES
    for suite in ("cpu", "gpu"):
        measured = {o.family for o in registry.operations(suite=suite)}
        assert measured - {"step"} == set(FAMILIES), suite


def test_every_public_op_is_in_the_readme_and_in_the_api_pages():
    ops = importlib.import_module("oneshot.ops")
    table, pages = text("README.md"), text("docs/api/ops.md")
    assert not [name for name in ops.__all__ if f"`{name}`" not in table]
    assert not [name for name in ops.__all__ if f"autofunction:: {name}\n" not in pages]


INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
OPENED_ALONE = re.compile(r"^#ifndef \w+  // opened alone\n.*?^#endif", re.MULTILINE | re.DOTALL)


def included(path, seen):
    """`path` and what it includes of csrc, directly or not."""
    if path not in seen:
        seen.add(path)
        for name in INCLUDE.findall(OPENED_ALONE.sub("", path.read_text(encoding="utf-8"))):
            if (ROOT / "csrc" / name).exists():
                included(ROOT / "csrc" / name, seen)
    return seen


def test_cuda_sources_include_nothing_of_the_cpu():
    sources = [*ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/*/torch/*_cuda.cpp")]
    files = set().union(*(included(path, set()) for path in sources))
    assert {path.parent.name for path in files} >= {"common", "cuda", "torch"}
    assert not [path for path in files if "cpu" in path.relative_to(ROOT / "csrc").parts[:-1]]
    assert not [path for path in files if re.search(r"\bcpu::", path.read_text(encoding="utf-8"))]

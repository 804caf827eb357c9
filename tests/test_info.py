"""`oneshot info`, and what an import says where the package is not what it seems."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oneshot import info

ROOT = Path(__file__).resolve().parents[1]


def test_a_foreign_package_of_the_same_name_is_named(monkeypatch):
    versions = {"OneShot": "0.2.0", "oneshot-kernels": "0.1.0"}
    monkeypatch.setattr(
        importlib.metadata,
        "packages_distributions",
        lambda: {"oneshot": ["oneshot-kernels", "OneShot", "OneShot"]},
    )
    known = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: versions.get(name) or known(name)
    )
    assert info.info()["conflicts with (uninstall it)"] == "OneShot 0.2.0"


def test_alone_it_names_no_conflict():
    assert not [row for row in info.info() if "conflict" in row]


@pytest.mark.parametrize("through", ["working folder", "PYTHONPATH"])
def test_a_checkout_that_is_not_installed_says_so_and_computes(tmp_path, through):
    checkout = tmp_path / "checkout"
    shutil.copytree(
        ROOT / "oneshot",
        checkout / "oneshot",
        ignore=shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json", "model"),
    )
    code = (
        "import sys, warnings\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.path = [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    from oneshot import ops\n"
        "import torch\n"
        "print(ops.whiten(torch.tensor([1.0, 2.0, 3.0])).tolist())\n"
        "print(*[str(w.message) for w in seen])\n"
    )
    inside = through == "working folder"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout if inside else tmp_path,
        env={"PATH": "", **({} if inside else {"PYTHONPATH": str(checkout)})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    values, said = done.stdout.splitlines()
    assert eval(values) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert f"imported from the source folder {checkout}" in said
    assert f"pip install -e {checkout}" in said

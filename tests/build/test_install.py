"""The package builds and behaves in fresh environments. Run by `make test-build`."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.build

USE_AN_OP = textwrap.dedent("""
    import warnings, torch
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from oneshot import ops
        import oneshot
        from oneshot.info import info
        for _ in range(2):
            out = ops.whiten(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(out, torch.tensor([-1.0, 0.0, 1.0])), out
    print("WARNINGS", len([w for w in seen if "oneshot" in str(w.message)]))
    print("MESSAGE", *[w.message for w in seen if "oneshot" in str(w.message)])
    print("NATIVE", info()["native library"])
    print("FILE", oneshot.__file__)
""")


def run(command, *, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", out, ROOT], cwd=out)
    (archive,) = out.glob("*.tar.gz")
    return archive


def install(sdist, target, **environment):
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    return run([*pip, "-v", "--target", target, sdist], cwd=target.parent, **environment)


def use(target, **environment):
    return run(
        [sys.executable, "-c", USE_AN_OP], cwd=target.parent, PYTHONPATH=str(target), **environment
    )


def test_wheel_from_sdist_runs_natively(sdist, tmp_path):
    install(sdist, tmp_path / "site")
    said = use(tmp_path / "site")
    assert str(tmp_path) in said
    assert "NATIVE loaded" in said
    assert "WARNINGS 0" in said
    assert not (tmp_path / "site" / "tests").exists()


def test_library_needs_only_the_stable_abi(sdist, tmp_path):
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    install(sdist, tmp_path / "site")
    (library,) = (tmp_path / "site" / "oneshot").glob("_C*.so")
    symbols = run(["nm", "-DC", "--undefined-only", library], cwd=tmp_path)
    assert "aoti_torch" in symbols
    assert not [line for line in symbols.splitlines() if "at::" in line or "c10::" in line]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ONESHOT_BUILD_NATIVE": "0"}, "ONESHOT_BUILD_NATIVE=0"),
        ({"CXX": "/nonexistent/compiler"}, "no C++ compiler at install time"),
    ],
    ids=["switched off", "no compiler"],
)
def test_without_native_library_it_says_so_once(sdist, tmp_path, environment, expected):
    install(sdist, tmp_path / "site", **environment)
    said = use(tmp_path / "site")
    assert "WARNINGS 1" in said
    assert expected in said


def test_asking_for_native_without_a_compiler_fails(sdist, tmp_path):
    with pytest.raises(AssertionError, match="no C\\+\\+ compiler was found"):
        install(sdist, tmp_path / "site", ONESHOT_BUILD_NATIVE="1", CXX="/nonexistent/compiler")


def test_unloadable_library_names_built_and_installed(sdist, tmp_path):
    install(sdist, tmp_path / "site")
    (library,) = (tmp_path / "site" / "oneshot").glob("_C*.so")
    library.write_bytes(b"not a shared object")
    said = use(tmp_path / "site")
    assert "does not load" in said
    assert "Built: {" in said
    assert "Installed: torch" in said


def test_isolated_build(tmp_path):
    """`pip install .` as a stranger types it; the constraint keeps the sandbox on this torch."""
    run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path / "site", ROOT],
        cwd=tmp_path,
        PIP_CONSTRAINT=str(ROOT / "constraints.txt"),
        PIP_BUILD_CONSTRAINT=str(ROOT / "constraints.txt"),
    )
    assert "NATIVE loaded" in use(tmp_path / "site")

"""Build glue: package map, one CMake extension, environment variables -> CMake options.

CMakeLists.txt is the only list of native sources and flags. Environment:
    ONESHOT_BUILD_NATIVE  unset: build if a C++ compiler is found; 1: fail if it cannot; 0: never
    ONESHOT_BUILD_CUDA    AUTO (default), ON or OFF, and TORCH_CUDA_ARCH_LIST: see cmake/cuda.cmake
    MAX_JOBS              compile jobs (default: cores of this process, with 2 GiB of memory each)
    DEBUG                 1: debug build
"""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "cmake"))
from jobs import job_count  # noqa: E402

VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "oneshot" / "_version.py").read_text(encoding="utf-8")
).group(1)


def native_wanted() -> bool:
    """Decide whether to compile, from ONESHOT_BUILD_NATIVE and the presence of a compiler."""
    switch = os.environ.get("ONESHOT_BUILD_NATIVE", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"ONESHOT_BUILD_NATIVE must be unset, 0 or 1, got {switch!r}")
    if switch == "0":
        return False
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if any(shutil.which(name.split()[0]) for name in names):
        return True
    if switch == "1":
        raise SystemExit(f"ONESHOT_BUILD_NATIVE=1, but no C++ compiler was found (tried {names})")
    warnings.warn(
        f"no C++ compiler found (tried {names}): oneshot is installed without its native library "
        "and will run on the PyTorch reference implementations",
        stacklevel=2,
    )
    return False


class CMakeBuild(build_ext):
    """Run CMake for the one native extension, `oneshot._C`."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build; the library lands beside the Python files."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        output, build = target.parent, Path(self.build_temp).resolve()
        if self.editable_mode:
            # Kept build tree, library in the source tree: `cmake --build build/native` rebuilds.
            output, build = ROOT / "oneshot", ROOT / "build" / "native"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build),
            f"-DCMAKE_BUILD_TYPE={'Debug' if os.environ.get('DEBUG') == '1' else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DONESHOT_VERSION={VERSION}",
            f"-DONESHOT_OUTPUT_DIR={output}",
            f"-DONESHOT_MODULE_FILENAME={target.name}",
            "-DONESHOT_BUILD_TORCH=ON",
            f"-DONESHOT_BUILD_CUDA={os.environ.get('ONESHOT_BUILD_CUDA') or 'AUTO'}",
        ]  # fmt: skip
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(job_count())], check=True)
        if self.editable_mode:  # setuptools looks for its copy here
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / target.name, target)


def packages() -> list[str]:
    """Every package below oneshot/, named explicitly so that tests and scripts never ship."""
    return sorted(
        str(init.parent.relative_to(ROOT)).replace(os.sep, ".")
        for init in (ROOT / "oneshot").rglob("__init__.py")
    )


if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"oneshot needs setuptools >= 77 to build, got {setuptools.__version__}: "
        "pip install 'setuptools>=77', or build without --no-build-isolation"
    )

setup(
    version=VERSION,
    packages=[*packages(), "oneshot.bench", "oneshot.triton_kernels"],
    # These folders stay at the top level; they install inside the package and so shadow nothing.
    package_dir={
        "oneshot": "oneshot",
        "oneshot.bench": "bench",
        "oneshot.triton_kernels": "triton_kernels",
    },
    include_package_data=False,  # only what is named: no benchmark results, no sources
    package_data={
        "oneshot": ["py.typed", "_build_info.json"],
        "oneshot.embedded": ["model/*"],
        "oneshot.rlvr": ["recipes.yaml"],
    },
    ext_modules=[Extension("oneshot._C", sources=[])] if native_wanted() else [],
    cmdclass={"build_ext": CMakeBuild},
)

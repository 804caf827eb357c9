"""Loads the native library `oneshot._C`, or says precisely why it cannot."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import platform
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --force-reinstall --no-deps . (in a checkout of oneshot)"


class NativeLibraryNotBuilt(RuntimeError):
    """The package was installed without its native library."""


class NativeLibraryNotLoadable(RuntimeError):
    """The native library is there, but this interpreter or torch cannot load it."""


def build_info() -> dict[str, str]:
    """What the native library was built with; empty when it was not built."""
    path = Path(__file__).with_name("_build_info.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@functools.cache
def native() -> tuple[ModuleType | None, Exception | None]:
    """Import `oneshot._C` once.

    Returns:
        The module and None, or None and the exception that says why it is off:
        :class:`NativeLibraryNotBuilt`, :class:`NativeLibraryNotLoadable`, or None for both when
        ``ONESHOT_DISABLE_NATIVE=1`` asked for the reference implementations.
    """
    switch = os.environ.get("ONESHOT_DISABLE_NATIVE", "0")
    if switch not in ("", "0", "1"):
        raise ValueError(f"ONESHOT_DISABLE_NATIVE must be 0 or 1, got {switch!r}")
    if switch == "1":
        return None, None
    built = sorted(
        p.name for p in Path(__file__).parent.glob("_C.*") if p.suffix in (".so", ".pyd")
    )
    if not built:
        return None, NativeLibraryNotBuilt(_why_not_built())
    try:
        return importlib.import_module("oneshot._C"), None
    except ImportError as error:
        found = build_info() or {"files": ", ".join(built)}
        return None, NativeLibraryNotLoadable(
            f"the native library of oneshot does not load: {error}. "
            f"Built: {found}. "
            f"Installed: torch {torch.__version__}, Python {platform.python_version()} "
            f"({sys.implementation.cache_tag}), {platform.machine()} {platform.system()}. "
            f"It needs torch >= 2.10 and the Python it was built for. To rebuild: {REBUILD}"
        )


def _why_not_built() -> str:
    if importlib.util.find_spec("oneshot.triton_kernels") is None:  # an install brings this package
        checkout = Path(__file__).resolve().parents[1]
        return (
            f"oneshot was imported from the source folder {checkout}, which hides an installed "
            "copy and is not installed itself. Run from another folder (and remove this one from "
            f"PYTHONPATH), or install the checkout: pip install -e {checkout}"
        )
    return (
        "oneshot was installed without its native library (no C++ compiler at install time, or "
        f"ONESHOT_BUILD_NATIVE=0). To build it: {REBUILD}"
    )


@functools.cache
def cuda_library() -> tuple[Path | None, str | Exception]:
    """Register the ops of `oneshot/_C_cuda.so` once, where torch has CUDA.

    Returns:
        The path of the library and "loaded"; or None and why it is off: a sentence where nothing is
        wrong (torch without CUDA, not built, switched off by ``ONESHOT_DISABLE_NATIVE=1``),
        :class:`NativeLibraryNotLoadable` where the library is there and does not load.
    """
    if os.environ.get("ONESHOT_DISABLE_NATIVE", "0") == "1":
        return None, "switched off by ONESHOT_DISABLE_NATIVE=1"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} was built without CUDA"
    path = Path(__file__).with_name("_C_cuda.so")
    if not path.exists():
        return None, (
            "not built (it needs nvcc at install time, of the CUDA version of torch: "
            f"ONESHOT_BUILD_CUDA=ON {REBUILD})"
        )
    return _register(path)


def _register(path: Path) -> tuple[Path | None, str | Exception]:
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        # What torch says names the file, its cause the symbol or the library that is missing.
        return None, NativeLibraryNotLoadable(
            f"the CUDA library of oneshot does not load: {error.__cause__ or error}. "
            f"Built: {build_info()}. Installed: torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}. It needs torch >= 2.10 built with CUDA. To rebuild: "
            f"ONESHOT_BUILD_CUDA=ON {REBUILD}"
        )
    return path, "loaded"


def load() -> None:
    """Register the native ops; warn once if the reference implementations must serve instead."""
    _, state = cuda_library()
    if isinstance(state, Exception):
        warnings.warn(
            f"oneshot serves CUDA tensors without its CUDA library (slower): {state}",
            RuntimeWarning,
            stacklevel=3,
        )
    module, reason = native()
    if module is None and reason is not None:
        warnings.warn(
            f"oneshot runs on its PyTorch reference implementations (correct, slower): {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
    elif module is not None:
        module.isa()  # an unusable ONESHOT_CPU_ISA is an error now, not inside the first op

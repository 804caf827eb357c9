"""What is installed, what is in use, and why a backend is off: `oneshot info`."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from oneshot._load import build_info, cuda_library, native
from oneshot._version import __version__

PACKAGES = ("numpy", "transformers", "math-verify", "trl", "verl", "vllm", "triton")


def foreign_distributions() -> list[str]:
    """Installed distributions that also bring a module named ``oneshot`` and may overwrite ours."""
    return sorted(
        f"{name} {importlib.metadata.version(name)}"
        for name in set(importlib.metadata.packages_distributions().get("oneshot", []))
        if name != "oneshot-kernels"
    )


def info() -> dict[str, object]:
    """Collect the report as a plain dictionary (printed by ``oneshot info``)."""
    module, reason = native()
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    foreign = foreign_distributions()
    return {
        "oneshot": __version__,
        **({"conflicts with (uninstall it)": ", ".join(foreign)} if foreign else {}),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "native library": (
            "loaded" if module else str(reason or "switched off by ONESHOT_DISABLE_NATIVE=1")
        ),
        "CUDA library": str(cuda_library()[1]),
        "built with": build_info() or "not built",
        "instruction set in use": module.isa() if module else "none (reference implementations)",
        "best instruction set here": module.best_isa() if module else "unknown",
        "packages": packages,
    }

"""Fused PyTorch ops for RL post-training, and thin training layers on them.

``import oneshot`` costs nothing but this file; ``oneshot.ops`` brings torch and the native
library, the layers bring what they need when they are imported.
"""

from oneshot._version import __version__

__all__ = ["__version__"]

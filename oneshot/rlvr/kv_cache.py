"""A key/value cache that grows by doubling.

transformers' DynamicCache concatenates at every token, which copies the whole cache each time:
for 64 sequences of 300 tokens of a 135 M model that is hundreds of megabytes per token. Here the
buffers have spare room and a step writes its token only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

FIRST_ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, [N, heads, length, head size], in buffers with spare room."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remembers type and device; the buffers come with the first update."""
        super().lazy_initialization(key_states, value_states)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values; returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            room = max(2 * begin, end + FIRST_ROOM)
            self._buffers = (
                self._grown(self.keys, key_states, room),
                self._grown(self.values, value_states, room),
            )
        keys, values = self._buffers
        keys[:, :, begin:end] = key_states
        values[:, :, begin:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    @staticmethod
    def _grown(old: Tensor | None, like: Tensor, room: int) -> Tensor:
        new = like.new_empty(*like.shape[:2], room, like.shape[-1])
        if old is not None and old.numel():
            new[:, :, : old.shape[-2]] = old
        return new

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps (or repeats) the rows `indices`."""
        super().batch_select_indices(indices)
        self._buffers = None


def new_cache() -> Cache:
    """An empty cache for any number of layers."""
    return Cache(layer_class_to_replicate=GrowingLayer)

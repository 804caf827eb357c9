"""Word embeddings from a frozen encoder, computed once and cached.

The key of the cache is a digest of everything that decides the result: the encoder's configuration
and weights, the subwords it gets to see (so tokenizer, texts and chunks, too), device and
precision. Another model under the same name is another key.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot import models
from oneshot.chmm.config import Precision
from oneshot.chmm.device import autocast
from oneshot.chmm.encoder.subwords import Chunk, SubwordCutter, collate, longest_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SUBWORDS = 4096  # padded subwords of a batch

Progress = Callable[[int, int], None]


def embed(
    documents: Sequence[Sequence[str]],
    source: str,
    max_subwords: int = 512,
    *,
    device: torch.device | str = "cpu",
    dtype: Precision = "float32",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """One vector for each word: the mean of its subwords in the encoder's last layer.

    A document too long for the encoder is cut at sentence ends (see `subwords`) and put together
    again; a word sees only the words of its own part.

    Args:
        documents: The words of each document.
        source: The encoder, see `oneshot.models`.
        max_subwords: Subwords of one input, special tokens included.
        device: Where the encoder computes; the result is on the CPU.
        dtype: "mixed" runs the matrix products in bfloat16 (autocast).
        cache: Folder of the cache. Default: `embeddings` in `models.cache_folder()`.
        progress: Called with the number of chunks done and of all chunks, after each batch; not if
            the result comes from the cache.

    Returns:
        float32 [T + 1, D] for each document: the vector of the special token it begins with
        ([CLS]), then those of the words.

    Raises:
        ValueError: `max_subwords` is more than the encoder can take, or a cached file is damaged.
        FileNotFoundError, ModuleNotFoundError, OSError: As in `models.load_encoder`.
    """
    encoder = models.load_encoder(source)
    longest = longest_input(encoder)
    if longest is not None and max_subwords > longest:
        raise ValueError(
            f"encoder.max_subwords must be at most {longest} for {source}, got {max_subwords}"
        )
    chunks = SubwordCutter(models.load_tokenizer(source), max_subwords).chunks(documents)
    folder = models.cache_folder() / "embeddings" if cache is None else cache
    device = torch.device(device)
    file = folder / f"{_digest(encoder, chunks, device, dtype)}.safetensors"
    if not file.exists():
        vectors = _encode(encoder, chunks, device, dtype, progress)
        _write(file, torch.cat(vectors) if chunks else torch.empty(0))
    return list(_read(file).split([len(words) + 1 for words in documents]))


@torch.no_grad()
def _encode(
    encoder: PreTrainedModel,
    chunks: Sequence[Chunk],
    device: torch.device,
    dtype: Precision,
    progress: Progress | None,
) -> list[Tensor]:
    """The vectors of each chunk's words, with [CLS] before the first chunk of a document."""
    module: torch.nn.Module = encoder
    module.to(device)
    vectors = [torch.empty(0)] * len(chunks)
    done = 0
    for rows in _batches([len(chunk.ids) for chunk in chunks]):
        batch = collate([chunks[i] for i in rows], encoder.config.pad_token_id or 0).to(device)
        with autocast(device, dtype):
            states = encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        for state, i in zip(states.float().cpu(), rows, strict=True):
            vectors[i] = _by_word(state, chunks[i])
        done += len(rows)
        if progress is not None:
            progress(done, len(chunks))
    return vectors


def _by_word(state: Tensor, chunk: Chunk) -> Tensor:
    heads = torch.tensor([*chunk.heads, len(chunk.ids) - 1])
    sizes = heads.diff()
    word = torch.arange(len(sizes)).repeat_interleave(sizes)
    sums = torch.zeros(len(sizes), state.shape[1]).index_add_(0, word, state[1 : heads[-1]])
    means = sums / sizes[:, None]
    return means if chunk.start else torch.cat([state[:1], means])


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of chunks of like length, the longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, BATCH_SUBWORDS // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _digest(
    encoder: PreTrainedModel, chunks: Sequence[Chunk], device: torch.device, dtype: Precision
) -> str:
    config = {
        key: value
        for key, value in encoder.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(json.dumps([config, chunks], sort_keys=True, default=str).encode())
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().data)
    if (device.type, dtype) != ("cpu", "float32"):  # other last bits
        digest.update(f"{device.type} {dtype}".encode())
    return digest.hexdigest()


def _write(file: Path, vectors: Tensor) -> None:
    """Under a temporary name first: a killed run leaves nothing that looks finished."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".writing", dir=file.parent)
    os.close(handle)
    try:
        save_file({"vectors": vectors}, temporary)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def _read(file: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)["vectors"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file}: damaged; delete it to compute it again ({error})") from error

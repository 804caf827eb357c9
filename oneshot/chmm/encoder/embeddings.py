"""Word embeddings from a frozen encoder, computed once and kept in a cache.

The key of the cache is a digest of everything that decides the result: the encoder's configuration
and weights, and the word-pieces it gets to see (so tokenizer, texts and chunks, too). Another model
under the same name is another key.
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
from oneshot.chmm.encoder.subwords import Chunk, PieceCutter, collate, longest_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_PIECES = 4096  # padded word-pieces of a batch

Progress = Callable[[int, int], None]


def embed(
    documents: Sequence[Sequence[str]],
    source: str,
    max_pieces: int = 512,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Tensor]:
    """One vector for each word: the mean of its word-pieces in the encoder's last layer.

    A document too long for the encoder is cut at sentence ends (see `pieces`) and put together
    again; a word sees only the words of its own piece.

    Args:
        documents: The words of each document.
        source: The encoder, see `oneshot.models`.
        max_pieces: Word-pieces of one input, special tokens included.
        cache: Folder of the cache. Default: `embeddings` in `models.cache_folder()`.
        progress: Called with the number of chunks done and of all chunks, after each batch; not if
            the result comes from the cache.

    Returns:
        float32 [T + 1, D] for each document: the vector of the special token it begins with
        ([CLS]), then those of the words.

    Raises:
        ValueError: `max_pieces` is more than the encoder can take, or a cached file is damaged.
        FileNotFoundError, ModuleNotFoundError, OSError: As in `models.load_encoder`.
    """
    encoder = models.load_encoder(source)
    longest = longest_input(encoder)
    if longest is not None and max_pieces > longest:
        raise ValueError(
            f"encoder.max_pieces must be at most {longest} for {source}, got {max_pieces}"
        )
    chunks = PieceCutter(models.load_tokenizer(source), max_pieces).chunks(documents)
    folder = models.cache_folder() / "embeddings" if cache is None else cache
    file = folder / f"{_digest(encoder, chunks)}.safetensors"
    if not file.exists():
        _write(file, torch.cat(_encode(encoder, chunks, progress)) if chunks else torch.empty(0))
    return list(_read(file).split([len(words) + 1 for words in documents]))


@torch.no_grad()
def _encode(
    encoder: PreTrainedModel, chunks: Sequence[Chunk], progress: Progress | None
) -> list[Tensor]:
    """The vectors of each chunk's words, with [CLS] before the first chunk of a document."""
    vectors = [torch.empty(0)] * len(chunks)
    done = 0
    for rows in _batches([len(chunk.ids) for chunk in chunks]):
        batch = collate([chunks[i] for i in rows], encoder.config.pad_token_id or 0)
        states = encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        for state, i in zip(states.float(), rows, strict=True):
            vectors[i] = _by_word(state, chunks[i])
        done += len(rows)
        if progress is not None:
            progress(done, len(chunks))
    return vectors


def _by_word(state: Tensor, chunk: Chunk) -> Tensor:
    heads = torch.tensor([*chunk.heads, len(chunk.ids) - 1])
    pieces = heads.diff()
    word = torch.arange(len(pieces)).repeat_interleave(pieces)
    sums = torch.zeros(len(pieces), state.shape[1]).index_add_(0, word, state[1 : heads[-1]])
    means = sums / pieces[:, None]
    return means if chunk.start else torch.cat([state[:1], means])


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of chunks of like length, the longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, BATCH_PIECES // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _digest(encoder: PreTrainedModel, chunks: Sequence[Chunk]) -> str:
    config = {
        key: value
        for key, value in encoder.config.to_dict().items()
        if key not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(json.dumps([config, chunks], sort_keys=True, default=str).encode())
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy().data)
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

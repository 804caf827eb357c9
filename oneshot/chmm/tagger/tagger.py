"""A token classifier on any BERT, trained on soft or hard labels: the second half of CHMM-ALT.

The first piece of a word carries the word's label; the other pieces count for nothing. Documents
that do not fit into the encoder are cut (`pieces.py`) and put together again.

What it leaves out: several devices, gradient checkpointing, mixed precision other than bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot import models
from oneshot.chmm.config import TaggerConfig
from oneshot.chmm.encoder.subwords import Chunk, PieceBatch, PieceCutter, collate, longest_input
from oneshot.chmm.errors import NonFiniteLossError
from oneshot.chmm.label_model.batches import in_order, shuffled
from oneshot.chmm.labels import Ids, LabelSpace
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Documents = Sequence[Sequence[str]]
Targets = Sequence[npt.NDArray[np.floating]]

OPTIONS = "tagger.json"  # in the folder of a saved tagger: max_pieces, bfloat16
PREDICTION_PIECES = 4096  # padded pieces of a batch that needs no gradient


@dataclass
class TaggerHistory:
    """What a training leaves.

    Attributes:
        rows: One for each epoch: epoch, loss (per token), score (selection), lr.
        best_epoch: Epoch of the weights that were kept.
        best_score: Their score; -inf if there was nothing to select by.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = float("-inf")


class Tagger:
    """A model with its tokenizer and label space.

    Args:
        model: A token classifier with len(labels) outputs.
        tokenizer: Its tokenizer.
        labels: The label space.
        max_pieces: Word-pieces of one input, special tokens included.
        bfloat16: Run the matrix products in bfloat16 (autocast).

    Raises:
        ValueError: `max_pieces` is more than the model can take.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelSpace,
        *,
        max_pieces: int = 512,
        bfloat16: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        longest = longest_input(model)
        if longest is not None and max_pieces > longest:
            raise ValueError(f"tagger.max_pieces must be at most {longest}, got {max_pieces}")
        self.max_pieces = max_pieces
        self._cutter = PieceCutter(tokenizer, max_pieces)
        self._bfloat16 = bfloat16
        self._pad = tokenizer.pad_token_id or 0

    @classmethod
    def load(cls, source: str, labels: LabelSpace, config: TaggerConfig) -> Tagger:
        """Any encoder, or a tagger that was saved; a new head comes from torch's generator.

        Raises:
            ValueError: `config.frozen_layers` does not fit the model.
            FileNotFoundError, ModuleNotFoundError, OSError: As `models.load_tagger`.
        """
        model = models.load_tagger(source, labels.names)
        if config.frozen_layers is not None:
            _freeze(model, config.frozen_layers)
        return cls(
            model,
            models.load_tokenizer(source),
            labels,
            max_pieces=config.max_pieces,
            bfloat16=config.bfloat16,
        )

    @classmethod
    def open(cls, folder: Path) -> Tagger:
        """A saved tagger, with the label space and the options that it was saved with.

        A token classifier from elsewhere is one too, if its labels are O, B-x, I-x, ...

        Raises:
            FileNotFoundError: The folder has no config.json.
            ValueError: Other labels.
        """
        path = folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder}: no tagger (it has no config.json)")
        names = json.loads(path.read_text(encoding="utf-8")).get("id2label", {})
        names = [name for _, name in sorted(names.items(), key=lambda x: int(x[0]))]
        types = tuple(dict.fromkeys(name[2:] for name in names[1::2]))
        if not types or list(LabelSpace(types).names) != names:
            raise ValueError(f"{folder}: expected the labels O, B-x, I-x, ..., got {names}")
        labels = LabelSpace(types)
        model, tokenizer = (
            models.load_tagger(str(folder), labels.names),
            models.load_tokenizer(str(folder)),
        )
        options: dict[str, Any] = {"max_pieces": longest_input(model) or TaggerConfig.max_pieces}
        if (folder / OPTIONS).exists():
            options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        return cls(model, tokenizer, labels, **options)

    def save(self, folder: Path) -> None:
        """Writes a folder in the Hugging Face layout, and the options of inputs beside it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        options = {"max_pieces": self.max_pieces, "bfloat16": self._bfloat16}
        (folder / OPTIONS).write_text(json.dumps(options) + "\n", encoding="utf-8")

    def chunks(self, documents: Documents) -> list[Chunk]:
        """Inputs of the model."""
        return self._cutter.chunks(documents)

    def log_probabilities(self, chunks: Sequence[Chunk]) -> Tensor:
        """[words, L] of all the words of some chunks, float32."""
        batch: PieceBatch = collate(chunks, self._pad)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            logits = self.model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return logits.flatten(0, 1)[batch.heads].float().log_softmax(-1)

    def predict(self, documents: Documents) -> list[npt.NDArray[np.float32]]:
        """Label probabilities [T, L] of each document."""
        self.model.eval()
        chunks = self.chunks(documents)
        result = [np.empty((len(document), len(self.labels)), np.float32) for document in documents]
        with torch.inference_mode():
            for rows in in_order([len(chunk.ids) for chunk in chunks], PREDICTION_PIECES):
                batch = [chunks[i] for i in rows]
                probabilities = self.log_probabilities(batch).exp()
                sizes = [len(chunk.heads) for chunk in batch]
                for chunk, part in zip(batch, probabilities.split(sizes), strict=True):
                    result[chunk.document][chunk.words] = part.numpy()
        return result


def train_tagger(
    tagger: Tagger,
    documents: Documents,
    targets: Targets,
    config: TaggerConfig,
    seed: int,
    *,
    epochs: int,
    lr: float,
    one_update_per_epoch: bool = False,
    score: Callable[[Tagger], float] | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TaggerHistory:
    """Fits a tagger to label distributions by the KL divergence, and keeps its best epoch.

    Args:
        tagger: Is trained in place.
        documents: Words.
        targets: For each document [T, L], rows that sum to 1 (one-hot for hard labels: then the
            loss is the cross-entropy).
        config: Batch size, weight decay, warm-up and so on.
        seed: Of the order and of dropout.
        epochs: Passes over the documents.
        lr: Peak learning rate.
        one_update_per_epoch: Sum the gradients over an epoch for a single update.
        score: Judges the tagger after each epoch, more is better; None keeps the last epoch.
        progress: Is called with the row of each epoch.

    Returns:
        The course of the training; the tagger has the weights of `best_epoch`.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
        ValueError: Targets that do not fit the documents.
    """
    _check_targets(documents, targets, len(tagger.labels))
    chunks = tagger.chunks(documents)
    wanted = [torch.from_numpy(targets[c.document][c.words]).float() for c in chunks]
    sizes = [len(chunk.ids) for chunk in chunks]
    updates = 1 if one_update_per_epoch else -(-len(chunks) // config.batch_size)
    optimizer = _optimizer(tagger.model, lr, config.weight_decay)
    schedule = _schedule(optimizer, epochs * updates, config.warmup)
    history, best = TaggerHistory(), None
    for epoch in range(1, epochs + 1):
        torch.manual_seed(derive_seed(seed, "tagger dropout", epoch))
        tagger.model.train()
        total = words = 0.0
        batches = shuffled(sizes, config.batch_size, derive_seed(seed, "tagger order", epoch))
        for number, rows in enumerate(batches, start=1):
            target = torch.cat([wanted[i] for i in rows])
            loss = divergence(tagger.log_probabilities([chunks[i] for i in rows]), target)
            if not torch.isfinite(loss):
                raise NonFiniteLossError(
                    f"tagger, epoch {epoch}, batch {number} of {len(batches)}: the loss is "
                    f"{loss.item()}; a smaller tagger.lr may help"
                )
            share = len(chunks) if one_update_per_epoch else len(rows)
            (loss / share).backward()
            total, words = total + loss.item(), words + len(target)
            if not one_update_per_epoch or number == len(batches):
                torch.nn.utils.clip_grad_norm_(tagger.model.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        row = {"epoch": float(epoch), "loss": total / words}
        if score is not None:
            row["score"] = score(tagger)
        if score is None or row["score"] >= history.best_score:
            history.best_epoch, history.best_score = epoch, row.get("score", float("-inf"))
            if epoch < epochs:
                best = {k: v.clone() for k, v in tagger.model.state_dict().items()}
        history.rows.append(row)
        if progress is not None:
            progress(row)
        if epoch - history.best_epoch > config.tolerance:
            break
    if history.best_epoch < len(history.rows) and best is not None:
        tagger.model.load_state_dict(best)
    tagger.model.eval()
    return history


def divergence(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """Sum over tokens of KL(target || model), nats. Target probabilities of 0 add exactly 0."""
    cross = -(target * log_probabilities).sum()
    return cross + torch.xlogy(target, target).sum()


def one_hot(ids: Sequence[Ids], n_labels: int) -> list[npt.NDArray[np.float32]]:
    """Hard labels as targets."""
    rows = np.eye(n_labels, dtype=np.float32)
    return [rows[x] for x in ids]


def hard_labels(labels: LabelSpace, probabilities: Sequence[npt.NDArray[np.floating]]) -> list[Ids]:
    """Most probable labels, reduced to whole entities: an I- that continues none becomes O."""
    result = []
    for p in probabilities:
        ids = p.argmax(-1).astype(np.int64)
        result.append(labels.from_spans(labels.to_spans(ids), len(ids)))
    return result


def _freeze(model: PreTrainedModel, layers: int) -> None:
    """Excludes the embeddings and the first layers from training."""
    base = model.base_model
    stack = getattr(getattr(base, "encoder", None), "layer", None)
    if stack is None or not hasattr(base, "embeddings") or layers > len(stack):
        found = "none that are known" if stack is None else f"{len(stack)}"
        raise ValueError(f"tagger.frozen_layers: got {layers}, but the model's layers are {found}")
    for part in (base.embeddings, *stack[:layers]):
        part.requires_grad_(False)


def _check_targets(documents: Documents, targets: Targets, n_labels: int) -> None:
    if len(documents) != len(targets):
        raise ValueError(f"{len(documents)} documents, but targets of {len(targets)}")
    for number, (document, target) in enumerate(zip(documents, targets, strict=True)):
        if target.shape != (len(document), n_labels):
            raise ValueError(
                f"document {number}: targets must have the shape {[len(document), n_labels]}, "
                f"got {list(target.shape)}"
            )


def _optimizer(model: PreTrainedModel, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; no decay of biases and of the scales of layer norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def _schedule(
    optimizer: torch.optim.Optimizer, updates: int, warmup: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear rise over a share of the updates, then linear fall to 0."""
    rising = int(warmup * updates)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return (updates - step) / max(1, updates - rising)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

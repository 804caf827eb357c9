"""Training of a tagger on soft or hard labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot.chmm.config import TaggerConfig
from oneshot.chmm.label_model.batches import shuffled
from oneshot.chmm.labels import Ids
from oneshot.chmm.tagger.model import Documents, Tagger
from oneshot.training.errors import NonFiniteLossError
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Targets = Sequence[npt.NDArray[np.floating]]


@dataclass
class TaggerHistory:
    """How a training went.

    Attributes:
        rows: One for each epoch: epoch, loss (per token), score (selection), lr.
        best_epoch: Epoch whose weights the tagger has.
        best_score: Their score; -inf if there was nothing to select by.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = float("-inf")


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
        tagger: Trained in place.
        documents: Words.
        targets: For each document [T, L], rows that sum to 1 (one-hot for hard labels: then the
            loss is the cross-entropy).
        config: Batch size, weight decay, warm-up and so on.
        seed: Of the order and of dropout.
        epochs: Passes over the documents.
        lr: Peak learning rate.
        one_update_per_epoch: Sum the gradients over an epoch for a single update.
        score: Judges the tagger after each epoch, more is better; None keeps the last epoch.
        progress: Called with the row of each epoch.

    Returns:
        The course of the training; the tagger has the weights of `best_epoch`.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
        ValueError: Targets that do not fit the documents.
    """
    _check_targets(documents, targets, len(tagger.labels))
    chunks = tagger.chunks(documents)
    expected = [torch.from_numpy(targets[c.document][c.words]).float() for c in chunks]
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
            target = torch.cat([expected[i] for i in rows]).to(tagger.device)
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

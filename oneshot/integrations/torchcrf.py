"""A CRF layer with the interface of pytorch-crf 0.7, on the hmm ops.

``from torchcrf import CRF`` becomes ``from oneshot.integrations.torchcrf import CRF``; state dicts
fit both ways. What differs: emissions of -inf give no NaN gradient, a mask with holes is an error
(pytorch-crf scores and normalises such a sequence by different rules), masked places are never
read, and there are `marginals` and `sample`.
"""

from __future__ import annotations

import torch
from torch import nn

from oneshot.integrations.linear_chain import LinearChain, check_states
from oneshot.ops._checks import as_bool, as_int64, check_float, check_tensor, check_values


class CRF(nn.Module):
    """Conditional random field with shared transitions.

    T tokens, B sequences, C tags. Tensors are [T, B, ...]; with `batch_first`, [B, T, ...].

    Args:
        num_tags: C.
        batch_first: Whether the first dimension is the batch.

    Attributes:
        start_transitions: Parameter [C], score of each tag at the first token.
        end_transitions: Parameter [C], score of each tag at the last token.
        transitions: Parameter [C, C], score of row's tag followed by column's.

    Raises:
        ValueError: `num_tags` is less than 1.
    """

    def __init__(self, num_tags: int, batch_first: bool = False) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, got {num_tags}")
        self.num_tags, self.batch_first = num_tags, batch_first
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every score uniformly from [-0.1, 0.1]."""
        for scores in (self.start_transitions, self.end_transitions, self.transitions):
            nn.init.uniform_(scores, -0.1, 0.1)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"num_tags={self.num_tags}"

    def forward(
        self,
        emissions: torch.Tensor,
        tags: torch.Tensor,
        mask: torch.Tensor | None = None,
        reduction: str = "sum",
    ) -> torch.Tensor:
        """Log-likelihood of tags, never above 0.

        Computed in float64 and returned in the dtype of the scores, see `LinearChain.log_prob`.

        Args:
            emissions: Scores, [T, B, C] (with `batch_first` [B, T, C]).
            tags: int64 or int32 [T, B]; where masked, anything.
            mask: [T, B], bool, or numbers that are all 0 or 1: on for the first tokens of a
                sequence, at least one, off for the rest; default: all on.
            reduction: "none", "sum" or "mean" over sequences, or "token_mean": the sum divided by
                the number of unmasked tokens.

        Returns:
            [B] for "none", else a scalar.

        Raises:
            ValueError: A wrong shape or reduction, an empty sequence, or a mask with holes.
            TypeError: A mask or tags of another dtype.
            IndexError: An unmasked tag outside [0, C). Compiled by `torch.compile`, wrong values of
                tags or mask are a RuntimeError.
        """
        if reduction not in ("none", "sum", "mean", "token_mean"):
            raise ValueError(
                f"reduction must be one of 'none', 'sum', 'mean', 'token_mean', got {reduction!r}"
            )
        check_tensor("tags", tags)
        self._check("tags", tags, emissions)
        chain = self._chain(emissions, mask)
        tags = as_int64("tags", tags if self.batch_first else tags.transpose(0, 1))
        if chain.lengths is not None:
            tags = torch.where(_used(chain.lengths, tags.shape[1]), tags, 0)
        check_states("tags", tags, 0, self.num_tags, "where the mask is on", IndexError)
        llh = chain.log_prob(tags)
        if reduction == "none":
            return llh
        if reduction == "sum":
            return llh.sum()
        if reduction == "mean":
            return llh.mean()
        return llh.sum() / (tags.numel() if chain.lengths is None else chain.lengths.sum())

    def decode(self, emissions: torch.Tensor, mask: torch.Tensor | None = None) -> list[list[int]]:
        """The most likely tags of each sequence (Viterbi); the lowest tag wins ties.

        Args:
            emissions: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            For each sequence the tags of its unmasked tokens; -1 where no tags are possible.
        """
        chain = self._chain(emissions, mask)
        paths = chain.argmax.tolist()
        if chain.lengths is None:
            return paths
        return [path[:length] for path, length in zip(paths, chain.lengths.tolist(), strict=True)]

    def marginals(self, emissions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Probability of each tag at each token; differentiable.

        Args:
            emissions: As in :meth:`forward`.
            mask: As in :meth:`forward`.

        Returns:
            In the shape of `emissions`, 0 where masked.
        """
        marginals = self._chain(emissions, mask).marginals
        return marginals if self.batch_first else marginals.transpose(0, 1)

    def sample(
        self,
        emissions: torch.Tensor,
        mask: torch.Tensor | None = None,
        num_samples: int = 1,
        *,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Draw tags.

        Args:
            emissions: As in :meth:`forward`.
            mask: As in :meth:`forward`.
            num_samples: Draws of each sequence.
            seed: Of the counter-based generator; default: drawn from torch's global one.

        Returns:
            int64 [num_samples, T, B] (with `batch_first` [num_samples, B, T]), -1 where masked.
        """
        paths = self._chain(emissions, mask).sample((num_samples,), seed=seed)
        return paths if self.batch_first else paths.transpose(1, 2)

    def _check(self, name: str, tensor: torch.Tensor, emissions: torch.Tensor) -> None:
        """Raise unless `tensor` has one entry for each token of `emissions`."""
        if tensor.shape != emissions.shape[:2]:
            raise ValueError(
                f"{name} must have the first two dimensions of emissions "
                f"{list(emissions.shape[:2])}, got {list(tensor.shape)}"
            )

    def _chain(self, emissions: torch.Tensor, mask: torch.Tensor | None) -> LinearChain:
        """The distribution over tags, batch first."""
        check_float("emissions", emissions)
        if emissions.dim() != 3 or emissions.shape[2] != self.num_tags:
            layout = "B, T" if self.batch_first else "T, B"
            raise ValueError(
                f"emissions must have the shape [{layout}, {self.num_tags}], "
                f"got {list(emissions.shape)}"
            )
        emissions = emissions if self.batch_first else emissions.transpose(0, 1)
        if emissions.shape[1] == 0:
            raise ValueError("emissions must have at least one token, got T = 0")
        lengths = None
        if mask is not None:
            check_tensor("mask", mask)
            mask = mask if self.batch_first else mask.transpose(0, 1)
            self._check("mask", mask, emissions)
            mask = as_bool("mask", mask)
            lengths = mask.sum(1)
            check_values(mask[:, 0], "mask must be on at the first token of every sequence", mask)
            check_values(
                mask == _used(lengths, mask.shape[1]),
                "mask must be on for the first tokens of a sequence and off for the rest; "
                "it has holes",
                mask,
            )
        # Mixed precision: the scores are added, so the wider type wins.
        dtype = torch.promote_types(emissions.dtype, self.transitions.dtype)
        return LinearChain(
            self.start_transitions.to(dtype),
            self.transitions.to(dtype),
            emissions.to(dtype),
            lengths,
            self.end_transitions.to(dtype),
        )


def _used(lengths: torch.Tensor, tokens: int) -> torch.Tensor:
    """Bool [B, T], on within the lengths."""
    return torch.arange(tokens, device=lengths.device) < lengths.unsqueeze(1)

"""Transition and emission matrices of every token: linear layers on its embedding.

Li et al. 2021, section 4: A_t = softmax(W_A e_t + b_A) for the step that leads to token t, and
Phi_t^k = softmax(W_k e_t + b_k) for source k, row-stochastic both. The authors' code also holds
constant matrices and mixes: A = (1 - w) constant + w network; a part of weight 0 is not made here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Mixed(nn.Module):
    """Blocks of categorical distributions over L labels: networks, constants, or their mixture.

    Args:
        dim: Size of an embedding.
        blocks: Number of blocks (one for transitions; sources for emissions).
        rows: Distributions in a block.
        labels: L.
        weight: w of the network, in [0, 1].
    """

    def __init__(self, dim: int, blocks: int, rows: int, labels: int, weight: float) -> None:
        super().__init__()
        self._shape = (blocks, rows, labels)
        self._weight = weight
        self.constant = nn.Parameter(torch.zeros(self._shape)) if weight < 1 else None
        # one product for all blocks
        self.network = nn.Linear(dim, blocks * rows * labels) if weight > 0 else None
        if self.network is not None:
            for block in self.network.weight.detach().view(blocks, rows * labels, dim):
                nn.init.xavier_uniform_(block, nn.init.calculate_gain("relu"))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits [N, blocks, rows, L]; without a network [blocks, rows, L]."""
        if self.network is None:
            assert self.constant is not None
            return self.constant
        logits = self.network(embeddings).unflatten(-1, self._shape)
        if self.constant is None:
            return logits
        return torch.logaddexp(
            self.constant.log_softmax(-1) + math.log1p(-self._weight),
            logits.log_softmax(-1) + math.log(self._weight),
        )

    @torch.no_grad()
    def start_at(self, log_probabilities: Tensor, network: bool = True) -> None:
        """Sets the constants to these matrices [blocks, rows, L], and the network's output too.

        Args:
            log_probabilities: Finite.
            network: Give the network the weights 0 and these biases; False leaves it random.
        """
        if log_probabilities.shape != self._shape:
            raise ValueError(
                f"log_probabilities must have the shape {list(self._shape)}, "
                f"got {list(log_probabilities.shape)}"
            )
        if self.constant is not None:
            self.constant.copy_(log_probabilities)
        if self.network is not None and network:
            self.network.weight.zero_()
            self.network.bias.copy_(log_probabilities.flatten())

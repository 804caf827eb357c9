"""The conditional HMM: a chain of hidden labels seen through S sources, its matrices from a BERT.

Embeddings are given (frozen), so nothing before the networks is differentiated. Step 0 is the begin
of the sentence, with the [CLS] embedding and an O of every source (Li et al. 2021 and their code);
it is not part of any result. All recursions are those of `oneshot.ops`: exact, in particular
beta_t = sum_j A_{t+1}(i, j) phi_{t+1}(j) beta_{t+1}(j), where the authors' code has A_t and phi_t
and computes beta over padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from oneshot import ops
from oneshot.chmm.config import ModelConfig
from oneshot.chmm.label_model.batches import Batch, Examples, collate, in_order
from oneshot.chmm.label_model.networks import Mixed
from oneshot.chmm.labels import Ids, LabelSpace

PREDICTION_STEPS = 16384  # padded steps of a batch that needs no gradient


class Potentials(NamedTuple):
    """Inputs of the `hmm` ops."""

    log_init: Tensor  # [L]
    log_trans: Tensor  # [B, T - 1, L, L], or [L, L] if constant
    log_emit: Tensor  # [B, T, L]
    lengths: Tensor  # int64 [B]

    def double(self) -> Potentials:
        """The same in float64."""
        return Potentials(
            self.log_init.double(), self.log_trans.double(), self.log_emit.double(), self.lengths
        )


@dataclass(frozen=True)
class Predictions:
    """Labels and posteriors of some sentences.

    Attributes:
        labels: Viterbi label ids [T] of each sentence.
        posteriors: float64 [T, L] of each: p(label | all votes). Many sources that agree make
            probabilities below the range of float32.
        log_likelihood: Of each sentence's votes, nats.
    """

    labels: list[Ids]
    posteriors: list[npt.NDArray[np.float64]]
    log_likelihood: npt.NDArray[np.float64]


class CHMM(nn.Module):
    """Start distribution, transition and emission networks.

    Args:
        dim: Size of an embedding.
        n_sources: S.
        labels: The label space, L labels.
        config: Which matrices depend on the token.
    """

    def __init__(
        self, dim: int, n_sources: int, labels: LabelSpace, config: ModelConfig | None = None
    ) -> None:
        super().__init__()
        self.labels, self.config = labels, config or ModelConfig()
        self.dim, self.n_sources = dim, n_sources
        size = len(labels)
        self.start = nn.Parameter(torch.zeros(size))
        rows = size if self.config.markov else 1
        self.transitions = Mixed(dim, 1, rows, size, self.config.transition_network)
        self.emissions = Mixed(dim, n_sources, size, size, self.config.emission_network)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; batches must be there too."""
        return self.start.device

    def potentials(self, batch: Batch) -> Potentials:
        """Start, transition and emission log probabilities of a batch."""
        size, steps = len(self.labels), int(batch.lengths.max())
        within = torch.arange(steps) < batch.lengths[:, None]
        log_trans = self.transitions(batch.embeddings).log_softmax(-1)
        log_trans = log_trans.squeeze(-3).expand(*log_trans.shape[:-3], size, size)
        if log_trans.dim() == 3:  # by the embedding of the token it leads to
            begins = batch.lengths.cumsum(0) - batch.lengths
            leads = torch.ones(len(log_trans), dtype=torch.bool).index_fill_(0, begins, False)
            leading = leads.nonzero().squeeze(1).to(self.device)
            log_trans = _padded(log_trans[leading], within[:, 1:])
        log_emit = ops.combine_emissions(
            self._emission_logits(batch), batch.observations[None], normalize=True
        )
        return Potentials(
            self.start.log_softmax(0),
            log_trans,
            _padded(log_emit[0], within),
            batch.lengths.to(self.device),
        )

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Log p(votes) of each sentence [B], differentiable.

        Its gradient is that of the expected complete-data log-likelihood with posteriors held
        fixed (Fisher's identity): ascending it is the generalised EM of the paper.
        """
        return ops.hmm_log_likelihood(*self.potentials(batch))

    @torch.no_grad()
    def predict(self, examples: Examples, *, constrained: bool = False) -> Predictions:
        """Labels, posteriors and log-likelihood of sentences.

        Args:
            examples: In any order and number; the result of one depends on it alone.
            constrained: Decode without label pairs that BIO forbids. Posteriors are those of the
                model, which knows no such rule, either way.
        """
        result = Predictions(
            [np.empty(0, np.int64)] * len(examples),
            [np.empty((0, len(self.labels)))] * len(examples),
            np.empty(len(examples)),
        )
        for rows in in_order([len(e) for e in examples.embeddings], PREDICTION_STEPS):
            chain = self.potentials(collate(examples, rows).to(self.device))
            posteriors = ops.hmm_posteriors(*chain.double())
            path = ops.hmm_viterbi(*(self._legal(chain) if constrained else chain)).path
            labels, gamma = path.cpu().numpy(), posteriors.gamma.cpu().numpy()
            log_likelihood = posteriors.log_likelihood.cpu().numpy()
            for k, i in enumerate(rows):
                steps = slice(1, len(examples.embeddings[i]))
                result.labels[i], result.posteriors[i] = labels[k, steps], gamma[k, steps]
                result.log_likelihood[i] = log_likelihood[k]
        return result

    @torch.no_grad()
    def emission_matrices(self, batch: Batch) -> Tensor:
        """[N, S, L, L]: of every token of a batch; row: true label, column: what a source says."""
        matrices = self._emission_logits(batch).softmax(-1)
        return matrices.expand(1, len(batch.embeddings), *matrices.shape[-3:])[0]

    @torch.no_grad()
    def mean_emissions(self, examples: Examples) -> npt.NDArray[np.float64]:
        """[S, L, L]: mean emission matrix of each source over all words.

        These are parameters, averaged over words that mostly do not have the label of the row:
        where votes say little they are the prior. `sources.analyse` says what a source is worth.
        """
        total = np.zeros((self.n_sources, len(self.labels), len(self.labels)))
        for rows in in_order([len(e) for e in examples.embeddings], PREDICTION_STEPS):
            batch = collate(examples, rows).to(self.device)
            matrices = self.emission_matrices(batch).double()
            begins = batch.lengths.cumsum(0) - batch.lengths
            total += (matrices.sum(0) - matrices[begins.to(self.device)].sum(0)).cpu().numpy()
        return total / examples.tokens

    @torch.no_grad()
    def mean_transitions(self, examples: Examples) -> npt.NDArray[np.float64]:
        """[L, L]: mean transition matrix over all words."""
        total, words = np.zeros((len(self.labels),) * 2), 0
        for rows in in_order([len(e) for e in examples.embeddings], PREDICTION_STEPS):
            chain = self.potentials(collate(examples, rows).to(self.device))
            if chain.log_trans.dim() == 2:
                return chain.log_trans.double().exp().cpu().numpy()
            steps = torch.arange(chain.log_trans.shape[1], device=self.device)
            inside = steps < chain.lengths[:, None] - 1
            total += chain.log_trans[inside].double().exp().sum(0).cpu().numpy()
            words += int(inside.sum())
        return total / words

    def _emission_logits(self, batch: Batch) -> Tensor:
        """[1, N, S, L, L], or [S, L, L] if constant."""
        if self.config.emission_network == 0:
            return self.emissions(batch.embeddings)
        if self.config.emission_context == "token":
            return self.emissions(batch.embeddings)[None]
        begins = batch.lengths.cumsum(0) - batch.lengths
        logits = self.emissions(batch.embeddings[begins.to(self.device)])
        sentence = torch.arange(len(begins)).repeat_interleave(batch.lengths)
        return logits.index_select(0, sentence.to(self.device))[None]

    def _legal(self, chain: Potentials) -> Potentials:
        """The chain without transitions that BIO forbids; the begin is an O."""
        forbidden = torch.from_numpy(~self.labels.legal_transitions).to(self.device)
        begin = torch.full_like(chain.log_init, float("-inf"))
        begin[0] = 0
        return chain._replace(
            log_init=begin, log_trans=chain.log_trans.masked_fill(forbidden, float("-inf"))
        )


def log_likelihood_per_token(predictions: Predictions) -> float:
    """Mean over words, nats."""
    return float(predictions.log_likelihood.sum()) / sum(map(len, predictions.labels))


def _padded(packed: Tensor, within: Tensor) -> Tensor:
    """[N, ...] of all tokens as [B, T, ...], zeros in the padding."""
    positions = within.flatten().nonzero().squeeze(1).to(packed.device)
    padded = packed.new_zeros(within.numel(), *packed.shape[1:])
    return padded.index_copy(0, positions, packed).unflatten(0, within.shape)

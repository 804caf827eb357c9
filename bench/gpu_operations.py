"""The suite of a GPU: the operations of the families at GPU shapes, with GPU peers."""

from __future__ import annotations

import torch
from torch.nn import functional

from oneshot import ops
from oneshot.bench import advantage, hmm, logprob, policy_loss, routing
from oneshot.bench.floors import floor
from oneshot.bench.registry import Call, Inputs, Operation, Provider, compiled, plain

Loss = tuple[torch.Tensor]


# Log-probabilities alone, as the cross-entropy kernels of others compute them


def _oracle(inputs: Inputs) -> Loss:
    logits, targets = inputs["logits"], inputs["targets"]
    return (torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1),)


def _ours(inputs: Inputs) -> Loss:
    return (ops.token_logprobs(inputs["logits"], inputs["targets"]),)


def _cross_entropy(inputs: Inputs) -> Loss:
    loss = functional.cross_entropy(inputs["logits"].float(), inputs["targets"], reduction="none")
    return (-loss,)


def _liger() -> Call:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss(reduction="none")
    return lambda inputs: (-loss(logprob.ModelOutput.apply(inputs["logits"]), inputs["targets"]),)


def _flash_attention() -> Call:
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    return lambda inputs: (
        -cross_entropy_loss(
            logprob.ModelOutput.apply(inputs["logits"]), inputs["targets"], inplace_backward=True
        )[0],
    )


def _trl() -> Call:
    from trl.trainer.utils import selective_log_softmax

    return lambda inputs: (selective_log_softmax(inputs["logits"], inputs["targets"]),)


def _token_logprobs(rows: int, vocabulary: int) -> Operation:
    def make() -> Inputs:
        return {
            "logits": torch.empty(rows, vocabulary, dtype=torch.bfloat16).normal_(0, 3),
            "targets": torch.randint(vocabulary, (rows,)),
            "cotangents": (torch.randn(rows),),
        }

    return Operation(
        family="logprob",
        kernel="token_logprobs",
        shape=f"{rows}x{vocabulary}",
        dtype="bfloat16",
        mode="forward+backward",
        make=make,
        oracle=_oracle,
        providers=(
            Provider("oneshot", "ours", plain(_ours)),
            Provider("torch", "peer", plain(_cross_entropy)),
            Provider("torch.compile", "peer", compiled(_cross_entropy)),
            Provider("TRL Triton", "peer", _trl, coarse=True),
            Provider("Liger cross-entropy", "peer", _liger, mutates=("logits",), coarse=True),
            Provider(
                "flash-attn cross-entropy", "peer", _flash_attention, mutates=("logits",),
                coarse=True,
            ),
            floor("device copy", copy=("logits",)),
        ),
        differentiate=("logits",),
        verify_rows=min(rows, 16),
    )  # fmt: skip


# From hidden states: the projection and what follows, without and with materialised logits


def _project(inputs: Inputs) -> torch.Tensor:
    return functional.linear(inputs["hidden"], inputs["weight"])


def _linear_oracle(inputs: Inputs) -> Loss:
    return _oracle({"logits": _project(inputs), "targets": inputs["targets"]})


def _linear_ours(inputs: Inputs) -> Loss:
    logprobs, _ = ops.token_logprobs_and_entropy(
        _project(inputs), inputs["targets"], inplace_backward=True
    )
    return (logprobs,)


def _cut_cross_entropy(filter_eps: str | None) -> Call:
    from cut_cross_entropy import linear_cross_entropy

    return lambda inputs: (
        -linear_cross_entropy(
            inputs["hidden"],
            inputs["weight"],
            inputs["targets"],
            reduction="none",
            filter_eps=filter_eps,
        ),
    )


def _trl_chunked() -> Call:
    from trl.kernels import ChunkedLogProbFunction

    return lambda inputs: (
        ChunkedLogProbFunction.apply(
            inputs["hidden"], inputs["weight"], None, inputs["targets"], 1.0, 4096
        )[0],
    )


def _matmul(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The three products of forward and backward in cuBLAS, nothing around them."""
    hidden, weight, logits = inputs["hidden"], inputs["weight"], inputs["logits"]
    return hidden @ weight.T, logits @ weight, logits.T @ hidden


def _as_halves(_: Inputs, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Logits were rounded to bfloat16 on the way, so results are judged as such."""
    return tuple(output.to(torch.bfloat16) for output in outputs)


def _linear(rows: int, features: int, vocabulary: int) -> Operation:
    def make() -> Inputs:
        half = torch.bfloat16
        return {
            "hidden": torch.randn(rows, features).to(half),
            "weight": (torch.randn(vocabulary, features) / features**0.5).to(half),
            "targets": torch.randint(vocabulary, (rows,)),
            "logits": torch.randn(rows, vocabulary, dtype=half),  # of the floor
            "cotangents": (torch.randn(rows),),
        }

    return Operation(
        family="logprob",
        kernel="token_logprobs",
        variant="from-hidden",
        shape=f"{rows}x{features}x{vocabulary}",
        dtype="bfloat16",
        mode="forward+backward",
        make=make,
        oracle=_linear_oracle,
        providers=(
            Provider("torch linear + oneshot", "ours", plain(_linear_ours), coarse=True),
            # By default it leaves out what is small in the gradient.
            Provider("cut-cross-entropy", "peer", lambda: _cut_cross_entropy("high"), coarse=True),
            Provider(
                "cut-cross-entropy, nothing left out",
                "peer",
                lambda: _cut_cross_entropy(None),
                coarse=True,
            ),
            Provider("TRL chunked", "peer", _trl_chunked, coarse=True),
            Provider("cuBLAS matmul", "floor", plain(_matmul)),
        ),
        differentiate=("hidden", "weight"),
        judge=_as_halves,
    )


def operations(*, tiny: bool = False) -> list[Operation]:
    """Everything measured on a GPU; `tiny`: the same with sizes that a CPU does at once."""
    vocabulary, rows, batch, steps = (97, 6, 4, 12) if tiny else (151936, 2048, 1024, 4096)
    return [
        logprob.operation(rows, vocabulary, "bfloat16", "forward", quick=False),
        logprob.operation(rows, vocabulary, "bfloat16", "forward+backward", quick=False),
        logprob.operation(8, vocabulary, "bfloat16", "forward", quick=False),
        _token_logprobs(rows, vocabulary),
        _linear(rows, 32 if tiny else 1536, vocabulary),
        advantage.group_operation(4 if tiny else 128, 8, quick=False),
        advantage.gae_operation(batch, 64 if tiny else steps, quick=False),
        advantage.whiten_operation(batch, steps),
        policy_loss.operation(policy_loss.PPO, batch, steps, quick=False),
        policy_loss.operation(policy_loss.DAPO, batch, steps, quick=False),
        policy_loss.operation(policy_loss.GSPO, batch, steps, quick=False),
        policy_loss.value_operation(batch, steps),
        hmm.posteriors_operation((2, 5, 3) if tiny else (256, 512, 9), shared=False),
        routing.operation(2 if tiny else 8, 4 if tiny else 512, 2, "forward+backward", quick=False),
        routing.operation(4 if tiny else 64, 1, 4, "forward", quick=False),
    ]

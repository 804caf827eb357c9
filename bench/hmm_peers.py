"""Libraries that compute what the `hmm` family computes, each in its own layout and its best call.

What a library asks for (folded edges, probabilities, float64 NumPy, JAX arrays) is prepared outside
the clock. No library here takes lengths together with per-token transitions and -inf, so all
sequences have full length.

Not here: python-crfsuite (its tagger takes strings and weights from a file, not scores), GTN and k2
(no wheel for this Python), torch-semiring-einsum and TensorFlow Probability (far behind).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oneshot.bench.registry import Foreign, Inputs


def _folded(inputs: Inputs) -> Tensor:
    """Edge potentials, source first: emissions, and the initial scores in edge 0."""
    edges = inputs["log_trans"] + inputs["log_emit"][:, 1:].unsqueeze(-2)
    first = inputs["log_init"] + inputs["log_emit"][:, 0]
    edges[:, 0] += first.unsqueeze(-1)
    return edges


def _from_pairs(log_likelihood: Tensor, xi: Tensor) -> tuple[Tensor, ...]:
    """Gamma from xi, source first."""
    return log_likelihood, torch.cat((xi[:, :1].sum(-1), xi.sum(-2)), 1), xi


# torch-struct: a tree of semiring products, K^3 temporaries


def torch_struct(what: str) -> Foreign:
    """LinearChainCRF: "marginals", "argmax" or "sample"."""
    from torch_struct import LinearChainCRF

    def prepare(inputs: Inputs) -> Any:
        return _folded(inputs).mT.contiguous(), inputs.get("num_samples")

    def run(arguments: Any) -> Any:
        edges, draws = arguments
        with torch.enable_grad():
            chain = LinearChainCRF(edges)
            if what == "sample":
                return chain.sample((draws,))
            return chain.partition.detach(), getattr(chain, what).detach()

    def path(parts: Tensor) -> Tensor:
        first = parts[..., :1, :, :].sum(-2).argmax(-1)
        return torch.cat((first, parts.sum(-1).argmax(-1)), -1)

    def outputs(result: Any) -> tuple[Tensor, ...]:
        if what == "marginals":
            return _from_pairs(result[0], result[1].mT)
        return (path(result if what == "sample" else result[1]),)

    return Foreign(prepare, run, outputs)


# Pyro: a tree of log-space matrix products


def pyro_tree(what: str) -> Foreign:
    """The routine under DiscreteHMM (which itself renormalises): "posteriors" or "gradient"."""
    from pyro.distributions.hmm import _sequential_logmatmulexp

    def prepare(inputs: Inputs) -> Any:
        ones = torch.ones(len(inputs["log_emit"]))
        return _folded(inputs), inputs.get("cotangents", ones)

    def run(arguments: Any) -> Any:
        edges, cotangents = arguments
        with torch.enable_grad():
            leaf = edges.detach().requires_grad_()
            total = _sequential_logmatmulexp(leaf).logsumexp((-1, -2))
            return total.detach(), *torch.autograd.grad(total, leaf, cotangents)

    def outputs(result: Any) -> tuple[Tensor, ...]:
        log_likelihood, gamma, xi = _from_pairs(*result)
        return (log_likelihood, xi, gamma) if what == "gradient" else (log_likelihood, gamma, xi)

    return Foreign(prepare, run, outputs)


# pytorch-crf: shared transitions, a loop with autograd


def pytorch_crf(what: str) -> Foreign:
    """CRF: "gradient" of its normaliser, or "decode"."""
    from torchcrf import CRF

    def prepare(inputs: Inputs) -> Any:
        crf = CRF(len(inputs["log_init"]))
        state = {
            "start_transitions": inputs["log_init"],
            "transitions": inputs["log_trans"],
            "end_transitions": torch.zeros_like(inputs["log_init"]),
        }
        crf.load_state_dict(state)
        emissions = inputs["log_emit"].transpose(0, 1).contiguous()
        mask = torch.ones(emissions.shape[:2], dtype=torch.bool)
        return crf, emissions, mask, inputs.get("cotangents")

    def run(arguments: Any) -> Any:
        crf, emissions, mask, cotangents = arguments
        if what == "decode":
            return crf.decode(emissions, mask)
        with torch.enable_grad():
            leaf = emissions.detach().requires_grad_()
            total = crf._compute_normalizer(leaf, mask)
            return total.detach(), *torch.autograd.grad(total, (crf.transitions, leaf), cotangents)

    def outputs(result: Any) -> tuple[Tensor, ...]:
        if what == "decode":
            return (torch.tensor(result),)
        total, by_trans, by_emit = result
        return total, by_trans, by_emit.transpose(0, 1)

    return Foreign(prepare, run, outputs)


# hmmlearn: C++, float64, one sequence a call, shared transitions


def hmmlearn(what: str) -> Foreign:
    """The compiled part of its scaling implementation: "posteriors" or "viterbi"."""
    import numpy as np
    from hmmlearn import _hmmc

    def prepare(inputs: Inputs) -> Any:
        start, matrix = (inputs[key].double().exp() for key in ("log_init", "log_trans"))
        return start.numpy(), matrix.numpy(), inputs["log_emit"].double().numpy()

    def posteriors(start: Any, matrix: Any, log_emit: Any) -> Any:
        found = []
        for row in log_emit:
            shift = row.max(1, keepdims=True)
            likelihood = np.exp(row - shift)
            total, forward, scale = _hmmc.forward_scaling(start, matrix, likelihood)
            backward = _hmmc.backward_scaling(start, matrix, likelihood, scale)
            gamma = forward * backward
            gamma /= gamma.sum(1, keepdims=True)
            pairs = _hmmc.compute_scaling_xi_sum(forward, matrix, backward, likelihood)
            found.append((total + shift.sum(), gamma, pairs))
        return found

    def run(arguments: Any) -> Any:
        if what == "posteriors":
            return posteriors(*arguments)
        start, matrix, log_emit = arguments
        return [_hmmc.viterbi(start, matrix, row)[1] for row in log_emit]

    def outputs(result: Any) -> tuple[Tensor, ...]:
        if what == "viterbi":
            return (torch.from_numpy(np.stack(result)),)
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*result, strict=True))

    return Foreign(prepare, run, outputs)


# JAX: jitted, batched with vmap; probabilities in, as dynamax takes them


def dynamax(what: str) -> Foreign:
    """Dynamax: "two_filter_smoother", "posterior_mode" or "posterior_sample"."""
    import jax
    from dynamax.hidden_markov_model import inference

    single = getattr(inference, f"hmm_{what}")

    def prepare(inputs: Inputs) -> Any:
        init, trans = _jax(inputs["log_init"].exp()), _jax(inputs["log_trans"].exp())
        arguments = (init, trans, _jax(inputs["log_emit"]))
        axes = (None, 0 if trans.ndim == 4 else None, 0)
        if what != "posterior_sample":
            return jax.jit(jax.vmap(single, axes)), arguments
        keys = jax.random.split(
            jax.random.PRNGKey(0), (inputs["num_samples"], len(inputs["log_emit"]))
        )
        over_batch = jax.vmap(single, (0, *axes))
        over_draws = jax.vmap(over_batch, (0, None, None, None))
        return jax.jit(over_draws), (keys, *arguments)

    def run(bound: Any) -> Any:
        call, arguments = bound
        return jax.block_until_ready(call(*arguments))

    def outputs(result: Any) -> tuple[Tensor, ...]:
        if what == "posterior_mode":
            return (_torch(result).long(),)
        if what == "posterior_sample":
            return (_torch(result[1]).long(),)
        return tuple(
            map(_torch, (result.marginal_loglik, result.smoothed_probs, result.trans_probs))
        )

    return Foreign(prepare, run, outputs)


def jax_scan() -> Foreign:
    """What one writes in JAX by hand: a scaled forward scan over the batch, differentiated."""
    import jax
    import jax.numpy as jnp

    def log_likelihood(log_trans: Any, log_emit: Any, log_init: Any) -> Any:
        shared = log_trans.ndim == 2
        shift = log_emit.max(-1, keepdims=True)
        emit = jnp.exp(log_emit - shift).swapaxes(0, 1)
        matrices = jnp.exp(log_trans)

        def normalised(alpha: Any) -> Any:
            total = alpha.sum(-1, keepdims=True)
            return alpha / total, jnp.log(total[:, 0])

        def step(alpha: Any, now: Any) -> Any:
            here, matrix = now
            if shared:
                return normalised((alpha @ matrices) * here)
            return normalised(jnp.einsum("bi,bij->bj", alpha, matrix) * here)

        alpha, first = normalised(jnp.exp(log_init) * emit[0])
        over = (emit[1:], None if shared else matrices.swapaxes(0, 1))
        _, rest = jax.lax.scan(step, alpha, over)
        return first + rest.sum(0) + shift.sum((1, 2))

    @jax.jit
    def with_gradients(log_trans: Any, log_emit: Any, log_init: Any, cotangent: Any) -> Any:
        total, pull = jax.vjp(lambda a, b: log_likelihood(a, b, log_init), log_trans, log_emit)
        return total, *pull(cotangent)

    def prepare(inputs: Inputs) -> Any:
        tensors = [inputs[key] for key in ("log_trans", "log_emit", "log_init")]
        return [_jax(tensor) for tensor in (*tensors, *inputs["cotangents"])]

    return Foreign(
        prepare,
        lambda arguments: jax.block_until_ready(with_gradients(*arguments)),
        lambda result: tuple(map(_torch, result)),
    )


def _jax(tensor: Tensor) -> Any:
    import jax

    return jax.dlpack.from_dlpack(tensor.contiguous())


def _torch(array: Any) -> Tensor:
    return torch.from_dlpack(array)

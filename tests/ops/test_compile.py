"""Numbers that vary between calls under `torch.compile(fullgraph=True)`: one graph, right values.

Sizes that vary are in each family's own file.
"""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from oneshot import ops
from oneshot.policy_options import PolicyLossOptions

generator = torch.Generator().manual_seed(3)


def fixed(*shape):
    return torch.randn(shape, generator=generator)


IDS = torch.tensor([[0, 6, 2], [3, 3, 1]])
OLD, REF, ENTROPY, ADVANTAGES = fixed(2, 4) * 0.1, fixed(2, 4) * 0.1, fixed(2, 4), fixed(2)
A, B, W, ROWS = (
    fixed(2, 2, 2, 3),
    fixed(2, 2, 3, 1),
    fixed(2, 2, 2).sigmoid(),
    torch.tensor([1, 0, 1]),
)
SAPO = PolicyLossOptions(objective="sapo", kl_clamp=9.0)
INIT, TRANS = fixed(2), fixed(2, 2)


def ppo(x, t):
    return ops.policy_loss(
        x, OLD, ADVANTAGES, ref_logprobs=REF, entropy=ENTROPY, clip_low=t, clip_high=t, dual_clip=t,
        delta=t, log_ratio_clamp=t, kl_coef=t, kl_clamp=t, kl_log_ratio_clamp=t, entropy_coef=t,
        policy_coef=t, token_count=t,
    ).loss  # fmt: skip


FLOATS = {
    "temperature": (lambda x, t: ops.token_logprobs(x, IDS, temperature=t), (2, 3, 7)),
    "policy_loss": (ppo, (2, 4)),
    "kl_coef": (
        lambda x, t: ops.policy_loss(x, OLD, ADVANTAGES, ref_logprobs=REF, kl_coef=t).loss, (2, 4)
    ),
    "options": (
        lambda x, t: ops.policy_loss(
            x, OLD, ADVANTAGES, ref_logprobs=REF, options=SAPO, kl_coef=t, sapo_temperature_pos=t
        ).loss,
        (2, 4),
    ),
    "clip range": (
        # Ratios far above the range, and advantages that make it bind.
        lambda x, t: ops.policy_loss(
            5 * x.abs(), OLD, ADVANTAGES.abs(), clip_low=t, clip_high=t
        ).loss,
        (2, 4),
    ),
    "sequence_count": (
        lambda x, t: ops.policy_loss(x, OLD, ADVANTAGES, objective="grpo", sequence_count=t).loss,
        (2, 4),
    ),
    "value_loss": (lambda x, t: ops.value_loss(9 * x, OLD, 50 + REF, clip=t).loss, (2, 4)),
    "importance_weights": (
        lambda x, t: ops.importance_weights(x, 9 * x, low=t, high=2.0, log_ratio_clamp=t).weights,
        (2, 4),
    ),
    "group_advantages": (lambda x, t: ops.group_advantages(x, 2, eps=t), (4,)),
    "gae": (lambda x, t: ops.gae(x, OLD, gamma=t, lam=t)[0], (2, 4)),
    "whiten": (lambda x, t: ops.whiten(x, eps=t), (2, 4)),
    "routing_weights": (
        lambda x, t: ops.routing_weights(x, ROWS, noise="per_task", temperature=t, eps=t)[0],
        (3, 2, 2),
    ),
    "routed_lora": (
        lambda x, t: ops.routed_lora(x, A, B, W, ROWS, scaling=t, plan="mixtures"), (3, 4)
    ),
}  # fmt: skip
INTEGERS = {
    "groups": (lambda x, n: ops.group_advantages(x[: 2 * n], n), (30,)),
    "max_length": (
        lambda x, n: ops.policy_loss(x, OLD, ADVANTAGES, objective="dr_grpo", max_length=n).loss,
        (2, 4),
    ),
    "token_count": (
        lambda x, n: ops.policy_loss(x, OLD, ADVANTAGES, token_count=n).loss, (2, 4)
    ),
    "seed": (lambda x, n: ops.hmm_sample(INIT, TRANS, x, seed=n, num_samples=n), (2, 3, 2)),
    "task_ids": (lambda x, n: ops.routing_weights(x, n)[0], (20, 2, 2)),
}  # fmt: skip
CASES = {
    # policy_loss bounds some of its numbers by 1 from below, others are at most 1
    **{
        name: (*case, [(name == "policy_loss") + 0.31 + i / 17 for i in range(10)])
        for name, case in FLOATS.items()
    },
    **{name: (*case, list(range(3, 13))) for name, case in INTEGERS.items()},
}


def value_and_gradient(function, x, number):
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    y = function(leaf, number)
    if not y.requires_grad:
        return (y,)
    return y.detach(), *torch.autograd.grad(y.sum(), leaf)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", CASES)
def test_a_number_that_varies_is_compiled_once(name, dynamic):
    """By default the second value is compiled once more: from then on the number is a symbol."""
    function, shape, numbers = CASES[name]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x, values = fixed(*shape), []
    for number in numbers:
        ours = value_and_gradient(compiled, x, number)
        eager = value_and_gradient(function, x, number)
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
        values.append(ours)
    assert counters["stats"]["unique_graphs"] == (1 if dynamic else 2)
    assert not torch.equal(values[-1][0], values[-2][0])  # the number is read anew each time


def test_an_attribute_that_a_schedule_changes():
    class Loss(torch.nn.Module):
        temperature = 0.5

        def forward(self, logits):
            return ops.token_logprobs(logits, IDS, temperature=self.temperature).sum()

    torch._dynamo.reset()
    counters.clear()
    module, logits = Loss(), fixed(2, 3, 7)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for step in range(10):
        module.temperature = 0.5 + step / 20
        torch.testing.assert_close(compiled(logits), module(logits))
    assert counters["stats"]["unique_graphs"] == 2


def test_inductor_follows_a_number_through_forward_and_backward():
    torch._dynamo.reset()
    counters.clear()
    function, shape = FLOATS["kl_coef"]
    compiled, x = torch.compile(function, fullgraph=True, dynamic=True), fixed(*shape)
    for number in (0.3, 0.4, 0.7):
        ours, eager = (value_and_gradient(f, x, number) for f in (compiled, function))
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_constant_stays_one():
    """The compiled graph of a fixed temperature calls the op itself, without tensors of numbers."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")

    def logprobs(x):
        return ops.token_logprobs(x, IDS, temperature=0.5)

    torch.compile(logprobs, fullgraph=True, backend=counter)(fixed(2, 3, 7))
    targets = [node.target for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    assert torch.ops.oneshot.token_logprobs_and_entropy.default in targets
    assert torch.ops.oneshot.token_logprobs_and_entropy.traced not in targets


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_checks_of_numbers_hold_under_the_compiler(temperature):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, t: ops.token_logprobs(x, IDS, temperature=t), backend="aot_eager"
    )
    for good in (0.5, 0.6, 0.7):  # a symbol by now
        compiled(fixed(2, 3, 7), good)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        compiled(fixed(2, 3, 7), temperature)


def test_torch_func_inside_a_compiled_function():
    torch._dynamo.reset()
    x = fixed(2, 3, 7)

    def loss(x):
        return ops.token_logprobs(x, IDS, temperature=0.7).sum()

    compiled = torch.compile(torch.func.grad_and_value(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.func.grad_and_value(loss)(x))

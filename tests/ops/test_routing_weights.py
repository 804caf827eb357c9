"""`routing_weights` against its formula in float64."""

import pytest
import torch
from advantage_inputs import same_at_any_thread_count

from oneshot import ops
from oneshot._load import native
from oneshot.reference import routing as reference

needs_native = pytest.mark.skipif(native()[0] is None, reason="the native library is off")
OP = torch.ops.oneshot
SIZES = [(1, 1, 1, 1), (2, 7, 3, 5), (1, 63, 1, 1000), (3, 5, 16, 63), (7, 9, 4, 8)]


def formula(logits, tasks, eps):
    scores = 1 / (1 + torch.exp(-logits.double()[:, tasks]))
    return scores / (scores.sum(-1, keepdim=True) + eps)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
def test_op_and_gradient_match_the_formula(size, dtype, tolerance):
    logits = (3 * torch.randn(size, dtype=dtype)).requires_grad_()
    tasks = torch.randint(size[1], (11,))  # some more than once
    wide = logits.detach().double().requires_grad_()
    ours, right = OP.routing_weights(logits, tasks, 1e-3), formula(wide, tasks, 1e-3)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), right, rtol=tolerance, atol=tolerance)
    upstream = torch.randn(ours.shape, dtype=dtype)
    (grad,) = torch.autograd.grad(ours, logits, upstream)
    (exact,) = torch.autograd.grad(right, wide, upstream.double())
    torch.testing.assert_close(grad.double(), exact, rtol=5 * tolerance, atol=5 * tolerance)
    assert (grad[:, [task for task in range(size[1]) if task not in tasks]] == 0).all()


def test_far_ends_of_the_sigmoid():
    """Weights and gradients stay finite, and are right, where a sigmoid is 0 or 1 in float32."""
    rows = [[-60.0, -61.0], [90.0, -90.0], [torch.inf, 0.0], [-torch.inf, -torch.inf], [200.0, 3.0]]
    logits = torch.tensor(rows).view(1, 5, 1, 2).requires_grad_()
    weights = OP.routing_weights(logits, torch.arange(5), 1e-12)
    torch.testing.assert_close(
        weights.double(), formula(logits, torch.arange(5), 1e-12), rtol=2e-6, atol=1e-30
    )
    assert weights[0, 3].tolist() == [[0.0, 0.0]]
    (grad,) = torch.autograd.grad(weights.square().sum(), logits)
    assert grad.isfinite().all()
    assert grad[0, 4, 0, 1] != 0


def test_nan_stays_in_its_head_and_task():
    logits = torch.randn(2, 4, 3, 5)
    logits[:, 2], logits[0, 1, 1, 4] = torch.nan, torch.nan
    leaf = logits.clone().requires_grad_()
    weights = OP.routing_weights(leaf, torch.tensor([0, 1, 3]), 1e-12)
    assert weights[0, 1, 1].isnan().all()
    assert weights.isnan().sum() == 5
    (grad,) = torch.autograd.grad(weights.sum(), leaf)
    assert grad.isnan().sum() == 5
    assert (grad[:, 2] == 0).all()


def test_second_derivative():
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    call = lambda z: OP.routing_weights(z, torch.tensor([3, 0, 3]), 1e-3)  # noqa: E731
    assert torch.autograd.gradcheck(call, logits)
    assert torch.autograd.gradgradcheck(call, logits)


@needs_native
def test_threads_change_no_bit():
    logits, tasks = torch.randn(65, 9, 16, 33).requires_grad_(), torch.tensor([8, 0, 3])
    upstream = torch.randn(65, 3, 16, 33)

    def both():
        weights = OP.routing_weights(logits, tasks, 1e-12)
        return weights, *torch.autograd.grad(weights, logits, upstream)

    assert same_at_any_thread_count(both)


@pytest.mark.parametrize("shape", [(), (1,), (63,), (7, 1000), (0,), (2, 0)])
def test_distinct_tasks(shape):
    ids = torch.randint(40, shape)
    distinct, index = OP.distinct_tasks(ids, 40)
    assert distinct.tolist() == sorted(set(ids.flatten().tolist()))
    assert torch.equal(distinct[index], ids)
    strided = torch.stack((ids, ids), -1)[..., 1]
    assert torch.equal(OP.distinct_tasks(strided, 40)[1], index)
    expected = reference.distinct_tasks(ids, 40)
    assert torch.equal(expected[0], distinct)
    assert torch.equal(expected[1], index)


def test_opcheck():
    logits, tasks = torch.randn(2, 5, 2, 3, requires_grad=True), torch.tensor([4, 1])
    torch.library.opcheck(OP.routing_weights.default, (logits, tasks, 1e-12))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    grad, plain = torch.randn(2, 2, 2, 3), logits.detach()
    arguments = grad, plain, tasks, OP.routing_weights(plain, tasks, 1e-12), 1e-12
    torch.library.opcheck(OP.routing_weights_backward.default, arguments, test_utils=checks)
    torch.library.opcheck(
        OP.distinct_tasks.default, (torch.tensor([3, 1, 3]), 5), test_utils=checks[:2]
    )


def test_strided_logits_and_an_empty_batch():
    logits = torch.randn(3, 2, 6, 4).permute(3, 2, 1, 0)
    assert not logits.is_contiguous()
    ids = torch.tensor([5, 0, 5])
    ours, dense = ops.routing_weights(logits, ids), ops.routing_weights(logits.contiguous(), ids)
    assert torch.equal(ours[0], dense[0])
    none, index = ops.routing_weights(torch.ones(3, 2, 2), torch.ones(0).long())
    assert none.shape == (0, 2, 2)
    assert index.shape == (0,)


@needs_native
@pytest.mark.parametrize("bad", [-1, 5])
def test_a_task_outside_the_logits_is_refused(bad):
    with pytest.raises(RuntimeError, match=rf"tasks must lie in \[0, 5\), got {bad} at place 1"):
        OP.routing_weights(torch.ones(1, 5, 2, 2), torch.tensor([0, bad]), 1e-12)


# ---- the public function


def test_weights_follow_the_formula_for_each_distinct_task():
    logits = torch.randn(6, 2, 3, dtype=torch.float64)
    ids = torch.tensor([[4, 0, 4], [5, 5, 0]])
    weights, index = ops.routing_weights(logits, ids)
    assert weights.shape == (3, 2, 3)
    assert index.tolist() == [[1, 0, 1], [2, 2, 0]]
    for row, task in enumerate((0, 4, 5)):
        scores = 1 / (1 + torch.exp(-logits[task]))
        torch.testing.assert_close(weights[row], scores / (scores.sum(1, keepdim=True) + 1e-12))
    assert ops.routing_weights(logits.bfloat16(), ids)[0].dtype == torch.float32
    eps = ops.routing_weights(logits, ids, eps=1.0)[0]
    assert (eps.sum(-1) < 1).all()


def test_one_call_serves_all_layers():
    logits = torch.randn(4, 6, 2, 3, requires_grad=True)
    ids = torch.tensor([3, 3, 1])
    stacked, index = ops.routing_weights(logits, ids)
    assert stacked.shape == (4, 2, 2, 3)
    for layer in range(4):
        one, same = ops.routing_weights(logits[layer], ids)
        assert torch.equal(one, stacked[layer])
        assert torch.equal(index, same)
    (grad,) = torch.autograd.grad(stacked.square().sum(), logits)
    assert (grad[:, [0, 2, 4, 5]] == 0).all()
    assert (grad[:, [1, 3]] != 0).all()


def test_a_scalar_task_id_is_for_everything():
    logits, x = torch.randn(6, 2, 3), torch.randn(4, 5, 8)
    adapters = torch.randn(2, 3, 4, 2), torch.randn(2, 3, 2, 4)
    each, rows = ops.routing_weights(logits, torch.full((4,), 2))
    want = ops.routed_lora(x, *adapters, each, rows)
    for task in (2, torch.tensor(2)):
        weights, index = ops.routing_weights(logits, task)
        assert weights.shape == (1, 2, 3)
        assert index.shape == ()
        assert torch.equal(ops.routed_lora(x, *adapters, weights, index), want)
        assert torch.equal(ops.routed_lora(x, *adapters, weights), want)


@pytest.mark.parametrize(("noise", "count"), [("per_task", 2), ("per_example", 4)])
def test_noise_is_a_relaxed_bernoulli_draw(noise, count):
    logits = torch.full((8, 50, 400), 0.8, dtype=torch.float64).requires_grad_()
    ids = torch.tensor([7, 2, 7, 7])
    weights, index = ops.routing_weights(logits, ids, noise=noise, temperature=0.5)
    assert weights.shape == (count, 50, 400)
    assert index.tolist() == ([1, 0, 1, 1] if noise == "per_task" else [0, 1, 2, 3])
    torch.testing.assert_close(weights.sum(-1), torch.ones(count, 50, dtype=torch.float64))
    assert not torch.equal(weights[0], weights[1])
    # P(s > 1/2) = P(z + logistic > 0) = sigmoid(z), at any temperature; w = s / sum s.
    scores = weights / weights.amax(-1, keepdim=True)  # the largest of 400 draws is nearly 1
    share = (scores > 0.5).double().mean().item()
    assert abs(share - torch.sigmoid(torch.tensor(0.8)).item()) < 0.01
    assert weights.sum().item() == pytest.approx(count * 50)
    torch.manual_seed(3)
    first = ops.routing_weights(logits, ids, noise=noise)[0]
    torch.manual_seed(3)
    second = ops.routing_weights(logits, ids, noise=noise)[0]
    assert torch.equal(first, second)
    assert torch.autograd.grad(first.square().sum(), logits)[0][[2, 7]].ne(0).all()
    at_one = ops.routing_weights(torch.zeros(1, 1, 100000), 0, noise=noise)[0].flatten()
    # At logit 0 and temperature 1 the draw is uniform, so w * K / 2 is (nearly).
    quantiles = torch.quantile(at_one * 50000, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task_ids": torch.tensor([0, -1])}, ValueError, r"task_ids must lie in \[0, 3\), got -1"),
        ({"task_ids": torch.tensor([3])}, ValueError, r"task_ids must lie in \[0, 3\), got 3"),
        ({"task_ids": -1}, ValueError, r"task_ids must lie in \[0, 3\), got -1"),
        ({"task_ids": 3}, ValueError, r"task_ids must lie in \[0, 3\), got 3"),
        ({"task_ids": torch.tensor([1.0])}, TypeError, "task_ids must be int64 or int32"),
        (
            {"task_ids": [0]},
            TypeError,
            "task_ids must be an int64 or int32 tensor or an int, got list",
        ),
        (
            {"task_ids": True},
            TypeError,
            "task_ids must be an int64 or int32 tensor or an int, got bool",
        ),
        ({"logits": torch.ones(3, 2)}, ValueError, r"logits must have shape \[..., tasks, H, K\]"),
        ({"logits": torch.ones(3, 2, 2).int()}, TypeError, "logits must be float32"),
        ({"noise": "gumbel"}, ValueError, "noise must be one of 'none', .*got 'gumbel'"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive, got 0.0"),
    ],
)
def test_routing_weights_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.routing_weights(**{"logits": torch.ones(3, 2, 2), "task_ids": 0, **arguments})

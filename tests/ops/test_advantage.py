"""The `advantage` family against closed forms, published tables and float64 brute force."""

import itertools
import math
import statistics

import pytest
import torch
from advantage_inputs import garbage, random_mask, same_at_any_thread_count
from torch._dynamo.testing import CompileCounterWithBackend

import oneshot.numpy
from oneshot import ops
from oneshot._load import native
from oneshot.reference import advantage as reference

needs_native = pytest.mark.skipif(native()[0] is None, reason="the native library is off")
SIZES = (1, 7, 63, 1000)


# ---- group_advantages


def brute_force(rewards, ids, baseline, scale, ddof, eps, singleton, lengths):
    """One reward at a time in Python floats, with the standard library's mean and deviation."""
    deviation = statistics.stdev if ddof == 1 else statistics.pstdev
    rewards, lengths = rewards.double().tolist(), lengths.tolist()
    out = []
    for i, r in enumerate(rewards):
        members = [j for j in range(len(rewards)) if ids[j] == ids[i]]
        group = [rewards[j] for j in members]
        alone = len(group) == 1
        if alone:
            b = 0.0 if singleton == "raw" else r
        elif baseline == "mean":
            b = statistics.fmean(group)
        elif baseline == "loo":
            b = statistics.fmean(rewards[j] for j in members if j != i)
        elif baseline == "opo":
            weights = [lengths[j] for j in members]  # fmean takes weights from Python 3.11 on
            b = sum(w * r for w, r in zip(weights, group, strict=True)) / sum(weights)
        else:
            b = 0.0
        if scale == "std":
            out.append((r - b) / ((1.0 if alone else deviation(group)) + eps))
        elif scale == "batch_std":
            out.append((r - b) / ((1.0 if len(rewards) == 1 else deviation(rewards)) + eps))
        else:
            out.append(r - b)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize(
    ("correct", "above", "below"),
    [
        (1, 2.474867, -0.353552),
        (2, 1.620182, -0.540061),
        (3, 1.207612, -0.724567),
        (4, 0.935413, -0.935413),
        (5, 0.724567, -1.207612),
        (6, 0.540061, -1.620182),
        (7, 0.353552, -2.474867),
    ],
)
def test_published_table_of_binary_rewards(correct, above, below):
    """Eight samples of one problem, `correct` of them right: the values of the paper's code."""
    rewards = (torch.arange(8) < correct).float().repeat(128)
    expected = torch.where(rewards == 1, above, below)
    torch.testing.assert_close(ops.group_advantages(rewards, 8), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -3e7])
def test_equal_rewards_give_exactly_zero(value):
    assert (ops.group_advantages(torch.full((1000,), value), 8) == 0).all()


@pytest.mark.parametrize("baseline", ["mean", "loo", "none", "opo"])
@pytest.mark.parametrize("scale", ["std", "batch_std", "none"])
@pytest.mark.parametrize(("ddof", "singleton"), [(1, "raw"), (0, "zero")])
def test_every_rule_matches_brute_force(baseline, scale, ddof, singleton):
    for count, dtype in itertools.product((1, 7, 63, 200), (torch.float32, torch.float64)):
        rewards = torch.randn(count, dtype=dtype) * 3 + 5
        ids = torch.randint(-count // 4, count // 4 + 1, (count,)) * 10**15
        lengths = torch.randint(1, 3000, (count,))
        rule = {"baseline": baseline, "scale": scale, "ddof": ddof, "singleton": singleton}
        out = ops.group_advantages(rewards, group_ids=ids, lengths=lengths, **rule)
        expected = brute_force(
            rewards, ids.tolist(), baseline, scale, ddof, 1e-6, singleton, lengths
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_three_ways_of_grouping_agree_bitwise():
    sizes = torch.tensor([1, 0, 8, 3, 51])
    rewards = torch.randn(63)
    by_size = ops.group_advantages(rewards, group_sizes=sizes)
    ids = torch.repeat_interleave(torch.tensor([-(2**63), 0, 2**63 - 1, 5, -1]), sizes)
    order = torch.randperm(63)
    by_id = ops.group_advantages(rewards[order], group_ids=ids[order])
    torch.testing.assert_close(by_id, by_size[order], rtol=1e-6, atol=1e-6)
    assert torch.equal(ops.group_advantages(rewards, group_ids=ids), by_size)
    by_int = ops.group_advantages(rewards, 7)
    assert torch.equal(ops.group_advantages(rewards, group_sizes=torch.full((9,), 7)), by_int)
    assert torch.equal(ops.group_advantages(rewards, group_ids=torch.arange(63) // 7), by_int)


def test_conventions_of_the_libraries():
    """Group of [0, 1, 1] (std 0.577350) and a group of one with reward 0.5."""
    rewards, sizes = torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([3, 1])
    std = math.sqrt(1 / 3)
    for eps, singleton, alone in (
        (1e-6, "raw", 0.5 / (1 + 1e-6)),  # verl and the paper's run
        (1e-4, "zero", 0.0),  # TRL
        (1e-9, "zero", 0.0),  # OpenRLHF
    ):
        out = ops.group_advantages(rewards, group_sizes=sizes, eps=eps, singleton=singleton)
        expected = [-2 / 3 / (std + eps), 1 / 3 / (std + eps), 1 / 3 / (std + eps), alone]
        torch.testing.assert_close(out, torch.tensor(expected), rtol=0, atol=3e-7)


def test_two_pass_variance_keeps_its_digits():
    """Spread 2^-9 on an offset of 4096: one-pass float32 variance would be noise."""
    rewards = 4096 + torch.arange(8).float() * 2**-9
    expected = (torch.arange(8).double() - 3.5) / (math.sqrt(6.0) + 1e-6 * 2**9)
    torch.testing.assert_close(ops.group_advantages(rewards, 8).double(), expected,
                               rtol=1e-6, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("steps", SIZES)
@pytest.mark.parametrize("baseline", ["mean", "opo"])
def test_token_rewards_are_summed_and_broadcast(steps, baseline):
    mask = random_mask(14, steps)
    mask[2] = True
    rewards = torch.randn(14, steps)
    out = ops.group_advantages(garbage(mask, rewards), 7, mask=mask, baseline=baseline)
    scores = torch.where(mask, rewards, 0).double().sum(1)
    lengths = mask.sum(1)
    ids = [0] * 7 + [1] * 7
    if baseline == "opo" and int(lengths[7:].sum()) == 0:
        lengths[7:] = 1
    row = brute_force(scores, ids, baseline, "std", 1, 1e-6, "raw", lengths)
    expected = torch.where(mask, row[:, None], 0).float()
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)
    assert (out[~mask] == 0).all()


def test_nan_rewards():
    rewards = torch.tensor([1.0, torch.nan, 0.0, 1.0, 0.0, 1.0, torch.nan, 2.0])
    sizes = torch.tensor([4, 2, 2])
    out = ops.group_advantages(rewards, group_sizes=sizes)
    assert out[:4].isnan().all()
    assert out[6:].isnan().all()
    torch.testing.assert_close(out[4:6], ops.group_advantages(rewards[4:6], 2))
    assert ops.group_advantages(rewards, 8, scale="batch_std", baseline="none").isnan().all()
    ignored = ops.group_advantages(rewards, group_sizes=sizes, nan="ignore")
    kept = ~rewards.isnan()
    alone = ops.group_advantages(rewards[kept], group_sizes=torch.tensor([3, 2, 1]))
    torch.testing.assert_close(ignored[kept], alone)
    assert (ignored[~kept] == 0).all()
    single = torch.tensor([torch.nan])
    assert ops.group_advantages(single, 1, singleton="zero").isnan().all()
    assert ops.group_advantages(single, 1, nan="ignore").item() == 0


def test_group_neighbours_threads_and_padding_change_no_bit():
    rewards = torch.randn(8 * 9000)
    whole = ops.group_advantages(rewards, 8)
    assert torch.equal(ops.group_advantages(rewards[80:160].clone(), 8), whole[80:160])
    assert same_at_any_thread_count(lambda: (ops.group_advantages(rewards, 8),))
    mask = random_mask(64, 1000)
    tokens = torch.randn(64, 1000)
    short = ops.group_advantages(tokens, 8, mask=mask)
    wide_mask = torch.nn.functional.pad(mask, (0, 77))
    wide = torch.nn.functional.pad(tokens, (0, 77), value=torch.nan)
    assert torch.equal(ops.group_advantages(wide, 8, mask=wide_mask)[:, :1000], short)
    assert same_at_any_thread_count(lambda: (ops.group_advantages(tokens, 8, mask=mask),))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 3}, ValueError, "groups must be >= 1 and divide the 8 rows, got 3"),
        ({"groups": 0}, ValueError, "groups must be >= 1"),
        ({"groups": torch.tensor([8])}, TypeError, "groups must be an int.*group_ids= or"),
        ({"groups": True}, TypeError, "groups must be an int"),
        ({}, ValueError, "exactly one of groups, group_ids, group_sizes"),
        ({"groups": 8, "group_ids": torch.zeros(8).long()}, ValueError, "exactly one of"),
        ({"group_ids": torch.zeros(8)}, TypeError, "group_ids must be int64 or int32"),
        ({"group_ids": torch.zeros(7).long()}, ValueError, r"group_ids must have the shape \[8\]"),
        ({"group_ids": [0] * 8}, TypeError, "group_ids must be a torch.Tensor, got list"),
        ({"group_sizes": torch.tensor([4, 3])}, ValueError, "group_sizes must sum to .* 8"),
        ({"group_sizes": torch.tensor([9, -1])}, ValueError, "group_sizes must"),
        ({"group_sizes": torch.tensor([2**62, 2**62])}, ValueError, "group_sizes must sum"),
        ({"groups": 8, "baseline": "median"}, ValueError, "baseline must be one of.*got 'median'"),
        ({"groups": 8, "scale": "var"}, ValueError, "scale must be one of"),
        ({"groups": 8, "ddof": 2}, ValueError, "ddof must be one of 0, 1, got 2"),
        ({"groups": 8, "singleton": "nan"}, ValueError, "singleton must be one of"),
        ({"groups": 8, "nan": "drop"}, ValueError, "nan must be one of"),
        ({"groups": 8, "baseline": "opo"}, ValueError, "lengths must be given for baseline='opo'"),
        (
            {"groups": 8, "mask": torch.ones(8).bool()},
            ValueError,
            r"rewards must have the shape \[N",
        ),
        ({"groups": 8, "rewards": torch.ones(8).long()}, TypeError, "rewards must be float32"),
        (
            {"groups": 8, "rewards": torch.ones(8, 2)},
            ValueError,
            r"rewards must have the shape \[N\]",
        ),
    ],
)
def test_group_advantages_errors_name_the_argument(arguments, error, message):
    arguments = {"rewards": torch.ones(8), **arguments}
    with pytest.raises(error, match=message):
        ops.group_advantages(**arguments)


# ---- whiten


@pytest.mark.parametrize("shape", [(1,), (7,), (63,), (1000,), (3, 4099)])
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_matches_float64(shape, shift_mean):
    values = torch.randn(shape) * 3 + 100
    mask = torch.rand(shape) > 0.3
    mask.view(-1)[0] = True
    out = ops.whiten(garbage(mask, values), mask, shift_mean=shift_mean)
    kept = values[mask].double()
    spread = kept.var(unbiased=True) if kept.numel() > 1 else torch.tensor(0.0).double()
    expected = (kept - kept.mean()) / (spread + 1e-8).sqrt()
    expected = expected if shift_mean else expected + kept.mean()
    torch.testing.assert_close(out[mask].double(), expected, rtol=1e-5, atol=1e-5)
    assert (out[~mask] == 0).all()
    everything = ops.whiten(values.double(), shift_mean=shift_mean)
    torch.testing.assert_close(
        everything, reference.whiten(values.double(), None, shift_mean, 1e-8)
    )


def test_whiten_threads_change_no_bit():
    values, mask = torch.randn(100, 3001), random_mask(100, 3001)
    assert same_at_any_thread_count(lambda: (ops.whiten(values, mask),))


# ---- what all three share

CALLS = {
    "group_advantages": lambda x, mask: (ops.group_advantages(x, 2, mask=mask),),
    "gae": lambda x, mask: ops.gae(x, x + 1, mask, 0.9, 0.8),
    "whiten": lambda x, mask: (ops.whiten(x, mask),),
}
each_op = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@each_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats_are_computed_in_float32(call, dtype):
    x, mask = torch.randn(8, 63).to(dtype), random_mask(8, 63)
    wide = call(x.float(), mask)
    for ours, exact in zip(call(x, mask), wide, strict=True):
        assert ours.dtype == torch.float32
        tolerance = 0.02 if call is CALLS["gae"] else 0  # x + 1 above rounds in half precision
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance)


@each_op
def test_advantages_are_data(call):
    x = torch.randn(8, 7, requires_grad=True)
    for out in call(x, random_mask(8, 7)):
        assert not out.requires_grad
        assert out.grad_fn is None


@each_op
def test_strided_input(call):
    x, mask = torch.randn(64, 10), random_mask(64, 10)
    for ours, dense in zip(
        call(x.t()[:, ::2], mask.t()[:, ::2]),
        call(x.t()[:, ::2].contiguous(), mask.t()[:, ::2].contiguous()),
        strict=True,
    ):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_empty_input(shape):
    empty, mask = torch.ones(shape), torch.ones(shape).bool()
    for out in (*ops.gae(empty, empty, mask), ops.whiten(empty, mask),
                ops.group_advantages(empty, 2, mask=mask)):  # fmt: skip
        assert out.shape == shape
    nothing, no_ids = torch.ones(0), torch.ones(0).long()
    assert ops.group_advantages(nothing, 8).shape == (0,)
    assert ops.group_advantages(nothing, group_ids=no_ids, scale="batch_std").shape == (0,)
    assert ops.group_advantages(nothing, group_sizes=no_ids).shape == (0,)
    assert ops.gae(nothing, nothing, cu_seqlens=torch.tensor([0]))[0].shape == (0,)
    assert ops.gae(nothing, nothing, cu_seqlens=torch.tensor([0, 0, 0]))[1].shape == (0,)


@needs_native
def test_numpy_face_gives_the_same_bits():
    x, v, mask = torch.randn(12, 63), torch.randn(12, 64), random_mask(12, 63)
    x = garbage(mask, x)
    lengths, ids, scores = torch.arange(12) + 1, torch.arange(12) % 5, torch.randn(12)
    flat = torch.tensor([0, 100, 100, 12 * 63])
    face = oneshot.numpy
    pairs = [
        (face.whiten(x, mask), ops.whiten(x, mask)),
        (face.group_advantages(x, 4, mask=mask), ops.group_advantages(x, 4, mask=mask)),
        (
            face.group_advantages(scores, group_ids=ids, lengths=lengths, baseline="opo"),
            ops.group_advantages(scores, group_ids=ids, lengths=lengths, baseline="opo"),
        ),
        *zip(face.gae(x, v, mask, 0.9, 0.8), ops.gae(x, v, mask, 0.9, 0.8), strict=True),
        *zip(
            face.gae(x.ravel(), x.ravel(), mask.ravel(), cu_seqlens=flat, bootstrap=scores[:3]),
            ops.gae(x.ravel(), x.ravel(), mask.ravel(), cu_seqlens=flat, bootstrap=scores[:3]),
            strict=True,
        ),
    ]
    for array, tensor in pairs:
        assert torch.equal(torch.from_numpy(array), tensor)
    with pytest.raises(ValueError, match="group_sizes must sum to the number of rows 12"):
        face.group_advantages(scores, group_sizes=[5, 6])
    with pytest.raises(ValueError, match="cu_seqlens must rise"):
        face.gae(scores, scores, cu_seqlens=[0, 3, 2, 12])
    with pytest.raises(TypeError, match=r"group_ids must be int64 or int32, got torch\.float64"):
        face.group_advantages(scores, group_ids=[0.5] * 12)


def test_opcheck():
    x, mask = torch.randn(6, 9), random_mask(6, 9)
    rule = ("mean", "std", 1, 1e-6, "raw", "propagate")
    check, space = torch.library.opcheck, torch.ops.oneshot
    check(space.whiten.default, (x, mask, True, 1e-8))
    check(space.gae.default, (x, x, mask, x[:, 0], None, 0.9, 0.8))
    check(space.gae.default, (x[0], x[1], None, None, torch.tensor([0, 4, 9]), 0.9, 0.8))
    check(space.group_advantages.default, (x, mask, None, 3, None, None, *rule))
    ids, sizes = torch.arange(6) % 2, torch.tensor([1, 5])
    check(space.group_advantages.default, (x[:, 0], None, ids, 0, ids, None, *rule))
    check(space.group_advantages.default, (x[:, 0], None, None, 0, None, sizes, *rule))


def assert_compiles_once(call, inputs):
    """No graph break, the eager result, and nothing compiled after the first size."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for arguments in inputs:
        for ours, eager in zip(compiled(*arguments), call(*arguments), strict=True):
            assert torch.equal(ours, eager)
        counts.append(counter.frame_count)
    assert counts[0] >= 1
    assert counts == counts[:1] * len(counts)


@each_op
def test_compiles_whole_without_recompiling(call):
    sizes = ((8, 33), (12, 70), (30, 5))
    assert_compiles_once(call, [(torch.randn(size), random_mask(*size)) for size in sizes])


def test_packed_gae_and_ids_compile_without_recompiling():
    def step(x, ids, offsets):
        return *ops.gae(x, x, cu_seqlens=offsets), ops.group_advantages(x, group_ids=ids)

    def arguments(count):
        return torch.randn(count), torch.arange(count) % 3, torch.tensor([0, 4, 9, count])

    assert_compiles_once(step, [arguments(10), arguments(77)])

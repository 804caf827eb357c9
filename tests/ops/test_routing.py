"""The `routing` family against dense float64 adapters, one materialised for every single row."""

import pytest
import torch
from advantage_inputs import same_at_any_thread_count
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import oneshot.numpy
from oneshot import ops
from oneshot._load import native
from oneshot.reference import routing as reference

needs_native = pytest.mark.skipif(native()[0] is None, reason="the native library is off")
HALVES = (torch.bfloat16, torch.float16)


# ---- the oracle: no batching, no einsum over tasks, one dense matrix a row


def dense_adapter(inventory, share, dim):
    """One mixed adapter, head by head, along `dim` of the mixed matrix."""
    blocks = [
        sum(share[h, k] * inventory[h, k] for k in range(inventory.shape[1]))
        for h in range(inventory.shape[0])
    ]
    return torch.cat(blocks, dim)


def oracle(x, lora_a, lora_b, weights, rows, scaling):
    """Scaling * x A_u B_u of every row, through its dense [d_in, d_out] matrix."""
    dense = [dense_adapter(lora_a, w, 0) @ dense_adapter(lora_b, w, 1) for w in weights]
    flat = x.reshape(-1, x.shape[-1])
    every = rows.reshape(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim()))
    every = every.expand(x.shape[:-1]).reshape(-1).tolist()
    out = torch.stack([scaling * row @ dense[u] for row, u in zip(flat, every, strict=True)])
    return out.view(*x.shape[:-1], -1)


def make(shape, *, heads, skills, rank, d_in, d_out, mixtures, dtype=torch.float64):
    return {
        "x": torch.randn(*shape, d_in, dtype=dtype),
        "lora_a": torch.randn(heads, skills, d_in // heads, rank, dtype=dtype) / d_in**0.5,
        "lora_b": torch.randn(heads, skills, rank, d_out // heads, dtype=dtype),
        "weights": torch.rand(mixtures, heads, skills, dtype=dtype),
    }


def value_and_gradients(function, tensors, upstream, **others):
    live = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y = function(**live, **others)
    grads = torch.autograd.grad(y, list(live.values()), upstream.to(y.dtype))
    return y, *grads


def lift(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


CASES = {  # leading shape, dims of rows
    "examples": ((5, 7), 1),
    "one token each": ((9, 1), 1),
    "packed": ((63,), 1),
    "packed in a batch": ((2, 33), 2),
    "four dimensions": ((2, 3, 4), 2),
    "one task": ((3, 5), 0),
    "one row": ((1,), 1),
}
SIZES = [  # heads, skills, rank, d_in, d_out
    (1, 1, 1, 1, 1),
    (1, 4, 3, 63, 7),
    (4, 3, 16, 128, 64),
    (2, 5, 9, 130, 1000),
]


@pytest.mark.parametrize("plan", ["mixtures", "inventory"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("shape", "row_dims"), CASES.values(), ids=CASES.keys())
def test_lora_and_all_its_gradients_match_dense_adapters(shape, row_dims, size, plan):
    heads, skills, rank, d_in, d_out = size
    sizes = {"heads": heads, "skills": skills, "rank": rank, "d_in": d_in, "d_out": d_out}
    exact = make(shape, **sizes, mixtures=3)
    rows = torch.randint(2, shape[:row_dims])  # the last mixture serves no row
    upstream = torch.randn(*shape, d_out, dtype=torch.float64)
    others = {"rows": rows, "scaling": 0.7}
    want = value_and_gradients(oracle, exact, upstream, **others)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        tensors = {name: tensor.to(dtype) for name, tensor in exact.items()}
        got = value_and_gradients(ops.routed_lora, tensors, upstream, **others, plan=plan)
        for ours, right in zip(got, want, strict=True):
            assert ours.dtype == dtype
            error = (ours.double() - right).norm() / right.norm()
            assert error < tolerance


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("adapters", ["half", "float32"])
@pytest.mark.parametrize("plan", ["mixtures", "inventory"])
def test_half_formats(dtype, adapters, plan):
    """Half activations with half or float32 adapters; gradients come back in each one's dtype."""
    tensors = make((6, 9), heads=4, skills=3, rank=8, d_in=64, d_out=92, mixtures=4)
    tensors = {
        name: tensor.to(dtype if name == "x" or adapters == "half" else torch.float32)
        for name, tensor in tensors.items()
    }
    others = {"rows": torch.tensor([3, 0, 1, 1, 0, 3]), "scaling": 2.0}
    upstream = torch.randn(6, 9, 92).to(dtype)
    want = value_and_gradients(oracle, lift(tensors), upstream, **others)
    got = value_and_gradients(ops.routed_lora, tensors, upstream, **others, plan=plan)
    # The kernel rounds once at the end; products in the half format round in between.
    exact = native()[0] is not None and plan == "mixtures"
    tolerance = torch.finfo(dtype).eps * (0.5 if exact else 2)
    for ours, right, given in zip(got, want, (tensors["x"], *tensors.values()), strict=True):
        assert ours.dtype == given.dtype
        assert (ours.double() - right).norm() / right.norm() < tolerance


def test_gradcheck_of_both_plans():
    """Logits to output: routing, mixing and applying in one graph."""
    tensors = make((2, 3), heads=2, skills=3, rank=2, d_in=6, d_out=4, mixtures=1)
    logits = torch.randn(5, 2, 3, dtype=torch.float64)
    base = torch.randn(2, 3, 4, dtype=torch.float64)
    leaves = [tensors["x"], tensors["lora_a"], tensors["lora_b"], logits, base]
    for plan in ("mixtures", "inventory"):

        def call(x, lora_a, lora_b, z, base, plan=plan):
            weights, rows = ops.routing_weights(z, torch.tensor([4, 1]))
            return ops.routed_lora(x, lora_a, lora_b, weights, rows, base=base, plan=plan)

        assert torch.autograd.gradcheck(call, [leaf.requires_grad_() for leaf in leaves])


def test_mixed_adapters_serve_call_after_call():
    """Mixing outside the loop gives the bits of mixing inside, and the same gradients."""
    tensors = make((6, 5), heads=4, skills=3, rank=8, d_in=64, d_out=96, mixtures=3)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    rows, upstream = torch.tensor([2, 0, 1, 0, 2, 2]), torch.randn(6, 5, 96)

    def outside(x, lora_a, lora_b, weights, rows):
        mixed_a = ops.mix_adapters(lora_a, weights, split_dim=-2)
        mixed_b = ops.mix_adapters(lora_b, weights, split_dim=-1)
        assert mixed_a.shape == (3, 64, 8)
        assert mixed_b.shape == (3, 8, 96)
        return ops.routed_lora(x, mixed_a, mixed_b, rows=rows)

    inside = value_and_gradients(ops.routed_lora, tensors, upstream, rows=rows, plan="mixtures")
    for a, b in zip(
        value_and_gradients(outside, tensors, upstream, rows=rows), inside, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["A", "B", "IA3"])
@pytest.mark.parametrize(
    ("heads", "part", "rank"),
    [(1, 1, 1), (3, 7, 5), (2, 700, 3), (16, 4, 63), (2, 96, 16), (3, 40, 32)],
)
def test_mixing_matches_dense_adapters(kind, heads, part, rank):
    shape = {"A": (heads, 4, part, rank), "B": (heads, 4, rank, part), "IA3": (heads, 4, part)}[
        kind
    ]
    dim = -2 if kind == "A" else -1
    exact = {
        "inventory": torch.randn(shape, dtype=torch.float64),
        "weights": torch.rand(5, heads, 4, dtype=torch.float64),
    }

    def dense(inventory, weights):
        return torch.stack([dense_adapter(inventory, w, dim) for w in weights])

    upstream = torch.randn_like(dense(**exact))
    want = value_and_gradients(dense, exact, upstream)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6), (HALVES[0], 4e-3)):
        tensors = {"inventory": exact["inventory"].to(dtype), "weights": exact["weights"].float()}
        if dtype == torch.float64:
            tensors["weights"] = exact["weights"]
        elif dtype == HALVES[0]:
            want = value_and_gradients(dense, lift(tensors), upstream)
        mixed, *grads = value_and_gradients(
            lambda inventory, weights: ops.mix_adapters(inventory, weights, split_dim=dim),
            tensors,
            upstream,
        )
        assert mixed.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for ours, right in zip((mixed, *grads), want, strict=True):
            assert (ours.double() - right).norm() / right.norm() < tolerance


@pytest.mark.parametrize(("shape", "row_dims"), CASES.values(), ids=CASES.keys())
def test_ia3_matches_dense_vectors(shape, row_dims):
    exact = {
        "x": torch.randn(*shape, 12, dtype=torch.float64),
        "inventory": torch.randn(3, 4, 4, dtype=torch.float64),
        "weights": torch.rand(3, 3, 4, dtype=torch.float64),
    }
    rows, upstream = torch.randint(3, shape[:row_dims]), torch.randn(*shape, 12).double()

    def dense(x, inventory, weights, rows):
        vectors = torch.stack([dense_adapter(inventory, w, 0) for w in weights])
        own = vectors[rows]
        return x * own.view(*rows.shape, *(1,) * (x.dim() - 1 - rows.dim()), 12)

    want = value_and_gradients(dense, exact, upstream, rows=rows)
    got = value_and_gradients(ops.routed_ia3, exact, upstream, rows=rows)
    for ours, right in zip(got, want, strict=True):
        torch.testing.assert_close(ours, right)
    half = ops.routed_ia3(
        exact["x"].bfloat16(), exact["inventory"].float(), exact["weights"].float(), rows
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), want[0], rtol=2e-2, atol=2e-2)
    mixed = ops.mix_adapters(exact["inventory"], exact["weights"], split_dim=-1)
    torch.testing.assert_close(ops.routed_ia3(exact["x"], mixed, rows=rows), want[0])


# ---- promises


def saved_bytes(examples, tasks, noise="none"):
    """Bytes that autograd keeps, without x and the parameters."""
    heads, skills, rank, d = 4, 8, 16, 256
    tensors = make(
        (examples, 8), heads=heads, skills=skills, rank=rank, d_in=d, d_out=d, mixtures=1
    )
    leaves = [tensors[name].float().requires_grad_() for name in ("x", "lora_a", "lora_b")]
    logits = torch.zeros(64, heads, skills, requires_grad=True)
    known = {leaf.untyped_storage().data_ptr() for leaf in (*leaves, logits)}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        weights, rows = ops.routing_weights(logits, torch.arange(examples) % tasks, noise=noise)
        y = ops.routed_lora(*leaves, weights, rows, plan="mixtures")
    assert y.requires_grad
    return sum(kept.values()) - examples * 8 * rank * 4  # x A, which every LoRA keeps


def test_saved_memory_grows_with_tasks_not_with_examples():
    """Beyond x A: routing of 4 x 8 numbers a task; an adapter alone is 32768 bytes."""
    few = saved_bytes(examples=8, tasks=2)
    assert few < 4096
    assert saved_bytes(examples=56, tasks=2) - few <= 48 * 8 * 2  # the index
    assert saved_bytes(examples=56, tasks=14) < 7 * few + 48 * 8 * 2
    assert saved_bytes(examples=56, tasks=2, noise="per_example") < 56 * 4 * 8 * 4 * 6


@needs_native
def test_neighbours_and_threads_change_no_bit():
    tensors = make((40, 6), heads=4, skills=3, rank=9, d_in=260, d_out=132, mixtures=5)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    upstream = torch.randn(40, 6, 132)
    others = {"rows": torch.randint(5, (40,)), "plan": "mixtures"}
    together = value_and_gradients(ops.routed_lora, tensors, upstream, **others)
    for example in (0, 17, 39):
        alone = {**tensors, "x": tensors["x"][example]}
        mine = {**others, "rows": others["rows"][example]}
        got = value_and_gradients(ops.routed_lora, alone, upstream[example], **mine)
        assert torch.equal(got[0], together[0][example])
        assert torch.equal(got[1], together[1][example])
    assert same_at_any_thread_count(
        lambda: value_and_gradients(ops.routed_lora, tensors, upstream, **others)
    )


def test_garbage_in_other_rows_stays_there():
    """NaN in a row, and in a mixture no row takes, reach neither other rows nor their gradients."""
    tensors = make((3, 4), heads=2, skills=2, rank=3, d_in=8, d_out=6, mixtures=3)
    tensors["x"][1] = torch.nan
    rows, upstream = torch.tensor([0, 1, 0]), torch.randn(3, 4, 6).double()
    got = value_and_gradients(ops.routed_lora, tensors, upstream, rows=rows, plan="mixtures")
    assert got[0][1].isnan().all()
    assert got[0][[0, 2]].isfinite().all()
    assert got[1].isfinite().all()
    assert got[4][0].isfinite().all()
    assert (got[4][2] == 0).all()


def test_only_what_is_needed_is_computed():
    tensors = make((3, 4), heads=2, skills=2, rank=3, d_in=8, d_out=6, mixtures=2)
    rows, upstream = torch.tensor([0, 1, 1]), torch.randn(3, 4, 6).double()
    every = value_and_gradients(ops.routed_lora, tensors, upstream, rows=rows)[1:]
    for position, name in enumerate(tensors):
        leaf = tensors[name].clone().requires_grad_()
        y = ops.routed_lora(**{**tensors, name: leaf}, rows=rows)
        (grad,) = torch.autograd.grad(y, leaf, upstream)
        torch.testing.assert_close(grad, every[position])


def test_no_second_derivative():
    tensors = make((3,), heads=1, skills=1, rank=1, d_in=2, d_out=2, mixtures=1)
    x = tensors.pop("x").requires_grad_()
    y = ops.routed_lora(x, **tensors)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="routed_lora has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_both_kinds_of_checkpointing(reentrant):
    tensors = make((4, 5), heads=2, skills=3, rank=2, d_in=8, d_out=8, mixtures=2)
    rows, upstream = torch.tensor([1, 0, 0, 1]), torch.randn(4, 5, 8).double()

    def twice(x, lora_a, lora_b, weights, rows):
        y = ops.routed_lora(x, lora_a, lora_b, weights, rows)
        return ops.routed_lora(y, lora_a, lora_b, weights, rows, base=y)

    results = []
    for function in (twice, lambda *inputs: checkpoint(twice, *inputs, use_reentrant=reentrant)):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors.values()]
        y = function(*leaves, rows)
        y.backward(upstream)
        results.append((y, *(leaf.grad for leaf in leaves)))
    for ours, right in zip(*results, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("noise", ["none", "per_task", "per_example"])
def test_compiles_once_for_all_sizes(noise):
    torch._dynamo.reset()
    counter, first = CompileCounterWithBackend("aot_eager"), 0

    def layer(x, lora_a, lora_b, logits, ids):
        weights, rows = ops.routing_weights(logits, ids, noise=noise)
        y = ops.routed_lora(x, lora_a, lora_b, weights, rows, base=x)
        return ops.routed_ia3(y, lora_b[:, :, 0], weights, rows)

    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    # No two sizes of the first call are equal: the compiler would take them for the same symbol.
    adapters = torch.randn(2, 3, 13, 5), torch.randn(2, 3, 5, 13), torch.randn(9, 2, 3)
    for ids, steps in (([3, 1, 3, 0], 7), ([2, 2], 6), ([0, 1, 2, 3, 4, 5], 2)):
        x, ids = torch.randn(len(ids), steps, 26), torch.tensor(ids)
        results = []
        for function in (compiled, layer):
            torch.manual_seed(1)
            leaves = [tensor.clone().requires_grad_() for tensor in (x, *adapters)]
            y = function(*leaves, ids)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    tensors = make((3, 4), heads=2, skills=2, rank=3, d_in=8, d_out=6, mixtures=2, dtype=dtype)
    x, lora_a, lora_b, weights = tensors.values()
    weights, rows, op = weights.float(), torch.tensor([0, 1, 1]), torch.ops.oneshot
    for tensor in (x, lora_a, lora_b, weights):
        tensor.requires_grad_()
    base = torch.randn(3, 4, 6).to(dtype).requires_grad_()
    mixed = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 6, requires_grad=True)
    torch.library.opcheck(op.mix_adapters.default, (lora_a, weights, True))
    torch.library.opcheck(op.mix_adapters.default, (lora_b, weights, False))
    torch.library.opcheck(op.routed_lora.default, (x, lora_a, lora_b, weights, rows, base, 0.5))
    torch.library.opcheck(op.routed_lora.default, (x, *mixed, None, rows, None, 0.5))
    with torch.no_grad():
        shrunk = torch.randn(3, 4, 3)
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        for needs in ((True, True, True, True), (False, True, False, False)):
            torch.library.opcheck(
                op.routed_lora_backward.default,
                (base, x, lora_a, lora_b, weights, rows, shrunk, 0.5, *needs),
                test_utils=checks,
            )
        torch.library.opcheck(
            op.mix_adapters_backward.default,
            (torch.randn(2, 3, 8), lora_a, weights, True, True, False),
            test_utils=checks,
        )


def test_strided_and_empty_input():
    tensors = make((6, 5), heads=2, skills=2, rank=3, d_in=8, d_out=6, mixtures=2)
    x, lora_a, lora_b, weights = tensors.values()
    rows = torch.tensor([0, 1, 1, 0, 1, 0])
    want = ops.routed_lora(x, lora_a, lora_b, weights, rows)
    spread = {
        "x": x.transpose(0, 1).contiguous().transpose(0, 1),
        "lora_a": lora_a.transpose(1, 3).contiguous().transpose(1, 3),
        "lora_b": torch.stack((lora_b, lora_b), -1)[..., 0],
        "weights": weights.transpose(0, 2).contiguous().transpose(0, 2),
        "rows": torch.stack((rows, rows), 1)[:, 0],
    }
    assert not any(tensor.is_contiguous() for tensor in spread.values())
    torch.testing.assert_close(ops.routed_lora(**spread), want)
    for shape in ((0, 5), (6, 0)):
        empty = torch.ones(*shape, 8, dtype=torch.float64, requires_grad=True)
        live = lora_a.clone().requires_grad_()
        y = ops.routed_lora(empty, live, lora_b, weights, rows[: shape[0]], plan="mixtures")
        assert y.shape == (*shape, 6)
        grads = torch.autograd.grad(y.sum(), (empty, live))
        assert grads[0].shape == empty.shape
        assert (grads[1] == 0).all()


def test_auto_takes_the_inventory_plan_only_where_it_is_cheaper(monkeypatch):
    taken = []
    plain = reference.inventory_lora
    monkeypatch.setattr(
        reference, "inventory_lora", lambda *arguments: taken.append(1) or plain(*arguments)
    )
    sizes = {"heads": 2, "skills": 2, "rank": 1, "d_in": 64, "d_out": 64}
    for examples, steps, mixtures, expected in (
        (6, 1, 6, True),  # decoding, more tasks than skills
        (6, 1, 2, False),  # no more tasks than skills
        (6, 50, 6, False),  # many rows for each mixture
    ):
        taken.clear()
        tensors = make((examples, steps), **sizes, mixtures=mixtures)
        ops.routed_lora(**tensors, rows=torch.arange(examples) % mixtures)
        assert bool(taken) == expected, (examples, steps, mixtures)


@needs_native
def test_numpy_face_gives_the_same_bits():
    tensors = make((9,), heads=2, skills=3, rank=5, d_in=34, d_out=18, mixtures=3)
    x, lora_a, lora_b, weights = (tensor.float() for tensor in tensors.values())
    rows, base = torch.randint(3, (9,)), torch.randn(9, 18)
    mixed_a = oneshot.numpy.mix_adapters(lora_a.numpy(), weights.numpy(), split_dim=-2)
    mixed_b = oneshot.numpy.mix_adapters(lora_b.numpy(), weights.numpy(), split_dim=-1)
    for mixed, inventory, dim in ((mixed_a, lora_a, -2), (mixed_b, lora_b, -1)):
        ours = ops.mix_adapters(inventory, weights, split_dim=dim)
        assert torch.equal(torch.from_numpy(mixed), ours)
    y = oneshot.numpy.routed_lora(
        x.numpy(), mixed_a, mixed_b, rows=rows.numpy(), scaling=0.3, base=base.numpy()
    )
    ours = ops.routed_lora(x, lora_a, lora_b, weights, rows, scaling=0.3, base=base)
    assert torch.equal(torch.from_numpy(y), ours)
    vector = oneshot.numpy.mix_adapters(lora_b[:, :, 0].numpy(), weights.numpy(), split_dim=-1)
    assert vector.shape == (3, 18)
    with pytest.raises(ValueError, match="rows must lie in"):
        oneshot.numpy.routed_lora(x.numpy(), mixed_a, mixed_b, rows=rows.numpy() + 3)
    with pytest.raises(ValueError, match="split_dim must be one of -1, got -2"):
        oneshot.numpy.mix_adapters(lora_b[:, :, 0].numpy(), weights.numpy(), split_dim=-2)


# ---- errors


A, B = torch.ones(2, 3, 4, 5), torch.ones(2, 3, 5, 6)
LORA = {"x": torch.ones(4, 8), "lora_a": A, "lora_b": B, "weights": torch.ones(2, 2, 3)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(4, 9)}, ValueError, r"x must have shape \[..., 8\] for lora_a, got \[4"),
        ({"x": torch.ones(4, 8).int()}, TypeError, "x must be float32"),
        ({"x": torch.ones(4, 8).double()}, TypeError, "must be all float64 or none"),
        (
            {"lora_b": torch.ones(2, 3, 4, 6)},
            ValueError,
            r"lora_a must have shape \[H, K, d_in / H",
        ),
        ({"lora_a": A[0]}, ValueError, r"lora_a must have shape \[H, K, d_in / H"),
        (
            {"weights": torch.ones(2, 3, 2)},
            ValueError,
            r"weights must have the shape \[mixtures, 2",
        ),
        ({"weights": torch.ones(2, 2, 3).int()}, TypeError, "weights must be float32"),
        ({"rows": None}, ValueError, "rows must say which of the 2 mixtures in weights"),
        (
            {"rows": torch.zeros(3).long()},
            ValueError,
            r"rows must have the leading dimensions of x",
        ),
        ({"rows": torch.zeros(4, 8).long()}, ValueError, "rows must have the leading dimensions"),
        ({"rows": torch.zeros(4)}, TypeError, "rows must be int64 or int32, got torch.float32"),
        ({"base": torch.ones(4, 11)}, ValueError, r"base must have shape \[4, 12\]"),
        ({"base": torch.ones(4, 12).half()}, ValueError, "base must have .* the dtype of x"),
        ({"plan": "merged"}, ValueError, "plan must be one of 'auto', 'mixtures', 'inventory'"),
        ({"weights": None}, ValueError, r"without weights, lora_a must be mixed adapters \[U"),
        (
            {"weights": None, "lora_a": A[0], "lora_b": B[0], "plan": "inventory"},
            ValueError,
            "plan='inventory' needs weights|x must have shape",
        ),
    ],
)
def test_routed_lora_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.routed_lora(**{**LORA, "rows": torch.zeros(4).long(), **arguments})


@needs_native
@pytest.mark.parametrize("bad", [-1, 2])
def test_rows_outside_the_mixtures_are_refused(bad):
    rows = torch.tensor([0, 1, bad, 0])
    with pytest.raises(ValueError, match=rf"rows must lie in \[0, 2\), got {bad} at place 2"):
        ops.routed_lora(**LORA, rows=rows, plan="mixtures")


def test_heads_must_divide_the_features():
    """Ten features and two heads of four cannot meet; PEFT notices in the reshape of forward."""
    with pytest.raises(ValueError, match=r"x must have shape \[..., 8\]"):
        ops.routed_lora(torch.ones(4, 10), A, B, torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match=r"x must have shape \[..., 12\]"):
        ops.routed_ia3(torch.ones(4, 13), B[:, :, 0], torch.ones(1, 2, 3))


@pytest.mark.parametrize(
    ("inventory", "split_dim", "message"),
    [
        (A, 0, "split_dim must be one of -1, -2, got 0"),
        (A[..., 0], -2, "split_dim must be one of -1, got -2"),
        (A[0, 0], -1, r"inventory must have shape \[H, K, d\] or \[H, K, p, q\]"),
    ],
)
def test_mix_adapters_errors_name_the_argument(inventory, split_dim, message):
    with pytest.raises(ValueError, match=message):
        ops.mix_adapters(inventory, torch.ones(1, 2, 3), split_dim=split_dim)

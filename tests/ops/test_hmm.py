"""Log-likelihood and posteriors against every path, a log-space oracle and themselves."""

import pytest
import torch
from hmm_oracle import (
    FLOATS,
    INF,
    TRANS,
    by_enumeration,
    cast,
    check_log_likelihood,
    check_posteriors,
    leaves,
    make,
    matrices,
    posteriors,
    rows,
    same,
)

from oneshot import ops

EVERYTHING = {"xi": True, "xi_sum": True}


# Values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", TRANS)
@pytest.mark.parametrize(("steps", "states"), [(1, 1), (1, 4), (5, 1), (2, 3), (6, 4), (8, 2)])
def test_every_path(steps, states, kind, final, dtype):
    for forbidden in (0.0, 0.3):
        inputs = make(6, steps, states, kind, final=final, dtype=dtype, forbidden=forbidden)
        check_posteriors(
            ops.hmm_posteriors(**inputs, **EVERYTHING), posteriors(inputs, by_enumeration)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize("states", [1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 129])
def test_every_width(states, kind, dtype):
    inputs = make(5, 23, states, kind, dtype=dtype)
    check_posteriors(ops.hmm_posteriors(**inputs, **EVERYTHING), posteriors(inputs))


@pytest.mark.parametrize("states", range(1, 66))
def test_every_number_of_states(states):
    """Rows of one and of two vectors are compiled for each number."""
    inputs = make(3, 11, states, "token")
    check_posteriors(ops.hmm_posteriors(**inputs, **EVERYTHING), posteriors(inputs))


@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize(("batch", "steps", "states"), [(3, 1000, 7), (1, 1000, 17), (2, 4, 512)])
def test_long_and_wide(batch, steps, states, kind):
    inputs = make(batch, steps, states, kind)
    if batch > 1:
        inputs["lengths"][:2] = torch.tensor([steps, steps - 1])
    check_posteriors(ops.hmm_posteriors(**inputs, **EVERYTHING), posteriors(inputs))


def test_many_sequences_share_one_matrix():
    """Wide enough for a matrix product over the batch."""
    inputs = make(70, 9, 65, "shared")
    check_posteriors(ops.hmm_posteriors(**inputs, **EVERYTHING), posteriors(inputs))


def test_what_is_not_asked_for_is_none():
    inputs = make(3, 5, 4)
    full = ops.hmm_posteriors(**inputs, **EVERYTHING)
    for xi in (False, True):
        for xi_sum in (False, True):
            some = ops.hmm_posteriors(**inputs, xi=xi, xi_sum=xi_sum)
            for name, asked in (("xi", xi), ("xi_sum", xi_sum)):
                value = getattr(some, name)
                assert (value is not None) == asked
                if name == "xi" and asked:
                    same(value, full.xi)
                elif asked:  # summed as it goes, or from the xi that is there: rounded otherwise
                    torch.testing.assert_close(value, full.xi_sum, rtol=1e-6, atol=1e-6)
            same(some.gamma, full.gamma)
            same(some.log_likelihood, full.log_likelihood)
    check_log_likelihood(ops.hmm_log_likelihood(**inputs), posteriors(inputs).log_likelihood, 5)


@pytest.mark.parametrize("kind", TRANS)
def test_no_sequences(kind):
    inputs = make(0, 5, 3, kind)
    copy, tensors = leaves(inputs)
    result = ops.hmm_posteriors(**copy, **EVERYTHING)
    assert [list(x.shape) for x in result] == [[0], [0, 5, 3], [0, 4, 3, 3], [0, 3, 3]]
    sum(x.sum() for x in result).backward()
    ops.hmm_log_likelihood(**copy).sum().backward()
    for x in tensors:
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_empty_and_single_step_sequences():
    inputs = make(3, 4, 5)
    inputs["lengths"] = torch.tensor([0, 1, 4])
    result = ops.hmm_posteriors(**inputs, **EVERYTHING)
    assert result.log_likelihood[0] == 0
    for value in result[1:]:
        assert (value[0] == 0).all()
    assert (result.xi[1] == 0).all()
    assert (result.xi_sum[1] == 0).all()
    scores = (inputs["log_init"] + inputs["log_emit"][:, 0] + inputs["log_final"])[1].double()
    torch.testing.assert_close(result.gamma[1, 0].double(), scores.softmax(0), rtol=0, atol=1e-6)
    assert (result.gamma[1, 1:] == 0).all()
    nothing = {**inputs, "lengths": torch.zeros(3, dtype=torch.int64)}
    for value in ops.hmm_posteriors(**nothing, **EVERYTHING):
        assert (value == 0).all()


# Identities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [3, 17, 64])
def test_posteriors_are_consistent(states):
    inputs = make(4, 60, states)
    _, gamma, xi, xi_sum = ops.hmm_posteriors(**inputs, **EVERYTHING)
    inside = torch.arange(60) < inputs["lengths"][:, None]
    tolerance = {"rtol": 0, "atol": 4e-6}
    torch.testing.assert_close(gamma.sum(2), inside.float(), **tolerance)
    pairs = inside[:, 1:, None]
    torch.testing.assert_close(xi.sum(3), torch.where(pairs, gamma[:, :-1], 0), **tolerance)
    torch.testing.assert_close(xi.sum(2), torch.where(pairs, gamma[:, 1:], 0), **tolerance)
    torch.testing.assert_close(xi.sum(1), xi_sum, rtol=4e-6, atol=4e-6)


def test_a_constant_added_to_a_step_moves_log_z_alone():
    inputs = make(4, 30, 9, dtype=torch.float64, ragged=False)
    plain = ops.hmm_posteriors(**inputs, **EVERYTHING)
    edges, nodes = torch.randn(4, 29) * 100, torch.randn(4, 30) * 100
    moved = ops.hmm_posteriors(
        **{
            **inputs,
            "log_trans": inputs["log_trans"] + edges[:, :, None, None].double(),
            "log_emit": inputs["log_emit"] + nodes[:, :, None].double(),
        },
        **EVERYTHING,
    )
    offset = edges.double().sum(1) + nodes.double().sum(1)
    torch.testing.assert_close(moved.log_likelihood, plain.log_likelihood + offset)
    for a, b in zip(moved[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_renaming_the_states():
    inputs = make(3, 20, 11, dtype=torch.float64)
    order = torch.randperm(11)
    renamed = {
        **inputs,
        "log_init": inputs["log_init"][:, order],
        "log_trans": inputs["log_trans"][:, :, order][:, :, :, order],
        "log_emit": inputs["log_emit"][:, :, order],
        "log_final": inputs["log_final"][:, order],
    }
    plain, ours = (ops.hmm_posteriors(**x, **EVERYTHING) for x in (inputs, renamed))
    torch.testing.assert_close(ours.log_likelihood, plain.log_likelihood)
    torch.testing.assert_close(ours.gamma, plain.gamma[:, :, order])
    torch.testing.assert_close(ours.xi, plain.xi[:, :, order][:, :, :, order])


def test_reading_backwards():
    inputs = make(3, 20, 6, dtype=torch.float64, ragged=False)
    reverse = {
        **inputs,
        "log_init": inputs["log_final"],
        "log_trans": inputs["log_trans"].flip(1).mT,
        "log_emit": inputs["log_emit"].flip(1),
        "log_final": inputs["log_init"],
    }
    plain, ours = (ops.hmm_posteriors(**x, **EVERYTHING) for x in (inputs, reverse))
    torch.testing.assert_close(ours.log_likelihood, plain.log_likelihood)
    torch.testing.assert_close(ours.gamma, plain.gamma.flip(1))
    torch.testing.assert_close(ours.xi, plain.xi.flip(1).mT)


def test_a_chain_cut_in_two():
    """Z = sum over states at the cut of Z(left part ends there) Z(right part starts there)."""
    inputs = make(1, 31, 5, dtype=torch.float64, ragged=False)
    cut, states = 12, 5
    here = torch.full((states, states), -INF, dtype=torch.float64).fill_diagonal_(0)
    left = ops.hmm_log_likelihood(
        inputs["log_init"].expand(states, -1),
        inputs["log_trans"][:, : cut - 1].expand(states, -1, -1, -1),
        inputs["log_emit"][:, :cut].expand(states, -1, -1),
        log_final=here,
    )
    right = ops.hmm_log_likelihood(
        inputs["log_trans"][0, cut - 1],
        inputs["log_trans"][:, cut:].expand(states, -1, -1, -1),
        inputs["log_emit"][:, cut:].expand(states, -1, -1),
        log_final=inputs["log_final"].expand(states, -1),
    )
    whole = ops.hmm_log_likelihood(**inputs)
    torch.testing.assert_close((left + right).logsumexp(0)[None], whole)


# What must not matter ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANS)
@pytest.mark.parametrize("states", [5, 17, 65])
def test_neighbours_and_padding_change_no_bit(states, kind):
    inputs = make(9, 21, states, kind)
    together = ops.hmm_posteriors(**inputs, **EVERYTHING)
    order = torch.randperm(9)
    shuffled = ops.hmm_posteriors(**rows(inputs, order), **EVERYTHING)
    for a, b in zip(shuffled, together, strict=True):
        same(a, b[order])
    for b, n in enumerate(inputs["lengths"].tolist()):
        alone = {**rows(inputs, slice(b, b + 1)), "lengths": None}
        if n == 0:
            continue
        alone["log_emit"] = alone["log_emit"][:, :n]
        if kind == "step":
            alone["log_trans"] = alone["log_trans"][: n - 1]
        elif kind in ("token", "one_sequence"):
            alone["log_trans"] = alone["log_trans"][:, : n - 1]
        result = ops.hmm_posteriors(**alone, **EVERYTHING)
        same(result.log_likelihood, together.log_likelihood[b : b + 1])
        same(result.gamma, together.gamma[b : b + 1, :n])
        same(result.xi, together.xi[b : b + 1, : n - 1])
        same(result.xi_sum, together.xi_sum[b : b + 1])


@pytest.mark.parametrize("states", [8, 16, 17, 24, 32, 48, 64])
def test_a_sequence_longer_than_the_cache_has_the_same_bits_with_and_without_pairs(states):
    """Without xi to keep them in, the CPU makes such exponentials twice (where rows are whole)."""
    inputs = make(2, 2**18 // states**2 + 3, states, "token")
    inputs["lengths"] = None
    without = ops.hmm_posteriors(**inputs)
    kept = ops.hmm_posteriors(**inputs, **EVERYTHING)
    same(without.log_likelihood, kept.log_likelihood)
    same(without.gamma, kept.gamma)
    summed = ops.hmm_posteriors(**inputs, xi_sum=True)
    same(summed.gamma, kept.gamma)
    torch.testing.assert_close(summed.xi_sum, kept.xi_sum, rtol=1e-5, atol=1e-5)
    exact = ops.hmm_posteriors(**cast(inputs, torch.float64), xi=True)
    torch.testing.assert_close(kept.gamma.double(), exact.gamma, rtol=0, atol=2e-6)
    torch.testing.assert_close(kept.xi.double(), exact.xi, rtol=0, atol=2e-6)


@pytest.mark.parametrize("states", [5, 8, 9, 16, 17, 33])
def test_a_batch_larger_than_the_cache_has_the_bits_of_its_sequences(states):
    """Beyond 2 MB of matrices the CPU asks for memory ahead of time."""
    batch = 2**19 // (40 * states**2) + 1
    inputs = make(batch, 41, states, "token")
    together = ops.hmm_posteriors(**inputs, **EVERYTHING)
    some = torch.tensor([0, batch // 2, batch - 1])
    alone = ops.hmm_posteriors(**rows(inputs, some), **EVERYTHING)
    for a, b in zip(alone, together, strict=True):
        same(a, b[some])


@pytest.mark.parametrize(("batch", "steps", "states"), [(13, 40, 9), (1, 700, 8), (6, 12, 65)])
@pytest.mark.parametrize("kind", ["shared", "token"])
def test_any_number_of_threads_gives_the_same_bits(batch, steps, states, kind):
    inputs = make(batch, steps, states, kind)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        copy, tensors = leaves(inputs)
        result = ops.hmm_posteriors(**copy, **EVERYTHING)
        loss = result.log_likelihood.sum() + (result.gamma**2).sum() + (result.xi**2).sum()
        results.append((*result, *torch.autograd.grad(loss, tensors)))
    torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        same(a.detach(), b.detach())


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_strides_change_no_bit_and_nothing_is_written(kind):
    inputs = make(4, 13, 9, kind)
    scattered = {}
    for name, x in inputs.items():
        if not isinstance(x, torch.Tensor):
            scattered[name] = x
            continue
        wide = torch.full((*(2 * s for s in x.shape),), 7, dtype=x.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in x.shape)]
        scattered[name] = view.copy_(x)
    scattered["log_emit"] = inputs["log_emit"].transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "token":
        scattered["log_trans"] = inputs["log_trans"].mT.contiguous().mT
    results = []
    for version in (inputs, scattered):
        copy = {k: v.detach().requires_grad_() if k in FLOATS else v for k, v in version.items()}
        result = ops.hmm_posteriors(**copy, **EVERYTHING)
        loss = result.log_likelihood.sum() + (result.gamma**2).sum() + (result.xi**2).sum()
        results.append((*result, *torch.autograd.grad(loss, [copy[k] for k in FLOATS])))
    for a, b in zip(*results, strict=True):
        same(a.detach(), b.detach())
    for name, x in inputs.items():
        if isinstance(x, torch.Tensor):
            assert torch.equal(scattered[name], x)


def test_expanded_matrices_equal_real_ones():
    """Stride 0 over batch and steps: the same as a copy, and as the broadcast form."""
    inputs = make(3, 11, 6, "shared", ragged=False)
    shared = ops.hmm_posteriors(**inputs, **EVERYTHING)
    expanded = {**inputs, "log_trans": matrices(inputs)}
    copied = {**inputs, "log_trans": matrices(inputs).contiguous()}
    a, b = (ops.hmm_posteriors(**x, **EVERYTHING) for x in (expanded, copied))
    for x, y, z in zip(a, b, shared, strict=True):
        same(x, y)
        torch.testing.assert_close(x, z, rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_formats_are_computed_in_float32(dtype):
    inputs = cast(make(4, 15, 7), dtype)
    copy, tensors = leaves(inputs)
    wide, wide_tensors = leaves(cast(inputs, torch.float32))
    results = []
    for x in (copy, wide):
        result = ops.hmm_posteriors(**x, **EVERYTHING)
        (result.log_likelihood.sum() + (result.gamma**2).sum() + (result.xi**2).sum()).backward()
        results.append(result)
    for a, b in zip(*results, strict=True):
        same(a.detach(), b.detach())
    for a, b in zip(tensors, wide_tensors, strict=True):
        assert a.grad.dtype == dtype
        same(a.grad, b.grad.to(dtype))


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"log_emit": torch.ones(3, 4, 2).long()}, TypeError, "log_emit must be float"),
        ({"log_emit": torch.zeros(4, 2)}, ValueError, r"log_emit .*\[B, T, K\].*\[4, 2\]"),
        ({"log_emit": torch.zeros(3, 0, 2)}, ValueError, "T, K >= 1"),
        ({"log_emit": torch.zeros(3, 4, 0)}, ValueError, "T, K >= 1"),
        ({"log_init": torch.zeros(2).double()}, TypeError, "log_init and log_emit must be both"),
        ({"log_init": torch.zeros(3)}, ValueError, r"log_init .*\[2\] or \[3, 2\].*got \[3\]"),
        ({"log_init": torch.zeros(1, 2)}, ValueError, r"log_init .*got \[1, 2\]"),
        ({"log_final": torch.zeros(4, 2)}, ValueError, r"log_final .*got \[4, 2\]"),
        ({"log_final": torch.zeros(2).double()}, TypeError, "log_final and log_emit must be both"),
        ({"log_trans": torch.zeros(2, 2).double()}, TypeError, "log_trans and log_emit must be"),
        ({"log_trans": torch.zeros(2, 3)}, ValueError, r"log_trans must have .*got \[2, 3\]"),
        ({"log_trans": torch.zeros(3, 2, 2)}, ValueError, "pass trans_axis='sequence' if"),
        ({"log_trans": torch.zeros(2)}, ValueError, r"\[K, K\] or .*got \[2\]"),
        ({"log_trans": torch.zeros(2, 3, 2, 2)}, ValueError, r"got \[2, 3, 2, 2\]"),
        ({"log_trans": torch.zeros(3, 4, 2, 2)}, ValueError, r"1\|T-1.*got \[3, 4, 2, 2\]"),
        ({"log_trans": torch.zeros(2, 2, 2), "trans_axis": "step"}, ValueError,
         r"\[T-1, K, K\].*got \[2, 2, 2\]"),
        ({"log_trans": torch.zeros(4, 2, 2), "trans_axis": "sequence"}, ValueError,
         r"\[B, K, K\].*got \[4, 2, 2\]"),
        ({"trans_axis": "sequence"}, ValueError, r"\[B, K, K\].*got \[2, 2\]"),
        ({"trans_axis": "batch"}, ValueError, "trans_axis must be one of None, 'sequence', 'step'"),
        ({"lengths": torch.ones(3)}, TypeError, "lengths must be int64 or int32"),
        ({"lengths": torch.ones(2, dtype=torch.int64)}, ValueError, r"lengths .*\[3\].*got \[2\]"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "log_init": torch.zeros(2),
        "log_trans": torch.zeros(2, 2),
        "log_emit": torch.zeros(3, 4, 2),
        **change,
    }
    for function in (ops.hmm_log_likelihood, ops.hmm_posteriors, ops.hmm_viterbi, ops.hmm_entropy):
        with pytest.raises(error, match=message):
            function(**arguments)
    with pytest.raises(error, match=message):
        ops.hmm_sample(**arguments, seed=0)


@pytest.mark.parametrize("value", [-1, 5, 2**40])
def test_a_length_outside_the_steps_is_named(value):
    arguments = (torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 4, 2))
    lengths = torch.tensor([4, 0, value])
    message = rf"lengths must lie in \[0, 4\], got {value} for sequence 2"
    for function in (ops.hmm_log_likelihood, ops.hmm_posteriors, ops.hmm_viterbi, ops.hmm_entropy):
        with pytest.raises(RuntimeError, match=message):
            function(*arguments, lengths)
    with pytest.raises(RuntimeError, match=message):
        ops.hmm_sample(*arguments, lengths, seed=0)

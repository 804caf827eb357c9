"""LinearChainCRF against the enumeration of all paths, and against torch-struct if installed."""

import warnings

import pytest
import torch
from chain_oracle import Enumeration, edge_chains, padded

from oneshot.integrations.torch_struct import LinearChain, LinearChainCRF, Parts

LENGTHS = [6, 1, 2, 5]
SHAPE = (4, 5, 3, 3)  # B, N-1, C, C
PROPERTIES = ("partition", "marginals", "entropy", "max", "argmax", "count")


@pytest.fixture(scope="module")
def torch_struct():
    return pytest.importorskip("torch_struct", reason="torch-struct is not installed")


def garbage(edges, lengths=LENGTHS):
    """`edges` with NaN past the lengths."""
    past = torch.arange(edges.shape[1]) >= torch.tensor(lengths)[:, None] - 1
    return edges.masked_fill(past[..., None, None], torch.nan)


def theirs(torch_struct, edges, lengths=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it defines no arg_constraints
        return torch_struct.LinearChainCRF(edges, lengths)


def best_edges(oracle, size):
    """The best path of an enumeration as parts."""
    parts = torch.zeros(size, oracle.states, oracle.states, dtype=torch.float64)
    for t, (source, destination) in enumerate(zip(oracle.best[:-1], oracle.best[1:], strict=True)):
        parts[t, destination, source] = 1
    return parts


def test_everything_equals_enumeration():
    edges = torch.randn(SHAPE, dtype=torch.float64)
    edges[0, 2, 1, 0] = edges[3, 0, 2, :] = -torch.inf
    leaf, exact = edges.clone().requires_grad_(), edges.clone().requires_grad_()
    chain = LinearChainCRF(garbage(leaf), torch.tensor(LENGTHS))
    oracles = edge_chains(exact, LENGTHS)
    wants = {
        "partition": torch.stack([x.log_partition for x in oracles]),
        "entropy": torch.stack([x.entropy for x in oracles]),
        "max": torch.stack([x.score.amax() for x in oracles]),
        "count": torch.stack([(~x.score.isneginf()).sum() for x in oracles]).double(),
        "marginals": padded([x.xi.mT for x in oracles], SHAPE[1]),
        "argmax": torch.stack([best_edges(x, SHAPE[1]) for x in oracles]),
    }
    assert set(wants) == set(PROPERTIES)
    for name, want in wants.items():
        got = getattr(chain, name)
        torch.testing.assert_close(got, want)
        assert got.requires_grad == want.requires_grad
        if not want.requires_grad:
            continue
        cotangent = torch.randn(want.shape, dtype=torch.float64)
        (grad,) = torch.autograd.grad(got, leaf, cotangent, retain_graph=True)
        (expect,) = torch.autograd.grad(want, exact, cotangent, retain_graph=True)
        torch.testing.assert_close(grad, expect)
    assert chain.mode is chain.argmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergences_equal_enumeration(dtype):
    edges, other = torch.randn(2, *SHAPE, dtype=torch.float64)
    edges[0, 2, 1, 0] = other[0, 2, 1, 0] = -torch.inf  # impossible for both
    edges[3, 1, 0, 0] = -torch.inf  # impossible for the first alone
    exact = edges.clone().requires_grad_(), other.clone().requires_grad_()
    leaves = edges.to(dtype).requires_grad_(), other.to(dtype).requires_grad_()
    p, q = (LinearChainCRF(garbage(leaf), torch.tensor(LENGTHS)) for leaf in leaves)
    cross, divergence = [], []
    for one, two in zip(*(edge_chains(x, LENGTHS) for x in exact), strict=True):
        reached = one.probability > 0
        log_p = (one.score - one.log_partition)[reached]
        log_q = (two.score - two.log_partition)[reached]
        cross.append(-(one.probability[reached] * log_q).sum())
        divergence.append((one.probability[reached] * (log_p - log_q)).sum())
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for got, want in ((p.cross_entropy(q), cross), (p.kl(q), divergence)):
        want = torch.stack(want)
        torch.testing.assert_close(got.double(), want, **tolerance)
        cotangent = torch.randn(4, dtype=torch.float64)
        grads = torch.autograd.grad(got, leaves, cotangent.to(dtype), retain_graph=True)
        expects = torch.autograd.grad(want, exact, cotangent, retain_graph=True)
        for grad, expect in zip(grads, expects, strict=True):
            torch.testing.assert_close(grad.double(), expect, **tolerance)
    assert q.kl(p)[3] == torch.inf  # q goes where p cannot
    torch.testing.assert_close(p.kl(p), torch.zeros(4, dtype=dtype), atol=1e-6, rtol=0)


def test_log_prob_and_sample_in_parts():
    edges = torch.randn(SHAPE, dtype=torch.float64)
    chain = LinearChainCRF(garbage(edges), torch.tensor(LENGTHS))
    oracles = edge_chains(edges, LENGTHS)
    paths = oracles[0].paths
    parts = Parts.to_parts(paths.unsqueeze(1).expand(-1, 4, -1), 3, chain.lengths)
    got = chain.log_prob(parts)
    assert got.shape == (len(paths), 4)
    torch.testing.assert_close(got[:, 0], oracles[0].score - oracles[0].log_partition)
    torch.testing.assert_close(
        got[:, 1], torch.full((len(paths),), -torch.tensor(3.0).log().item(), dtype=torch.float64)
    )
    parts[:, 2, 1:] = 1  # past its length nothing counts
    assert torch.equal(chain.log_prob(parts), got)

    draws = chain.sample((2, 1500), seed=0)
    assert draws.shape == (2, 1500, *SHAPE)
    assert draws.dtype == edges.dtype
    torch.testing.assert_close(draws.mean((0, 1)), chain.marginals, atol=0.04, rtol=0)
    assert (draws.sum((-1, -2, -3)) == torch.tensor(LENGTHS) - 1).all()
    mean = chain.log_prob(draws[0]).mean(0)
    torch.testing.assert_close(mean[0], -chain.entropy[0], atol=0.2, rtol=0)


@pytest.mark.parametrize("lengths", [None, [6, 4, 2]])
def test_parts_and_back(lengths):
    sequence = torch.randint(4, (2, 3, 6))
    lengths = None if lengths is None else torch.tensor(lengths)
    parts = Parts.to_parts(sequence, 4, lengths)
    assert parts.shape == (2, 3, 5, 4, 4)
    for where in parts.nonzero().tolist():
        a, b, t, destination, source = where
        assert (sequence[a, b, t], sequence[a, b, t + 1]) == (source, destination)
    ends = [6, 6, 6] if lengths is None else lengths.tolist()
    assert parts.sum((-1, -2, -3)).tolist() == [[end - 1 for end in ends]] * 2
    found, states = Parts.from_parts(parts.double())
    assert states == 4
    inside = torch.arange(6) < torch.tensor(ends)[:, None]
    assert torch.equal(found, torch.where(inside, sequence, 0))


def test_parts_refuse_unknown_states():
    with pytest.raises(ValueError, match=r"sequence must lie in \[0, 2\) within the length"):
        Parts.to_parts(torch.tensor([[0, 2]]), 2)
    past = Parts.to_parts(torch.tensor([[0, 1, 99]]), 2, torch.tensor([2]))
    assert past.sum() == 1


def test_the_caller_s_tensor_stays_as_it_was():
    edges = torch.randn(SHAPE)
    before = edges.clone()
    chain = LinearChainCRF(edges, torch.tensor(LENGTHS))
    for name in PROPERTIES:
        assert not getattr(chain, name).requires_grad
    chain.sample((2,))
    chain.kl(LinearChainCRF(torch.randn(SHAPE)))
    assert not edges.requires_grad
    assert torch.equal(edges, before)


def test_one_token_and_no_full_sequence():
    """Torch-struct raises for both."""
    single = LinearChainCRF(torch.randn(2, 0, 5, 5))
    torch.testing.assert_close(single.partition, torch.full((2,), 5.0).log())
    torch.testing.assert_close(single.entropy, torch.full((2,), 5.0).log())
    assert single.count.tolist() == [5, 5]
    assert single.argmax.shape == single.sample().shape == (2, 0, 5, 5)
    edges = torch.randn(SHAPE)
    short = LinearChainCRF(edges, torch.tensor([3, 1, 2, 2]))
    cut = LinearChainCRF(edges[:, :2], torch.tensor([3, 1, 2, 2]))
    assert torch.equal(short.partition, cut.partition)


def test_an_impossible_sequence():
    edges = torch.randn(SHAPE)
    edges[1, 3] = -torch.inf
    leaf = edges.clone().requires_grad_()
    chain = LinearChainCRF(leaf)
    assert chain.partition[1] == chain.max[1] == -torch.inf
    for value in (chain.marginals, chain.argmax, chain.sample(), chain.count, chain.entropy):
        assert (value[1] == 0).all()
        assert value[0].any()
    parts = Parts.to_parts(torch.zeros(4, 6, dtype=torch.int64), 3)
    for no_path in (parts, torch.zeros(SHAPE)):
        assert chain.log_prob(no_path)[1] == -torch.inf
    (chain.partition[0] + chain.entropy.sum() + chain.marginals.sum()).backward()
    assert (leaf.grad[1] == 0).all()
    assert leaf.grad.isfinite().all()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"log_potentials .*\[B, N-1, C, C\], got \[2, 3, 4, 5\]"):
        LinearChainCRF(torch.randn(2, 3, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 6, 4, 4), (5, 16, 7, 7), (2, 63, 3, 3)])
def test_numbers_of_torch_struct(torch_struct, shape, dtype):
    batch, count = shape[:2]
    lengths = torch.randint(1, count + 2, (batch,))
    lengths[0] = count + 1
    edges = torch.randn(shape, dtype=dtype)
    mine, other = edges.clone().requires_grad_(), edges.clone().requires_grad_()
    ours, reference = LinearChainCRF(mine, lengths), theirs(torch_struct, other, lengths)
    # float32: their log-space tree; ours is held to the enumeration above
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    for name in PROPERTIES:
        got, want = getattr(ours, name), getattr(reference, name)
        torch.testing.assert_close(got, want.to(got.dtype), **tolerance)
        if name in ("argmax", "count"):
            continue
        cotangent = torch.randn_like(want)
        (grad,) = torch.autograd.grad(got, mine, cotangent, retain_graph=True)
        (expect,) = torch.autograd.grad(want, other, cotangent, retain_graph=True)
        torch.testing.assert_close(grad, expect, **tolerance)

    second = torch.randn(shape, dtype=dtype)
    pairs = LinearChainCRF(second, lengths), theirs(torch_struct, second.clone(), lengths)
    for name in ("kl", "cross_entropy"):
        got, want = getattr(ours, name)(pairs[0]), getattr(reference, name)(pairs[1])
        torch.testing.assert_close(got, want, **tolerance)
    draws = ours.sample((3,))
    got, want = ours.log_prob(draws), reference.log_prob(draws)
    torch.testing.assert_close(got, want, **tolerance)
    assert (ours.batch_shape, ours.event_shape) == (reference.batch_shape, reference.event_shape)


def test_parts_of_torch_struct(torch_struct):
    sequence, lengths = torch.randint(4, (3, 6)), torch.tensor([6, 4, 2])
    want = torch_struct.LinearChain.to_parts(sequence, 4, lengths)
    assert torch.equal(LinearChainCRF.struct.to_parts(sequence, 4, lengths), want)
    back, states = torch_struct.LinearChain.from_parts(want)
    found, ours = LinearChainCRF.struct.from_parts(want)
    assert (ours, found.tolist()) == (states, back.tolist())


def test_hmm_of_torch_struct_needs_no_folding(torch_struct):
    """Its HMM takes transitions destination first; ours takes initial and emissions as they are."""
    init, transition = torch.randn(3).log_softmax(0), torch.randn(3, 3).log_softmax(0)
    emission, observed = torch.randn(11, 3).log_softmax(0), torch.randint(11, (4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = torch_struct.HMM(transition, emission, init, observed)
    ours = LinearChain(init, transition.T, emission[observed])
    torch.testing.assert_close(ours.log_partition, want.partition)
    torch.testing.assert_close(ours.edge_marginals.mT, want.marginals, atol=1e-5, rtol=1e-4)
    exact = Enumeration(
        init.double(), transition.T.double().expand(5, 3, 3), emission[observed[0]].double()
    )
    torch.testing.assert_close(ours.entropy[0].double(), exact.entropy, atol=1e-6, rtol=1e-6)


def test_divergence_of_nearly_equal_chains_keeps_its_digits():
    """The partitions are some 10^4, the divergence 10^-7."""
    edges = torch.randn(3, 1999, 4, 4) * 5
    nudged = edges + 1e-5 * torch.randn_like(edges)
    mine, other = LinearChainCRF(edges), LinearChainCRF(nudged)
    wide, other_wide = LinearChainCRF(edges.double()), LinearChainCRF(nudged.double())
    got = mine.kl(other)
    assert (got > 0).all()
    torch.testing.assert_close(got.double(), wide.kl(other_wide), rtol=1e-5, atol=0)
    # To second order half the variance of the score difference: by finite differences of KL.
    twice = LinearChainCRF(edges.double() + 2 * (nudged.double() - edges.double()))
    torch.testing.assert_close(wide.kl(twice) / 4, wide.kl(other_wide), rtol=1e-3, atol=0)
    assert (mine.kl(mine) == 0).all()
    torch.testing.assert_close(mine.cross_entropy(mine), mine.entropy, rtol=1e-5, atol=1e-5)


def test_log_prob_of_parts_is_never_above_zero():
    edges = torch.zeros(2, 1999, 4, 4)
    path = torch.randint(4, (2, 2000))
    parts = LinearChainCRF.struct.to_parts(path, 4)
    chain = LinearChainCRF(edges + 30.0 * parts)
    got = chain.log_prob(parts)
    assert (got < 0).all()
    want = LinearChainCRF((edges + 30.0 * parts - 30.0).double())
    torch.testing.assert_close(got.double(), -want.partition, rtol=1e-5, atol=1e-12)

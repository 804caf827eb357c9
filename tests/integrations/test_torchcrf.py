"""CRF against the enumeration of all taggings, and against pytorch-crf if installed."""

import math

import pytest
import torch
from chain_oracle import Enumeration

from oneshot.integrations.torchcrf import CRF

LENGTHS = [5, 1, 3, 2]
BATCH, STEPS, TAGS = 4, 5, 3
REDUCTIONS = ("none", "sum", "mean", "token_mean")


@pytest.fixture(scope="module")
def torchcrf():
    return pytest.importorskip("torchcrf", reason="pytorch-crf is not installed")


def layer(kind=CRF, tags=TAGS, *, batch_first=True, dtype=torch.float64):
    """Seeded parameters, away from their tiny initial values."""
    torch.manual_seed(1)
    found = kind(tags, batch_first=batch_first).to(dtype)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


def batch(lengths=LENGTHS, tags=TAGS, steps=STEPS, dtype=torch.float64):
    emissions = torch.randn(len(lengths), steps, tags, dtype=dtype) * 2
    labels = torch.randint(tags, (len(lengths), steps))
    return emissions, labels, torch.arange(steps) < torch.tensor(lengths)[:, None]


def oracles(crf, emissions, lengths=LENGTHS):
    trans = crf.transitions.double().expand(emissions.shape[1] - 1, -1, -1)
    return [
        Enumeration(
            crf.start_transitions.double(),
            trans[: n - 1],
            emissions[row, :n].double(),
            crf.end_transitions.double(),
        )
        for row, n in enumerate(lengths)
    ]


def of_path(oracle, labels):
    """Index of a tagging among an enumeration's paths."""
    return (oracle.paths == labels[: oracle.paths.shape[1]]).all(1).nonzero().item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_log_likelihood_and_gradients_equal_enumeration(batch_first, reduction):
    crf = layer(batch_first=batch_first)
    emissions, labels, mask = batch()
    exact = emissions.clone().requires_grad_()
    rows = [
        x.score[of_path(x, labels[row])] - x.log_partition
        for row, x in enumerate(oracles(crf, exact))
    ]
    want = torch.stack(rows)
    if reduction != "none":
        want = want.sum() / {"sum": 1, "mean": BATCH, "token_mean": sum(LENGTHS)}[reduction]
    leaf = emissions.clone().requires_grad_()
    inputs = [leaf.masked_fill(~mask[..., None], torch.nan), labels.masked_fill(~mask, -100), mask]
    if not batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    got = crf(*inputs, reduction=reduction)
    torch.testing.assert_close(got, want)
    cotangent = torch.randn(want.shape, dtype=torch.float64)
    grads = torch.autograd.grad(got, [leaf, *crf.parameters()], cotangent)
    expects = torch.autograd.grad(want, [exact, *crf.parameters()], cotangent)
    for grad, expect in zip(grads, expects, strict=True):
        torch.testing.assert_close(grad, expect)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("batch_first", [False, True])
def test_decode_marginals_and_samples_equal_enumeration(batch_first, mask_dtype):
    crf = layer(batch_first=batch_first)
    emissions, _, mask = batch()
    exact = oracles(crf, emissions)
    inputs = [emissions.masked_fill(~mask[..., None], torch.nan), mask.to(mask_dtype)]
    if not batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    assert crf.decode(*inputs) == [x.best.tolist() for x in exact]
    marginals = crf.marginals(*inputs)
    draws = crf.sample(*inputs, 2000, seed=3)
    assert marginals.shape == inputs[0].shape
    assert draws.shape == (2000, *inputs[1].shape)
    if not batch_first:
        marginals, draws = marginals.transpose(0, 1), draws.transpose(1, 2)
    for row, (oracle, length) in enumerate(zip(exact, LENGTHS, strict=True)):
        torch.testing.assert_close(marginals[row, :length], oracle.gamma)
        frequency = torch.nn.functional.one_hot(draws[:, row, :length], TAGS).double().mean(0)
        torch.testing.assert_close(frequency, oracle.gamma, atol=0.05, rtol=0)
    assert (marginals[~mask] == 0).all()
    assert (draws[:, ~mask] == -1).all()


def test_without_a_mask_every_token_counts():
    crf = layer()
    emissions, labels, _ = batch()
    full = torch.ones(BATCH, STEPS, dtype=torch.bool)
    assert torch.equal(crf(emissions, labels), crf(emissions, labels, full))
    assert crf.decode(emissions) == crf.decode(emissions, full)
    assert all(len(path) == STEPS for path in crf.decode(emissions))
    assert torch.equal(crf.marginals(emissions), crf.marginals(emissions, full))


def test_forbidden_tags_give_no_nan():
    """A label clamp by -inf; pytorch-crf returns NaN gradients here."""
    crf = layer(dtype=torch.float32)
    emissions, labels, mask = batch(dtype=torch.float32)
    emissions[:, 1, 0] = -torch.inf
    emissions[0, 2, 1:] = -torch.inf
    labels[:, 1], labels[0, 2] = 2, 0
    emissions.requires_grad_()
    got = crf(emissions, labels, mask, reduction="none")
    assert got.isfinite().all()
    got.sum().backward()
    assert emissions.grad.isfinite().all()
    assert (emissions.grad[emissions.isneginf()] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in crf.parameters())
    assert (crf.marginals(emissions, mask)[emissions.isneginf()] == 0).all()
    labels[0, 1] = 0  # now the tags themselves are impossible
    assert crf(emissions, labels, mask, reduction="none")[0] == -torch.inf


def test_initial_parameters_are_small_and_uniform():
    crf = CRF(40)
    assert repr(crf) == "CRF(num_tags=40)"
    shapes = {name: tuple(value.shape) for name, value in crf.state_dict().items()}
    assert shapes == {
        "start_transitions": (40,), "end_transitions": (40,), "transitions": (40, 40),
    }  # fmt: skip
    scores = crf.transitions.detach()
    assert scores.abs().max() <= 0.1
    assert math.isclose(scores.std().item(), 0.2 / 12**0.5, rel_tol=0.05)


def test_half_emissions_meet_float32_parameters():
    crf = layer(dtype=torch.float32)
    emissions, labels, mask = batch(dtype=torch.float32)
    half = emissions.bfloat16().requires_grad_()
    got = crf(half, labels, mask)
    assert got.dtype == torch.float32
    assert torch.equal(got, crf(half.float(), labels, mask))
    got.backward()
    assert half.grad.dtype == torch.bfloat16
    assert crf(emissions.double(), labels, mask).dtype == torch.float64


def wrong_inputs():
    """Calls that must raise, as (exception, pattern, call on a layer)."""
    emissions, labels, mask = (x.transpose(0, 1) for x in batch(dtype=torch.float32))
    late = mask.clone()
    late[0, 2] = False
    high = labels.masked_fill(mask, TAGS)
    return {
        "two dimensions": (ValueError, "emissions", lambda f: f(emissions[0], labels)),
        "tag count": (ValueError, "emissions", lambda f: f(emissions[..., 1:], labels)),
        "tags shape": (ValueError, "tags", lambda f: f(emissions, labels[1:])),
        "mask shape": (ValueError, "mask", lambda f: f(emissions, labels, mask[1:])),
        "empty sequence": (ValueError, "mask", lambda f: f(emissions, labels, late)),
        "reduction": (ValueError, "reduction", lambda f: f(emissions, labels, mask, "max")),
        "unknown tag": (IndexError, "tags", lambda f: f(emissions, high, mask)),
        "decode tag count": (ValueError, "emissions", lambda f: f.decode(emissions[..., 1:])),
        "decode mask": (ValueError, "mask", lambda f: f.decode(emissions, late)),
    }


@pytest.mark.parametrize("case", wrong_inputs())
def test_errors_name_the_argument(case):
    error, pattern, call = wrong_inputs()[case]
    with pytest.raises(error, match=pattern):
        call(CRF(TAGS))


def test_errors_that_pytorch_crf_does_not_raise():
    emissions, labels, mask = batch(dtype=torch.float32)
    holes = mask.clone()
    holes[0, 2] = False
    crf = CRF(TAGS, batch_first=True)
    with pytest.raises(ValueError, match="it has holes"):
        crf(emissions, labels, holes)
    with pytest.raises(ValueError, match=r"mask must be bool, or numbers .* got 0\.5 at place"):
        crf(emissions, labels, mask * 0.5)
    with pytest.raises(TypeError, match=r"tags must be int64 or int32, got torch\.float32"):
        crf(emissions, labels.float(), mask)
    with pytest.raises(TypeError, match=r"tags must be a torch\.Tensor, got list"):
        crf(emissions, labels.tolist(), mask)
    with pytest.raises(ValueError, match="emissions must have at least one token, got T = 0"):
        crf(emissions[:, :0], labels[:, :0])
    with pytest.raises(ValueError, match="num_tags must be at least 1, got 0"):
        CRF(0)


# Against pytorch-crf


@pytest.mark.parametrize("case", wrong_inputs())
def test_errors_of_pytorch_crf(torchcrf, case):
    error, _, call = wrong_inputs()[case]
    with pytest.raises(error):
        call(torchcrf.CRF(TAGS))


def test_state_dicts_fit_both_ways(torchcrf):
    torch.manual_seed(0)
    theirs = torchcrf.CRF(7)
    torch.manual_seed(0)
    ours = CRF(7)
    assert repr(ours) == repr(theirs)
    for name, value in theirs.state_dict().items():  # the same draws, even
        assert torch.equal(ours.state_dict()[name], value)
    ours.load_state_dict(layer(torchcrf.CRF, 7, dtype=torch.float32).state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.transitions, theirs.transitions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("size", "steps", "tags"), [(1, 1, 1), (7, 7, 2), (16, 63, 9), (3, 40, 23)]
)
def test_numbers_of_pytorch_crf(torchcrf, size, steps, tags, batch_first, dtype):
    lengths = torch.randint(1, steps + 1, (size,)).tolist()
    emissions, labels, mask = batch(lengths, tags, steps, dtype)
    if not batch_first:
        emissions, labels, mask = (
            x.transpose(0, 1).contiguous() for x in (emissions, labels, mask)
        )
    theirs = layer(torchcrf.CRF, tags, batch_first=batch_first, dtype=dtype)
    ours = CRF(tags, batch_first=batch_first).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    for reduction in REDUCTIONS:
        leaves = [emissions.clone().requires_grad_() for _ in range(2)]
        got = ours(leaves[0], labels, mask, reduction)
        want = theirs(leaves[1], labels, mask, reduction)
        torch.testing.assert_close(got, want, **tolerance)
        cotangent = torch.randn_like(want)
        grads = torch.autograd.grad(got, [leaves[0], *ours.parameters()], cotangent)
        expects = torch.autograd.grad(
            want, [leaves[1], *theirs.parameters()], cotangent, materialize_grads=True
        )
        for grad, expect in zip(grads, expects, strict=True):
            torch.testing.assert_close(grad, expect, **tolerance)
    assert ours.decode(emissions, mask) == theirs.decode(emissions, mask)
    assert ours.decode(emissions) == theirs.decode(emissions)


def test_tags_and_masks_of_other_types():
    crf = layer()
    emissions, labels, mask = batch()
    want = crf(emissions, labels, mask, "none")
    for kind in (torch.int64, torch.uint8, torch.float32):
        assert torch.equal(crf(emissions, labels.int(), mask.to(kind), "none"), want)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_as_a_whole(masked, reduction):
    torch._dynamo.reset()
    crf = layer(dtype=torch.float32)
    emissions, labels, mask = batch(dtype=torch.float32)
    mask = mask if masked else None
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    leaves = [emissions.clone().requires_grad_() for _ in range(2)]
    got, want = (
        f(x, labels, mask, reduction) for f, x in zip((compiled, crf), leaves, strict=True)
    )
    torch.testing.assert_close(got, want)
    for value in (got, want):
        value.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    with pytest.raises(RuntimeError, match="tags must lie in"):
        compiled(emissions, labels.masked_fill(labels == 0, TAGS), mask, reduction)
    if masked:
        mask = mask.clone()
        mask[0, 2] = False
        with pytest.raises(RuntimeError, match="it has holes"):
            compiled(emissions, labels, mask, reduction)


@pytest.mark.parametrize(("steps", "margin"), [(2000, 37.7), (512, 20.0), (4000, 20.0)])
def test_the_likelihood_of_a_certain_tagging_keeps_its_digits(steps, margin):
    """Score and partition are some 10^5; their difference is far below one rounding error of it."""
    crf = layer(tags=9, dtype=torch.float32)
    labels = torch.randint(9, (4, steps))
    noise = torch.randn(4, steps, 9)
    emissions = (noise + margin * torch.nn.functional.one_hot(labels, 9)).requires_grad_()
    got = crf(emissions + 300.0, labels, reduction="none")
    exact = (emissions.detach() + 300.0).double()
    own = [exact.gather(2, labels[..., None])]
    log_alpha = crf.start_transitions.double() + exact[:, 0] - own[0][:, 0]
    trans = crf.transitions.double()
    log_alpha = log_alpha - crf.start_transitions.double()[labels[:, 0], None]
    for t in range(1, steps):
        log_alpha = (log_alpha[:, :, None] + trans - trans[labels[:, t - 1], labels[:, t]][:, None,
                     None]).logsumexp(1) + exact[:, t] - own[0][:, t]  # fmt: skip
    last = crf.end_transitions.double()
    want = -(log_alpha + last - last[labels[:, -1], None]).logsumexp(1)
    assert (got <= 0).all()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-11)
    got.sum().backward()
    onehot = torch.nn.functional.one_hot(labels, 9)
    expect = onehot - crf.marginals(emissions.detach() + 300.0)
    torch.testing.assert_close(emissions.grad, expect, rtol=1e-3, atol=1e-6)

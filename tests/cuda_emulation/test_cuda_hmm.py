"""The CUDA kernels of `hmm` on the emulator: posteriors and their gradient against float64."""

from __future__ import annotations

import pytest
import torch
from hmm_device import not_linear, posteriors, posteriors_backward
from kernel_inputs import INF, NAN, wide
from kernel_inputs import chains as make

from oneshot.reference import hmm as reference

FORMS = ("tokens", "steps", "sequences", "shared")


def close(got, want, atol, rtol=0.0):
    torch.testing.assert_close(got.double(), want.double(), atol=atol, rtol=rtol, equal_nan=True)


def check(inputs, seed=0):
    """Log-likelihood alone, all posteriors, and their gradient."""
    double = inputs[2].dtype == torch.float64
    atol = 1e-11 if double else 2e-6
    got = posteriors(inputs, seed=seed)
    want = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == inputs[2].dtype
        close(mine, exact, atol, 1e-12 if double else 1e-6)
    (only,) = posteriors(inputs, False, False, False, seed=seed + 1)[:1]
    assert torch.equal(only.nan_to_num(7), got[0].nan_to_num(7))

    up = [torch.randn(x.shape).to(inputs[2].dtype) for x in got]
    for given in (up, [None, up[1], None, up[3]]):
        mine = posteriors_backward(given, inputs, seed=seed + 2)
        exact = reference.hmm_posteriors_backward(*map(wide, given), *map(wide, inputs))
        for own, value in zip(mine, exact, strict=True):
            if own is not None:
                close(own, value, 1e-10 if double else 1e-5, 1e-10 if double else 1e-6)
    return got


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_transitions(form):
    check(make(4, 12, 5, form))


@pytest.mark.parametrize(
    ("batch", "steps", "states"), [(1, 1, 1), (3, 1, 3), (1, 2, 2), (2, 17, 9), (3, 5, 33)]
)
def test_sizes(batch, steps, states):
    check(make(batch, steps, states), seed=states)


def test_no_lengths_and_nothing():
    check(make(2, 7, 3, "shared", lengths=False))
    for x in posteriors(make(0, 5, 3, lengths=False)):
        assert x.numel() == 0
    for form in FORMS:
        assert posteriors(make(0, 5, 3, form, lengths=False))[1].shape == (0, 5, 3)
        posteriors_backward([None] * 4, make(0, 5, 3, form, lengths=False))
    trans = posteriors_backward([None] * 4, make(0, 5, 3, "shared", lengths=False))[1]
    assert torch.equal(trans, torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("form", ["tokens", "shared"])
@pytest.mark.parametrize("states", [4, 23])
def test_float64(states, form):
    check(make(3, 4, states, form, dtype=torch.float64))


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "states", [1, 2, 7, 8, 10, 11, 12, 16, 17, 22, 23, 31, 32, 33, 64, 65, 130]
)
def test_many_states(states, form, dtype):
    check(make(4, 19 if states < 33 else 6, states, form, dtype=dtype), seed=states)


@pytest.mark.gpu_free
@pytest.mark.parametrize("states", [513, 1000])
def test_more_states_than_threads(states):
    inputs = make(2, 3, states, "shared")
    got = posteriors(inputs, True, False, False)
    want = reference.hmm_posteriors(*map(wide, inputs), True, False, False)
    close(got[0], want[0], 1e-5, 1e-6)
    close(got[1], want[1], 2e-6)


@pytest.mark.gpu_free
@pytest.mark.parametrize("form", ["tokens", "shared"])
def test_a_thousand_steps(form):
    """More than one chunk of summed steps, too."""
    inputs = make(1, 1000, 3, form)
    got = posteriors(inputs)
    want = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    for mine, exact in zip(got, want, strict=True):
        close(mine, exact, 2e-6, 1e-6)


def test_exponentials_have_no_bias():
    """One state, so log Z is the sum of all potentials: their errors average out."""
    init, trans, emit, _, _ = make(1, 500, 1, lengths=False, scale=20.0)
    trans -= (trans.sum() + emit.sum()) / 499  # a small sum rounds little
    want = sum(x.double().sum() for x in (init, trans, emit))
    (got,) = posteriors([init, trans, emit, None, None], False, False, False)[:1]
    assert abs(got.item() - want.item()) < 3e-6


# Chains that break scaled or log-space recursions in float32 -------------------------------------


def halves(steps, states, first_dip, second_dip):
    """Two halves of the states that never meet: one dips early, the other late."""
    inputs = make(1, steps, states, lengths=False)
    _, trans, emit, _, _ = inputs
    half = (states + 1) // 2
    trans[:, :, :half, half:] = -INF
    trans[:, :, half:, :half] = -INF
    emit[:, steps // 4, :half] -= first_dip
    emit[:, steps // 2, half:] -= second_dip
    return inputs


def shifted(steps, states):
    inputs = make(1, steps, states, lengths=False)
    return [x if x is None else x + offset
            for x, offset in zip(inputs, (1000, 1000, -1000, None, 1000), strict=True)]  # fmt: skip


def bio(steps, states, never=-INF):
    """Label 0 is O, odd ones begin an entity, even ones continue it: I-x follows B-x or I-x."""
    inputs = make(1, steps, states, lengths=False)
    source, target = torch.meshgrid(torch.arange(states), torch.arange(states), indexing="ij")
    continues = (target % 2 == 0) & (target > 0)
    inputs[1][:, :, continues & (source != target) & (source != target - 1)] = never
    inputs[0][:, 2::2] = never
    return inputs


def clamped(steps, states):
    inputs = make(1, steps, states, lengths=False)
    for t in range(0, steps, 3):
        inputs[2][0, t, torch.arange(states) != t % states] = -INF
    return inputs


def spread(steps, states):
    inputs = make(1, steps, states, lengths=False)
    inputs[2] = (torch.rand(1, steps, states) - 0.5) * 600
    return inputs


def steep(steps, states):
    inputs = make(1, steps, states, lengths=False)
    inputs[1] = (torch.rand_like(inputs[1]) - 0.5) * 800
    return inputs


def dead_ends(steps, states):
    """The likeliest states have no way on."""
    inputs = make(1, steps, states, lengths=False)
    inputs[1][:, :, -1, :] = -INF
    inputs[1][:, steps // 2, : states // 2, :] = -INF
    inputs[2][:, :, -1] += 60
    inputs[4][:, -1] = -INF
    return inputs


CHAINS = {
    "bio": bio,
    "mask -1e4": lambda t, k: bio(t, k, -1e4),
    "mask -1e30": lambda t, k: bio(t, k, -1e30),
    "offset 1000": shifted,
    "clamped": clamped,
    "spread 300": spread,
    "steep": steep,
    "dead ends": dead_ends,
    **{f"dip {a}": lambda t, k, a=a: halves(t, k, a, a - 2) for a in (40, 100, 172, 400, 2000)},
    **{f"survivor {a}": lambda t, k, a=a: halves(t, k, a, INF) for a in (60, 174, 400, 2000)},
}


def check_chain(chain, steps, states):
    inputs = CHAINS[chain](steps, states)
    got = posteriors(inputs)
    want = reference.hmm_posteriors(*map(wide, inputs), True, True, True)
    assert torch.isfinite(want[0]).all()
    close(got[0], want[0], 1e-5, 2e-7)
    for mine, exact in zip(got[1:], want[1:], strict=True):
        close(mine, exact, 1e-5)
    up = [None, *(torch.randn(x.shape) for x in got[1:])]
    mine = posteriors_backward(up, inputs)
    exact = reference.hmm_posteriors_backward(*map(wide, up), *map(wide, inputs))
    for own, value in zip(mine, exact, strict=True):
        close(own, value, 2e-5, 1e-5)


@pytest.mark.parametrize("chain", CHAINS)
def test_adversarial(chain):
    check_chain(chain, 16, 4)


@pytest.mark.parametrize("states", [6, 33])
def test_only_what_must_be_is_done_again(states):
    """Else every chain could take the slow way, and nobody would see it."""
    linear = {"bio", "clamped", "dead ends", "dip 40", "dip 100", "survivor 60"}
    for chain, build in CHAINS.items():
        again = not_linear(build(16, states))
        assert bool(again.any()) == (chain not in linear), chain
    # Emissions of any size, as long as a step spreads them by less than 173 nats.
    inputs = make(3, 12, states, lengths=False)
    inputs[2] += 1000
    inputs[1][1, 3, 0, 0] = NAN
    assert not_linear(inputs).tolist() == [[False, True, False], [False, True, False]]


@pytest.mark.gpu_free
@pytest.mark.parametrize("states", [9, 17, 34])
@pytest.mark.parametrize("chain", CHAINS)
def test_adversarial_full_sweep(chain, states):
    check_chain(chain, 40 if states < 33 else 16, states)


# Contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [4, 33])
def test_structural_zeros_and_sequences_without_a_path(states):
    init, trans, emit, _, final = make(4, 6, states, lengths=False)
    trans[torch.rand(trans.shape) < 0.5] = -INF
    trans[1] = -INF
    trans[..., 0, 0] = 0.0
    trans[3, 2] = -INF
    init[:, 1:] = -INF
    emit[2, 3] = -INF
    got = check([init, trans, emit, torch.tensor([6, 5, 6, 6]), final])
    assert (got[0][2:] == -INF).all()
    for x in got[1:]:
        assert (x[2:] == 0).all()


@pytest.mark.parametrize("states", [3, 40])
def test_nan_and_infinity_stay_in_their_sequence(states):
    init, trans, emit, _, final = make(4, 6, states, lengths=False)
    emit[1, 2, 0], trans[2, 3, 1, 1], init[3, 0] = NAN, INF, NAN
    inputs = [init, trans, emit, torch.tensor([6, 5, 6, 0]), final]
    got = check(inputs)
    assert got[0].isnan().tolist() == [False, True, True, False]
    assert got[1][1, :5].isnan().all()
    assert (got[1][1, 5:] == 0).all()
    assert got[3].isnan().flatten(1).all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("states", [3, 40])
@pytest.mark.parametrize("length", [-1, 7])
def test_a_length_outside_the_steps_is_refused(length, states):
    inputs = make(3, 6, states)
    inputs[3][1] = length
    with pytest.raises(RuntimeError, match="refuses its input"):
        posteriors(inputs)


@pytest.mark.parametrize("states", [4, 33])
@pytest.mark.parametrize("form", ["tokens", "shared"])
def test_neighbours_and_padding_change_no_bit(form, states):
    init, trans, emit, _, final = make(3, 9, states, form, lengths=False)
    emit[2] *= 200  # beyond the linear range
    lengths = torch.tensor([9, 5, 6])
    together = posteriors([init, trans, emit, lengths, final], seed=1)
    for b, n in ((1, 5), (2, 6)):

        def own(x, b=b):
            return x if len(x) == 1 else x[b : b + 1]

        alone = posteriors(
            [own(init), own(trans)[:, : n - 1], emit[b : b + 1, :n], None, own(final)], seed=b
        )
        assert torch.equal(together[0][b], alone[0][0])
        assert torch.equal(together[1][b, :n], alone[1][0])
        assert torch.equal(together[2][b, : n - 1], alone[2][0])
        assert torch.equal(together[3][b], alone[3][0])


def test_views_are_read_in_place():
    """Rows of a batch may lie apart, or be one."""
    init, trans, emit, lengths, final = make(4, 6, 3, lengths=False)
    want = posteriors([init, trans, emit, lengths, final])
    views = [torch.stack((x, torch.full_like(x, NAN)), 1)[:, 0] for x in (init, trans, emit, final)]
    got = posteriors([*views[:3], lengths, views[3]], seed=2)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    one = posteriors([init[:1], trans[:1], emit[:1].expand(4, -1, -1), None, final[:1]])
    assert (one[1] == one[1][:1]).all()

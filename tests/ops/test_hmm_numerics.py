"""Float32 on long chains (closed forms) and on chains that break scaled or log-space recursions."""

import math

import pytest
import torch
from hmm_oracle import (
    INF,
    by_enumeration,
    check_log_likelihood,
    check_posteriors,
    in_log_space,
    leaves,
    make,
    matrices,
    posteriors,
)

from oneshot import ops

# Closed forms ------------------------------------------------------------------------------------


def potts(steps, states, coupling):
    """J on the diagonal, 0 elsewhere: log Z, and p(z_t = z_{t+1})."""
    row = math.exp(coupling) + states - 1
    return math.log(states) + (steps - 1) * math.log(row), math.exp(coupling) / row


@pytest.mark.parametrize("steps", [1000, 100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_closed_forms_of_any_length(steps):
    """Four chains of K = 5: uniform, two Potts chains, and one that never moves."""
    states = 5
    couplings = torch.tensor([0.0, 1.3, -2.0])
    eye = torch.eye(states, dtype=torch.bool)
    matrix = torch.cat((couplings[:, None, None] * eye, torch.where(eye, 0.0, -INF)[None]))
    result = ops.hmm_posteriors(
        torch.zeros(states), matrix, torch.zeros(4, steps, states), trans_axis="sequence",
        xi_sum=True,
    )  # fmt: skip
    forms = [potts(steps, states, float(j)) for j in couplings] + [(math.log(states), 1.0)]
    expected = torch.tensor([z for z, _ in forms], dtype=torch.float64)
    # The parameters are float32: 1.3 and exp(1.3) carry their own rounding, once for every step.
    error = (result.log_likelihood.double() - expected).abs()
    allowed = 1e-6 * math.sqrt(steps) + (1e-9 + 2.0**-24) * expected + 2.0**-24 * steps
    assert (error <= allowed).all()
    assert (result.gamma - 1 / states).abs().max() <= 2e-6
    # Every step rounds alike here, so nothing averages out: measured 4.8e-7 for the float32 kernel.
    for (_, stay), pairs in zip(forms, result.xi_sum.double() / (steps - 1), strict=True):
        other = (1 - stay) / (states * (states - 1))
        assert (pairs[eye] - stay / states).abs().max() <= 1e-6
        assert (pairs[~eye] - other).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_ten_thousand_steps_of_noise(kind):
    inputs = make(1, 10_000, 3, kind, ragged=False)
    check_posteriors(ops.hmm_posteriors(**inputs, xi=True, xi_sum=True), posteriors(inputs))


def test_a_slowly_forgetting_chain_keeps_its_posterior():
    """Nothing but one informative step in the middle of 20001: a known decay on both sides."""
    steps, middle, stay = 20_001, 10_000, 0.9999
    trans = torch.tensor([[stay, 1 - stay], [1 - stay, stay]], dtype=torch.float64)
    emit = torch.zeros(1, steps, 2)
    emit[0, middle, 0] = 3.0
    result = ops.hmm_posteriors(torch.zeros(2), trans.log().float(), emit)
    first = math.exp(3.0) / (1 + math.exp(3.0))
    rounded = trans.log().float().double().exp()
    decay = (rounded[0, 0] - rounded[0, 1]) / rounded[0].sum()
    distance = (torch.arange(steps, dtype=torch.float64) - middle).abs()
    expected = 0.5 + (first - 0.5) * decay**distance
    assert (result.gamma[0, :, 0].double() - expected).abs().max() <= 2e-6


# Adversarial chains ------------------------------------------------------------------------------


def halves(steps, states, first_dip, second_dip):
    """Two halves of the states that never meet: one dips early, the other late."""
    inputs = make(1, steps, states, "token", ragged=False)
    half = (states + 1) // 2
    inputs["log_trans"][:, :, :half, half:] = -INF
    inputs["log_trans"][:, :, half:, :half] = -INF
    inputs["log_emit"][:, steps // 4, :half] -= first_dip
    inputs["log_emit"][:, steps // 2, half:] -= second_dip
    return inputs


def bio(steps, states):
    """Label 0 is O, odd ones begin an entity, even ones continue it: I-x follows B-x or I-x."""
    inputs = make(1, steps, states, "token", ragged=False)
    source, target = torch.meshgrid(torch.arange(states), torch.arange(states), indexing="ij")
    continues = (target % 2 == 0) & (target > 0)
    allowed = ~continues | (source == target) | (source == target - 1)
    inputs["log_trans"][:, :, ~allowed] = -INF
    inputs["log_init"][:, 2::2] = -INF
    return inputs


def offset(steps, states):
    inputs = make(1, steps, states, "token", ragged=False)
    return {
        **inputs,
        "log_trans": inputs["log_trans"] + 1000,
        "log_emit": inputs["log_emit"] - 1000,
        "log_init": inputs["log_init"] + 1000,
        "log_final": inputs["log_final"] + 1000,
    }


def clamped(steps, states):
    inputs = make(1, steps, states, "token", ragged=False)
    emit = inputs["log_emit"]
    for t in range(0, steps, 3):
        emit[0, t, torch.arange(states) != t % states] = -INF
    return inputs


def spread(steps, states):
    inputs = make(1, steps, states, "token", ragged=False)
    inputs["log_emit"] = (torch.rand(1, steps, states) - 0.5) * 600
    return inputs


def steep(steps, states):
    """Transitions over hundreds of nats, so that every step leaves a few states alive."""
    inputs = make(1, steps, states, "token", ragged=False)
    inputs["log_trans"] = (torch.rand_like(inputs["log_trans"]) - 0.5) * 800
    return inputs


def dead_ends(steps, states):
    """The likeliest states have no way on: rows of -inf, met at every step."""
    inputs = make(1, steps, states, "token", ragged=False)
    inputs["log_trans"][:, :, -1, :] = -INF
    inputs["log_emit"][:, :, -1] += 60
    inputs["log_final"][:, -1] = -INF
    inputs["log_trans"][:, steps // 2, : states // 2, :] = -INF
    return inputs


def lowered(steps, states):
    """-1e30 instead of -inf, as many masks are written."""
    inputs = bio(steps, states)
    return inputs | {k: inputs[k].clamp(min=-1e30) for k in ("log_trans", "log_init")}


CASES = {
    "bio": bio,
    "spread 300": spread,
    "steep": steep,
    "offset 1000": offset,
    "clamped": clamped,
    "dead ends": dead_ends,
    "mask -1e30": lowered,
    "dip 40 38": lambda t, k: halves(t, k, 40, 38),
    "dip 100 98": lambda t, k: halves(t, k, 100, 98),
    "dip 400 398": lambda t, k: halves(t, k, 400, 398),
    "dip 2000 1998": lambda t, k: halves(t, k, 2000, 1998),
    "survivor 60": lambda t, k: halves(t, k, 60, INF),
    "survivor 100": lambda t, k: halves(t, k, 100, INF),
    "survivor 400": lambda t, k: halves(t, k, 400, INF),
    "survivor 2000": lambda t, k: halves(t, k, 2000, INF),
}


def check(inputs):
    """Posteriors to 1e-5, gradient of log Z the same, and Viterbi's score against max-sum."""
    expected = posteriors(inputs)
    assert expected.log_likelihood.isfinite().all()
    copy, _ = leaves(inputs)
    result = ops.hmm_posteriors(**copy, xi=True, xi_sum=True)
    size = expected.log_likelihood.abs().max().item()
    # log Z itself: what rounding the potentials to float32 leaves open, not 1e-9 of it
    scale = max(float(x[x > -1e30].abs().max()) for x in (inputs["log_trans"], inputs["log_emit"]))
    steps = inputs["log_emit"].shape[1]
    error = (result.log_likelihood.double() - expected.log_likelihood).abs().max()
    assert error <= 1e-6 * math.sqrt(steps) * max(1, scale) + 2.0**-23 * size
    for name in ("gamma", "xi"):
        ours = getattr(result, name).double()
        torch.testing.assert_close(ours, getattr(expected, name), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.xi_sum.double(), expected.xi_sum, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(ops.hmm_log_likelihood(**copy).sum(), copy["log_emit"])
    assert torch.equal(grad, result.gamma)
    loss = (result.gamma * torch.randn(result.gamma.shape)).sum()
    for grad in torch.autograd.grad(loss, [copy["log_trans"], copy["log_emit"]]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("states", [4, 9, 17, 64])
@pytest.mark.parametrize("case", CASES)
def test_adversarial(case, states):
    check(CASES[case](40, states))


@pytest.mark.parametrize("case", CASES)
def test_adversarial_with_one_matrix_and_in_a_batch(case):
    """The same potentials at every step, beside two harmless sequences."""
    inputs = CASES[case](40, 6)
    other = make(2, 40, 6, "token", ragged=False)
    constant = matrices(inputs)[:, :1]
    if case == "dead ends":  # would be impossible with the row of its middle step in the others
        constant = matrices(inputs)[:, 1:2]
    batch = {
        k: torch.cat((inputs[k], other[k])) if isinstance(inputs[k], torch.Tensor) else inputs[k]
        for k in inputs
    }
    batch["log_trans"] = constant
    check(batch)
    batch["log_trans"] = torch.cat((constant, other["log_trans"][:, :1]))
    check(batch)


@pytest.mark.parametrize("case", CASES)
def test_adversarial_derivatives(case):
    """Gradients through all posteriors against the enumeration of a short chain."""
    inputs = CASES[case](6, 4)
    grads = []
    weights = [torch.randn(6, 4), torch.randn(5, 4, 4)]
    for function in (
        lambda x: ops.hmm_posteriors(**x, xi=True),
        lambda x: posteriors(x, by_enumeration),
    ):
        copy, tensors = leaves(inputs)
        result = function(copy)
        loss = (result.gamma[0] * weights[0]).sum() + (result.xi[0] * weights[1]).sum()
        grads.append(torch.autograd.grad(loss, tensors))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-5)


def test_the_oracle_sees_what_it_should():
    """The survivor case, by hand: only the half that dipped is left, whatever the dip."""
    for dip in (60.0, 400.0, 2000.0):
        inputs = halves(40, 4, dip, INF)
        gamma = posteriors(inputs, in_log_space).gamma
        torch.testing.assert_close(gamma[0, :, :2].sum(1), torch.ones(40).double())
        harmless = {**inputs, "log_emit": inputs["log_emit"].clone()}
        harmless["log_emit"][0, 10, :2] += dip
        torch.testing.assert_close(posteriors(harmless).gamma, gamma, rtol=0, atol=1e-4)


def test_log_likelihood_alone_is_as_good():
    """No gradient, so no backward sweep: forward alone has to notice what it loses."""
    for case, build in CASES.items():
        inputs = build(40, 9)
        expected = posteriors(inputs).log_likelihood
        ours = ops.hmm_log_likelihood(**inputs).double()
        assert abs(float(ours - expected)) <= 1e-5 * max(1.0, abs(float(expected))), case
    inputs = make(3, 500, 9)
    check_log_likelihood(ops.hmm_log_likelihood(**inputs), posteriors(inputs).log_likelihood, 500)

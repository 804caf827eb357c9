"""Credit against the table of the paper, brute force and closed forms; NaN in every padding."""

import pytest
import torch
from rlvr_tiny import make_algorithm

from oneshot.rlvr.algorithm.advantage import CreditInputs, credit, kl_penalty, overlong_penalty
from oneshot.rlvr.algorithm_config import CriticConfig

LENGTHS = [1, 7, 3, 5]


def inputs(scores, **options):
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(7) < lengths[:, None]
    generator = torch.Generator().manual_seed(1)

    def padded():
        x = torch.randn(4, 7, generator=generator)
        return torch.where(mask, x, torch.nan)

    found = {"old_logprobs": padded(), "ref_logprobs": padded(), "values": padded()}
    return CreditInputs(torch.tensor(scores), mask, 2, **{**found, **options})


@pytest.mark.parametrize(
    ("right", "positive", "negative"),
    [(1, 2.474867, -0.353552), (2, 1.620182, -0.540061), (4, 0.935413, -0.935413)],
)
def test_group_of_eight(right, positive, negative):
    """The table of facts on the paper's code: ddof 1 and eps 1e-6."""
    scores = torch.tensor([1.0] * right + [0.0] * (8 - right))
    rows = CreditInputs(scores, torch.ones(8, 3, dtype=torch.bool), 8)
    found = credit(rows, make_algorithm(), CriticConfig())
    assert found.returns is None
    expected = torch.tensor([positive] * right + [negative] * (8 - right))
    torch.testing.assert_close(found.advantages, expected, atol=1e-5, rtol=0)


def test_leave_one_out_is_the_score_minus_the_mean_of_the_others():
    scores = torch.tensor([1.0, 0.0, 0.25, 0.5])
    rows = CreditInputs(scores, torch.ones(4, 3, dtype=torch.bool), 4)
    algorithm = make_algorithm(baseline="loo", scale="none")
    expected = [x - (1.75 - x) / 3 for x in scores.tolist()]
    found = credit(rows, algorithm, CriticConfig()).advantages.tolist()
    assert found == pytest.approx(expected, abs=1e-6)


ESTIMATES = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: torch.exp(-d) - 1 + d,
    "abs": lambda d: d.abs(),
}


@pytest.mark.parametrize("kind", list(ESTIMATES))
def test_kl_in_the_reward(kind):
    rows = inputs([1.0, 0.0, 2.0, 0.5])
    algorithm = make_algorithm(kl_in="reward", kl=kind, kl_coef=0.3, scale="none", baseline="none")
    estimate = ESTIMATES[kind](rows.old_logprobs.double() - rows.ref_logprobs.double())
    penalty = 0.3 * torch.where(rows.mask, estimate, 0)
    torch.testing.assert_close(kl_penalty(rows, algorithm).double(), penalty, atol=1e-6, rtol=1e-5)
    found = credit(rows, algorithm, CriticConfig())
    expected = rows.scores.double() - penalty.sum(1)
    torch.testing.assert_close(found.advantages.double(), expected, atol=1e-5, rtol=1e-5)
    assert found.metrics["reward/kl_penalty"] == pytest.approx(penalty.sum(1).mean().item(), 1e-5)
    assert kl_penalty(rows, make_algorithm(kl_in="loss")) is None


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
@pytest.mark.parametrize("whiten", [True, False])
def test_gae_is_the_double_sum(kl_in, gamma, lam, whiten):
    """A_t = sum over k of (gamma lam)^k delta_(t+k), written out in float64."""
    rows = inputs([1.0, 0.0, 2.0, 0.5])
    algorithm = make_algorithm(advantage="gae", kl_in=kl_in, kl="k1", kl_coef=0.1)
    found = credit(rows, algorithm, CriticConfig(gamma=gamma, lam=lam, whiten=whiten))
    expected, returns = torch.zeros(4, 7).double(), torch.zeros(4, 7).double()
    for i, length in enumerate(LENGTHS):
        value = [*rows.values[i, :length].double().tolist(), 0.0]
        reward = [0.0] * length
        if kl_in == "reward":
            d = rows.old_logprobs[i, :length].double() - rows.ref_logprobs[i, :length].double()
            reward = (-0.1 * d).tolist()
        reward[-1] += rows.scores[i].item()
        delta = [reward[t] + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            total = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
            expected[i, t], returns[i, t] = total, total + value[t]
    if whiten:
        counted = expected[rows.mask]
        scale = (counted.var(correction=1) + 1e-8).sqrt()
        expected = torch.where(rows.mask, (expected - counted.mean()) / scale, 0)
    torch.testing.assert_close(found.returns.double(), returns, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.advantages.double(), expected, atol=2e-6, rtol=1e-5)


def test_overlong_penalty_falls_linearly_over_the_buffer():
    algorithm = make_algorithm(overlong_buffer=0.2, overlong_penalty=0.5)
    lengths = torch.tensor([1, 80, 85, 90, 100])
    found = overlong_penalty(lengths, 100, algorithm).tolist()
    assert found == pytest.approx([0, 0, 0.125, 0.25, 0.5], abs=1e-6)
    assert overlong_penalty(lengths, 100, make_algorithm()).tolist() == [0] * 5


def test_an_empty_response_has_no_place_for_its_score():
    mask = torch.tensor([[True], [False]])
    rows = CreditInputs(torch.ones(2), mask, 2, values=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="at least one token, got an empty one"):
        credit(rows, make_algorithm(advantage="gae"), CriticConfig())

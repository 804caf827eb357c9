"""The hmm benchmarks compare paths by what is true of right ones; wrong ones must not pass."""

import pytest
import torch

from oneshot import ops
from oneshot.bench import hmm_paths
from oneshot.bench.hmm_inputs import model


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    return model((16, 40, 5), False, num_samples=4)


def arguments(inputs):
    return inputs["log_init"], inputs["log_trans"], inputs["log_emit"]


def test_a_sampler_that_draws_something_else_is_not_plausible(inputs):
    right = ops.hmm_sample(*arguments(inputs), seed=1, num_samples=4)
    gamma = ops.hmm_posteriors(*arguments(inputs)).gamma
    states = torch.multinomial(gamma.flatten(0, 1), 4, replacement=True)
    marginals = states.T.reshape(4, 16, 40)  # each step by itself
    best = ops.hmm_viterbi(*arguments(inputs)).path.expand(4, -1, -1)
    verdicts = [
        hmm_paths._plausible(inputs, (path,))[0].item() for path in (right, marginals, best)
    ]
    assert verdicts == [1.0, 0.0, 0.0]


def test_a_path_is_judged_by_its_score(inputs):
    found = ops.hmm_viterbi(*arguments(inputs))
    torch.testing.assert_close(hmm_paths._score(inputs, found.path).float(), found.score)
    worse = found.path.clone()
    worse[3, 7] = (worse[3, 7] + 1) % 5
    difference = found.score - hmm_paths._score(inputs, worse).float()
    assert difference[3] > 1e-3
    assert (difference[:3].abs() < 1e-4).all()

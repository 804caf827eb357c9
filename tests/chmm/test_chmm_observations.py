"""The three abstention rules, token by token."""

import numpy as np
import pytest
import torch

from oneshot.chmm.dataset import Sentence
from oneshot.chmm.label_model.observations import observations, resolve
from oneshot.ops import combine_emissions

# rows: nobody speaks; one says B; one says B against an O said; all say O; silence and O
VOTES = np.array([[-1, -1, -1], [1, -1, -1], [1, 0, -1], [0, 0, 0], [-1, 0, -1]])
SENTENCE = Sentence(("w",) * 5, VOTES)
SAYS_O, B, NONE = [1.0, 0, 0], [0, 1.0, 0], [0.0, 0, 0]
FLAT = [0.01, 0.33, 0.33]


@pytest.mark.parametrize(
    ("rule", "options", "marked"),
    [
        ("vote_o", {}, [[B, SAYS_O, SAYS_O], [B, SAYS_O, SAYS_O]]),
        ("reference", {}, [[B, FLAT, FLAT], [B, FLAT, FLAT]]),
        ("abstain", {}, [[B, NONE, NONE], [B, SAYS_O, NONE]]),
        ("abstain", {"o_is_silence": True}, [[B, NONE, NONE], [B, NONE, NONE]]),
    ],
)
def test_rules(rule, options, marked):
    (found,) = observations([SENTENCE], 3, rule, **options)
    assert found.dtype == torch.float32
    expected = torch.tensor([[SAYS_O] * 3, *marked, [SAYS_O] * 3, [SAYS_O] * 3])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    assert VOTES.tolist()[2] == [1, 0, -1]


def test_silence_contributes_nothing_to_the_evidence():
    (found,) = observations([SENTENCE], 3, "abstain")
    log_emissions = torch.randn(3, 4, 3)
    evidence = combine_emissions(log_emissions, found[None], normalize=True)
    alone = combine_emissions(log_emissions[:1], found[None, :, :1], normalize=True)
    assert torch.equal(evidence[0, 1], alone[0, 1])


def test_resolve_any_shape():
    assert resolve(VOTES[2]).tolist() == [1, 0, -1]
    assert resolve(VOTES[None], o_is_silence=True)[0, 2].tolist() == [1, -1, -1]
    with pytest.raises(ValueError, match="rule must be one of vote_o, reference, abstain, got 'o'"):
        observations([SENTENCE], 3, "o")

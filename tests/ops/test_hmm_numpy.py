"""The NumPy faces give what the ops give, and check what they are given."""

import numpy as np
import pytest
import torch

from oneshot import numpy as faces
from oneshot import ops
from oneshot._load import native

pytestmark = pytest.mark.skipif(native()[0] is None, reason="the native library is off")


@pytest.mark.parametrize("shape", [(5, 5), (1, 6, 5, 5), (3, 6, 5, 5), (3, 1, 5, 5)])
def test_equal_to_the_ops(shape):
    potentials = (torch.randn(5), torch.randn(shape), torch.randn(3, 7, 5))
    lengths, final = torch.tensor([7, 0, 4]), torch.randn(3, 5)
    potentials[2][2, 4:] = float("nan")
    expected = ops.hmm_posteriors(*potentials, lengths, final, xi=True, xi_sum=True)
    arrays = [x.numpy() for x in (*potentials, lengths, final)]
    found = faces.hmm_posteriors(*arrays, xi=True, xi_sum=True)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())
    assert faces.hmm_posteriors(*arrays)[2:] == (None, None)
    path, score = faces.hmm_viterbi(*arrays)
    best = ops.hmm_viterbi(*potentials, lengths, final)
    np.testing.assert_array_equal(path, best.path.numpy())
    np.testing.assert_array_equal(score, best.score.numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_emit": np.zeros((7, 5))}, r"log_emit must have the shape \[B, T, K\]"),
        ({"log_trans": np.zeros((3, 5, 5))}, r"log_trans has 3 dimensions \[3, 5, 5\]"),
        ({"log_init": np.zeros(4)}, r"log_init must have the shape \[5\] or \[3, 5\] .*got \[4\]"),
        ({"lengths": [7, 7]}, r"lengths must have the shape \[3\], .*got \[2\]"),
    ],
)
def test_wrong_input_is_named(changes, message):
    inputs = {
        "log_init": np.zeros(5),
        "log_trans": np.zeros((5, 5)),
        "log_emit": np.zeros((3, 7, 5)),
    }
    with pytest.raises(ValueError, match=message):
        faces.hmm_posteriors(**{**inputs, **changes})

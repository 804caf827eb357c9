"""The numbers of hmmlearn (HMMs) and pytorch-crf (CRFs), where they are installed."""

import numpy
import pytest
import torch
from hmm_oracle import make, path_score, sequences

from oneshot import ops


@pytest.fixture(scope="module")
def hmmlearn():
    return pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is not installed")


@pytest.fixture(scope="module")
def torchcrf():
    return pytest.importorskip("torchcrf", reason="pytorch-crf is not installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("states", "symbols"), [(2, 3), (5, 11), (17, 6)])
@pytest.mark.parametrize("implementation", ["log", "scaling"])
def test_hmmlearn(hmmlearn, implementation, states, symbols, dtype):
    """Log-likelihood, posteriors, expected transitions and the best path of ragged sequences."""
    start, trans, emission = (
        torch.rand(shape, dtype=torch.float64).softmax(-1)
        for shape in ((states,), (states, states), (states, symbols))
    )
    model = hmmlearn.CategoricalHMM(states, init_params="", implementation=implementation)
    model.startprob_, model.transmat_ = start.numpy(), trans.numpy()
    model.emissionprob_ = emission.numpy()
    model.n_features = symbols

    steps, lengths = 200, torch.tensor([200, 1, 37, 199])
    symbols_seen = torch.randint(symbols, (4, steps))
    emit = emission.log()[:, symbols_seen].permute(1, 2, 0)
    inputs = (start.log().to(dtype), trans.log().to(dtype), emit.to(dtype), lengths)
    result = ops.hmm_posteriors(*inputs, xi_sum=True)
    path, score = ops.hmm_viterbi(*inputs)
    names = ("log_init", "log_trans", "log_emit", "lengths")
    sequences_ = list(sequences(dict(zip(names, inputs, strict=True))))
    rtol, atol = (1e-10, 1e-10) if dtype == torch.float64 else (2e-6, 5e-6)

    def agree(ours, theirs):
        theirs = torch.as_tensor(theirs, dtype=torch.float64)
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)

    columns = []
    for b, n in enumerate(lengths.tolist()):
        columns.append(symbols_seen[b, :n, None].numpy())
        log_z, gamma = model.score_samples(columns[-1])
        agree(result.log_likelihood[b], float(log_z))
        agree(result.gamma[b, :n], gamma)
        best, _ = model.decode(columns[-1], algorithm="viterbi")
        agree(score[b], float(best))
        # Paths can tie up to rounding (the same factors in another order): compare their worth.
        own = path_score(*sequences_[b], path[b, :n].tolist())
        agree(own, float(best))
    # one step of its EM, transitions only, is the row-normalised sum of ours
    model.n_iter, model.params = 1, "t"
    model.fit(numpy.concatenate(columns), lengths.tolist())
    counts = result.xi_sum.double().sum(0)
    agree(counts / counts.sum(1, keepdim=True), model.transmat_)


@pytest.mark.parametrize("tags", [2, 9, 33])
def test_pytorch_crf(torchcrf, tags):
    """Its log-likelihood of given tags is score - log Z; its decoder is ours; gradients agree."""
    batch, steps = 6, 25
    crf = torchcrf.CRF(tags, batch_first=True)
    inputs = make(batch, steps, tags, "shared")
    emissions = inputs["log_emit"].clone().requires_grad_()
    lengths = inputs["lengths"].clamp(min=1)  # it refuses an empty sequence
    mask = torch.arange(steps) < lengths[:, None]
    given = torch.randint(tags, (batch, steps))

    parameters = (crf.start_transitions, crf.transitions, emissions)
    log_z = ops.hmm_log_likelihood(*parameters, lengths, crf.end_transitions)
    score = crf.start_transitions[given[:, 0]]
    score = score + (emissions.gather(2, given[..., None]).squeeze(2) * mask).sum(1)
    score = score + (crf.transitions[given[:, :-1], given[:, 1:]] * mask[:, 1:]).sum(1)
    last = given.gather(1, lengths[:, None] - 1).squeeze(1)
    score = score + crf.end_transitions[last]
    theirs = crf(emissions, given, mask=mask, reduction="none")
    torch.testing.assert_close(score - log_z, theirs, rtol=1e-5, atol=2e-5)
    learned = [*parameters, crf.end_transitions]
    grads = [
        torch.autograd.grad(x.sum(), learned, retain_graph=True) for x in (score - log_z, theirs)
    ]
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)
    path, _ = ops.hmm_viterbi(*parameters, lengths, crf.end_transitions)
    decoded = crf.decode(emissions, mask=mask)
    assert [path[b, :n].tolist() for b, n in enumerate(lengths.tolist())] == decoded

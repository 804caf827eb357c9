"""Best paths and sampled paths: every path, tie rules, known random numbers, exact frequencies."""

import math

import pytest
import torch
from hmm_oracle import (
    INF,
    TRANS,
    all_paths,
    in_log_space,
    leaves,
    make,
    path_score,
    rows,
    same,
    sequences,
)

from oneshot import ops
from oneshot.reference.hmm_sampling import philox, uniform

# Viterbi -----------------------------------------------------------------------------------------


def cut(path, n):
    """The path of one sequence as a list; what follows must be -1."""
    assert (path[n:] == -1).all()
    return path[:n].tolist()


def best_of_all(inputs):
    """(score, path) of every sequence, ties by the rule: the lowest state, last step first."""
    for sequence in sequences(inputs):
        n = sequence[2].shape[0]
        if n == 0:
            yield 0.0, []
            continue
        paths = all_paths(*sequence)
        best = int(paths.score.argmax())  # the first: they lie in order of their last states
        score = float(paths.score[best])
        yield score, paths.states[best].tolist() if score > -INF else [-1] * n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TRANS)
@pytest.mark.parametrize(("steps", "states"), [(1, 1), (1, 5), (4, 1), (2, 3), (6, 4), (9, 2)])
def test_viterbi_against_every_path(steps, states, kind, dtype):
    for forbidden in (0.0, 0.35):
        inputs = make(7, steps, states, kind, dtype=dtype, forbidden=forbidden)
        path, score = ops.hmm_viterbi(**inputs)
        assert score.dtype == dtype
        for row, (expected, states_) in enumerate(best_of_all(inputs)):
            assert cut(path[row], len(states_)) == states_
            assert math.isclose(score[row], expected, rel_tol=1e-6, abs_tol=1e-6) or (
                score[row] == expected
            )


@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize(("steps", "states"), [(6, 4), (4, 7), (3, 17), (2, 65)])
def test_viterbi_breaks_ties_by_the_lowest_state(steps, states, kind):
    """Small integers: sums are exact, and half of all comparisons are ties."""
    for _ in range(3):
        inputs = make(8, steps, states, kind)
        for name in ("log_init", "log_trans", "log_emit", "log_final"):
            x = torch.randint(-2, 1, inputs[name].shape).float()
            inputs[name] = torch.where(x == -2, -INF, x) if name == "log_trans" else x
        path, score = ops.hmm_viterbi(**inputs)
        for row, (expected, states_) in enumerate(best_of_all(inputs)):
            assert score[row] == expected
            assert cut(path[row], len(states_)) == states_


def test_viterbi_of_equal_potentials_stays_at_zero():
    for states in (1, 9, 16, 17, 64, 65):
        path, score = ops.hmm_viterbi(
            torch.zeros(states), torch.zeros(states, states), torch.zeros(2, 40, states)
        )
        assert (path == 0).all()
        assert (score == 0).all()


@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize(("steps", "states"), [(200, 9), (60, 33), (40, 65), (1000, 3), (3, 512)])
def test_viterbi_path_is_worth_its_score(steps, states, kind):
    """The path's own score in float64 is the largest one, which max-sum in float64 finds."""
    inputs = make(3, steps, states, kind)
    path, score = ops.hmm_viterbi(**inputs)
    for row, (init, trans, emit, final) in enumerate(sequences(inputs)):
        if emit.shape[0] == 0:
            continue
        best = init + emit[0]
        for t in range(emit.shape[0] - 1):
            best = (best[:, None] + trans[t]).amax(0) + emit[t + 1]
        expected = float((best + final).max())
        own = float(path_score(init, trans, emit, final, cut(path[row], emit.shape[0])))
        allowed = 1e-6 * math.sqrt(steps) + 1e-7 * abs(expected)
        assert expected - allowed <= own <= expected + 1e-9
        assert abs(float(score[row]) - expected) <= allowed


def test_viterbi_and_log_z_bound_each_other():
    inputs = make(6, 30, 5, forbidden=0.1)
    _, score = ops.hmm_viterbi(**inputs)
    log_z = ops.hmm_log_likelihood(**inputs)
    assert (score <= log_z + 1e-4).all()
    assert (log_z <= score + inputs["lengths"] * math.log(5) + 1e-4).all()


# The generator -----------------------------------------------------------------------------------


def philox_by_hand(counter, key):
    """Philox4x32-10 on Python integers, from the paper's figure."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        low, high = 0xFFFFFFFF, 32
        c = [(b >> high) ^ c[1] ^ k[0], b & low, (a >> high) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


KNOWN = [  # of the authors' test suite (Random123, kat_vectors)
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    assert tuple(philox_by_hand(counter, key)) == expected
    words = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(word) for word in words) == expected


def uniform_by_hand(seed, number, sample, step, dtype):
    low = 0xFFFFFFFF
    words = philox_by_hand(
        (number & low, (number >> 32) & low, sample, step), (seed & low, (seed >> 32) & low)
    )
    if dtype == torch.float32:
        return (words[0] >> 8) / 2**24
    return ((words[0] << 32 | words[1]) >> 11) / 2**53


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers(dtype):
    ids = torch.tensor([0, 7, 2**40 + 3, -1])
    for seed in (0, 12345, 2**63 - 1):
        numbers = uniform(seed, ids, 3, 5, dtype)
        for s in range(3):
            for b, number in enumerate(ids.tolist()):
                for t in range(5):
                    assert numbers[s, b, t] == uniform_by_hand(seed, number, s, t, dtype)


# Samples -----------------------------------------------------------------------------------------


def drawn_by_hand(sequence, seed, number, sample, dtype):
    """The path by definition, and the smallest distance of a draw from a border between states."""
    init, trans, emit, final = sequence
    n = emit.shape[0]
    alpha = [init + emit[0]]
    for t in range(n - 1):
        alpha.append((alpha[-1][:, None] + trans[t]).logsumexp(0) + emit[t + 1])
    path, margin = [], 1.0
    for t in reversed(range(n)):
        weights = (alpha[t] + (trans[t][:, path[-1]] if path else final)).softmax(0)
        borders = weights.cumsum(0)
        u = uniform_by_hand(seed, number, sample, t, dtype)
        path.append(int((borders <= u).sum()))
        margin = min(margin, float((borders - u).abs().min()))
    return path[::-1], margin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["shared", "token"])
@pytest.mark.parametrize(
    ("states", "steps"),
    [(1, 11), (3, 11), (9, 11), (17, 11), (65, 11), (65, 40)],
)
def test_samples_by_definition(states, steps, kind, dtype):
    inputs = make(8, steps, states, kind, dtype=dtype, forbidden=0.2 if states > 1 else 0.0)
    inputs["log_emit"][4, 0] = -INF  # no path
    inputs["lengths"][4] = steps
    ids = torch.tensor([3, 0, 2**40, 11, -5, 1, 77, 2])
    seed, checked = 2**40 + 99, 0
    paths = ops.hmm_sample(**inputs, seed=seed, num_samples=4, sequence_ids=ids)
    assert list(paths.shape) == [4, 8, steps]
    assert paths.dtype == torch.int64
    for b, sequence in enumerate(sequences(inputs)):
        n = sequence[2].shape[0]
        if n == 0:
            continue
        possible = in_log_space(*sequence).log_likelihood > -INF
        for s in range(4):
            states_ = cut(paths[s, b], n)
            if not possible:
                assert states_ == [-1] * n
                continue
            expected, margin = drawn_by_hand(sequence, seed, int(ids[b]), s, dtype)
            if margin > 1e-5:
                checked += n
                assert states_ == expected
    assert checked > 100


@pytest.mark.parametrize("scale", [10.0, 60.0, 1000.0])
def test_samples_beyond_the_range_of_float32(scale):
    """Weights far below 2^-126 of the largest, which later evidence may make the only ones left."""
    inputs = make(8, 11, 5, "token", forbidden=0.2)
    for name in ("log_trans", "log_emit"):
        inputs[name] *= scale
    paths = ops.hmm_sample(**inputs, seed=4, num_samples=3)
    checked = 0
    for b, sequence in enumerate(sequences(inputs)):
        n = sequence[2].shape[0]
        if n == 0 or in_log_space(*sequence).log_likelihood == -INF:
            continue
        for s in range(3):
            expected, margin = drawn_by_hand(sequence, 4, b, s, torch.float32)
            if margin > 1e-5:
                checked += n
                assert cut(paths[s, b], n) == expected
    assert checked > 50


def test_a_sample_follows_the_only_path_however_unlikely_it_began():
    log_emit = torch.zeros(1, 20, 2)
    log_emit[0, 0, 1] = -300.0
    log_emit[0, 19, 0] = -INF
    log_trans = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    paths = ops.hmm_sample(torch.zeros(2), log_trans, log_emit, seed=0, num_samples=5)
    assert (paths == 1).all()


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_sample_frequencies(kind):
    """Chi-square of whole paths against their exact probabilities."""
    inputs = make(2, 4, 3, kind, ragged=False)
    inputs["lengths"] = torch.tensor([4, 3])
    count = 40_000
    paths = ops.hmm_sample(**inputs, seed=7, num_samples=count)
    for b, sequence in enumerate(sequences(inputs)):
        states, score = all_paths(*sequence)
        n = states.shape[1]
        digits = 3 ** torch.arange(n)
        expected = torch.zeros(3**n).double()
        expected[(states * digits).sum(1)] = score.softmax(0) * count
        seen = torch.bincount((paths[:, b, :n] * digits).sum(1), minlength=3**n).double()
        often = expected >= 5
        pairs = torch.cat(
            (torch.stack((seen, expected))[:, often],
             torch.stack((seen, expected))[:, ~often].sum(1, keepdim=True)), 1
        )  # fmt: skip
        pairs = pairs[:, pairs[1] > 0]
        chi_square = float(((pairs[0] - pairs[1]) ** 2 / pairs[1]).sum())
        freedom = pairs.shape[1] - 1
        # Wilson-Hilferty: five standard deviations
        bound = freedom * (1 - 2 / (9 * freedom) + 5 * math.sqrt(2 / (9 * freedom))) ** 3
        assert freedom > 10
        assert chi_square < bound


def test_sample_frequencies_of_long_sequences():
    """Frequencies of states against gamma, score against log Z and entropy."""
    inputs = make(3, 40, 5, dtype=torch.float64, ragged=False)
    count = 4000
    paths = ops.hmm_sample(**inputs, seed=3, num_samples=count)
    gamma = ops.hmm_posteriors(**inputs).gamma
    seen = torch.nn.functional.one_hot(paths, 5).double().mean(0)
    deviation = (seen - gamma) / (gamma * (1 - gamma) / count).sqrt().clamp(min=1e-3)
    assert deviation.abs().max() < 5.5
    log_z, entropy = ops.hmm_log_likelihood(**inputs), ops.hmm_entropy(**inputs)
    for b, sequence in enumerate(sequences(inputs)):
        scores = torch.stack([path_score(*sequence, path) for path in paths[:300, b].tolist()])
        surprise = log_z[b] - scores
        error = (surprise.mean() - entropy[b]) / (surprise.std() / math.sqrt(300))
        assert abs(float(error)) < 4


@pytest.mark.parametrize("kind", ["shared", "token"])
def test_draws_belong_to_the_sequence(kind):
    """Whatever the batch, its order, the padding, the threads and the number of samples."""
    inputs = make(9, 15, 9, kind)
    ids = torch.randint(2**40, (9,))
    paths = ops.hmm_sample(**inputs, seed=5, num_samples=3, sequence_ids=ids)
    same(ops.hmm_sample(**inputs, seed=5, num_samples=2, sequence_ids=ids), paths[:2])
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    same(ops.hmm_sample(**inputs, seed=5, num_samples=3, sequence_ids=ids), paths)
    torch.set_num_threads(before)
    order = torch.randperm(9)
    shuffled = ops.hmm_sample(**rows(inputs, order), seed=5, num_samples=3, sequence_ids=ids[order])
    same(shuffled, paths[:, order])
    assert not torch.equal(ops.hmm_sample(**inputs, seed=6, num_samples=3, sequence_ids=ids), paths)


def test_ids_are_positions_by_default():
    inputs = make(4, 12, 5)
    paths = ops.hmm_sample(**inputs, seed=5)
    same(paths, ops.hmm_sample(**inputs, seed=5, sequence_ids=torch.arange(4)))
    same_sequence = rows(inputs, torch.zeros(4, dtype=torch.int64))
    twins = ops.hmm_sample(**same_sequence, seed=5, sequence_ids=torch.tensor([8, 8, 8, 9]))[0]
    same(twins[0], twins[1])
    same(twins[0], twins[2])
    assert not torch.equal(twins[0], twins[3])


def test_paths_are_data():
    inputs, _ = leaves(make(3, 5, 4))
    path, score = ops.hmm_viterbi(**inputs)
    assert not path.requires_grad
    assert not score.requires_grad
    assert not ops.hmm_sample(**inputs, seed=0).requires_grad
    empty = make(0, 5, 4)
    assert list(ops.hmm_viterbi(**empty).path.shape) == [0, 5]
    assert list(ops.hmm_sample(**empty, seed=0, num_samples=2).shape) == [2, 0, 5]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 9223372036854775808\), got -1"),
        ({"seed": 2**63}, ValueError, "seed must lie in"),
        ({"seed": 1.0}, TypeError, "seed must be an integer, got float"),
        ({"seed": True}, TypeError, "seed must be an integer, got bool"),
        ({"num_samples": 0}, ValueError, r"num_samples must lie in \[1, 4294967296\), got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an int"),
        ({"sequence_ids": torch.zeros(3)}, TypeError, "sequence_ids must be int64"),
        ({"sequence_ids": torch.arange(4)}, ValueError, r"sequence_ids .*\[3\].*got \[4\]"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    inputs = make(3, 5, 4)
    with pytest.raises(error, match=message):
        ops.hmm_sample(**inputs, **{"seed": 0, **change})

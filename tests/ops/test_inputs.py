"""What every op takes and refuses, as tensors and as NumPy arrays: one set of checks."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

import oneshot.numpy as faces
from oneshot import ops

B, T, V, K = 2, 3, 5, 4


def draw(*shape):
    return torch.randn(shape)


def on(*shape):
    mask = torch.rand(shape) > 0.4
    mask.view(-1)[:1] = True
    return mask


# Every function with all its tensors: masks and integers by name, the rest floats.
CALLS = {
    "token_logprobs_and_entropy": {
        "logits": draw(B, T, V), "targets": torch.randint(V, (B, T)), "mask": on(B, T),
        "keep_mask": torch.ones(V, dtype=torch.bool),
    },
    "group_advantages": {
        "rewards": draw(4), "group_ids": torch.tensor([0, 1, 0, 1]),
        "lengths": torch.tensor([1, 2, 3, 4]), "baseline": "opo",
    },
    "group_advantages masked": {
        "rewards": draw(4, T), "group_sizes": torch.tensor([3, 1]), "mask": on(4, T),
    },
    "gae": {
        "rewards": draw(6), "values": draw(6), "mask": on(6), "bootstrap": draw(2),
        "cu_seqlens": torch.tensor([0, 2, 6]),
    },
    "whiten": {"values": draw(B, T), "mask": on(B, T)},
    "policy_loss": {
        "logprobs": draw(6), "old_logprobs": draw(6), "advantages": draw(6), "mask": on(6),
        "ref_logprobs": draw(6), "entropy": draw(6), "importance_weights": draw(6).abs(),
        "cu_seqlens": torch.tensor([0, 2, 6]), "kl_coef": 0.1, "entropy_coef": 0.1,
    },
    "value_loss": {
        "values": draw(6), "old_values": draw(6), "returns": draw(6), "mask": on(6),
        "cu_seqlens": torch.tensor([0, 2, 6]),
    },
    "importance_weights": {
        "logprobs": draw(6), "sampler_logprobs": draw(6), "mask": on(6),
        "cu_seqlens": torch.tensor([0, 2, 6]),
    },
    "hmm_posteriors": {
        "log_init": draw(K), "log_trans": draw(K, K), "log_emit": draw(B, T, K),
        "lengths": torch.tensor([3, 1]), "log_final": draw(K),
    },
    "hmm_viterbi": {
        "log_init": draw(K), "log_trans": draw(K, K), "log_emit": draw(B, T, K),
        "lengths": torch.tensor([3, 1]), "log_final": draw(K),
    },
    "mix_adapters": {"inventory": draw(2, K, 3, 2), "weights": draw(3, 2, K), "split_dim": -2},
    "routed_lora": {
        "x": draw(4, 6), "lora_a": draw(2, K, 3, 2), "lora_b": draw(2, K, 2, 3),
        "weights": draw(3, 2, K), "rows": torch.tensor([0, 2, 1, 0]), "base": draw(4, 6),
    },
}  # fmt: skip
ONLY_OPS = {
    "routing_weights": {"logits": draw(3, 2, K), "task_ids": torch.tensor([0, 2, 1])},
    "routed_ia3": {
        "x": draw(4, 6), "inventory": draw(2, K, 3), "weights": draw(3, 2, K),
        "rows": torch.tensor([0, 2, 1, 0]),
    },
    "hmm_sample": {
        "log_init": draw(K), "log_trans": draw(K, K), "log_emit": draw(B, T, K),
        "lengths": torch.tensor([3, 1]), "sequence_ids": torch.tensor([7, 9]), "seed": 3,
    },
    "combine_emissions": {
        "log_emissions": draw(2, K, V), "observations": torch.randint(V, (B, T, 2)),
    },
}  # fmt: skip
EVERY = CALLS | ONLY_OPS


def tensors(kind):
    """(call, name of argument) for each tensor of a kind: "bool", "integer" or "float"."""
    kinds = {torch.bool: "bool", torch.int64: "integer", torch.float32: "float"}
    return [
        (case, name)
        for case, arguments in EVERY.items()
        for name, x in arguments.items()
        if isinstance(x, torch.Tensor) and kinds[x.dtype] == kind
    ]


def flat(x):
    """All tensors, arrays and numbers of a result, as tensors."""
    if isinstance(x, dict):
        return flat(list(x.values()))
    if isinstance(x, (tuple, list)):
        return [y for part in x for y in flat(part)]
    return [] if x is None else [torch.as_tensor(x)]


def run(case, **changes):
    return flat(getattr(ops, case.split()[0])(**{**EVERY[case], **changes}))


def run_face(case, **changes):
    arguments = {**CALLS[case], **changes}
    arrays = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in arguments.items()}
    return getattr(faces, case.split()[0])(**arrays)


def same(got, want):
    assert len(got) == len(want) > 0
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("case", "name"), tensors("bool"))
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_masks_of_zeros_and_ones(case, name, dtype):
    same(run(case, **{name: EVERY[case][name].to(dtype)}), run(case))


@pytest.mark.parametrize(("case", "name"), tensors("bool"))
@pytest.mark.parametrize("value", [2, -1, 0.3, float("nan")])
def test_masks_of_anything_else(case, name, value):
    mask = EVERY[case][name].to(torch.float32 if isinstance(value, float) else torch.int64)
    mask.view(-1)[0] = value
    for call in (run, run_face):
        with pytest.raises(ValueError, match=f"{name} must be bool, or numbers that are all 0 or"):
            call(case, **{name: mask})


@pytest.mark.parametrize(("case", "name"), tensors("integer"))
def test_integers_of_32_bits(case, name):
    same(run(case, **{name: EVERY[case][name].int()}), run(case))


@pytest.mark.parametrize(("case", "name"), [*tensors("integer"), *tensors("float"),
                                            *tensors("bool")])  # fmt: skip
def test_arrays_and_lists_are_named(case, name):
    x = EVERY[case][name]
    for wrong, kind in ((x.numpy(), r"numpy\.ndarray; oneshot.numpy takes"), (x.tolist(), "list")):
        with pytest.raises(TypeError, match=f"{name} must be .*, got {kind}"):
            run(case, **{name: wrong})


@pytest.mark.parametrize(("case", "name"), tensors("integer"))
def test_integers_that_are_none(case, name):
    wrong = EVERY[case][name].float() + 0.5
    for call in (run, run_face) if case in CALLS else (run,):
        with pytest.raises((TypeError, ValueError), match=f"{name} must"):
            call(case, **{name: wrong})


NUMBERS = [
    ("importance_weights", {"log_ratio_clamp": -1.0}, "log_ratio_clamp must be positive"),
    ("importance_weights", {"log_ratio_clamp": 0.0}, "log_ratio_clamp must be positive"),
    ("importance_weights", {"log_ratio_clamp": float("nan")}, "log_ratio_clamp must be positive"),
    ("importance_weights", {"low": 2.0, "high": 1.0}, "thresholds must satisfy"),
    ("importance_weights", {"level": "batch"}, "level must be token or sequence"),
    ("importance_weights", {"mode": "drop"}, "mode must be truncate or mask"),
    ("policy_loss", {"objective": "none"}, "objective must be one of"),
    ("policy_loss", {"dual_clip": 0.5}, "dual_clip must be at least 1"),
    ("policy_loss", {"clip_low": -0.1}, "clip_low must be at least 0"),
    ("policy_loss", {"clip_high": -0.5}, "the clip range is empty"),
    ("policy_loss", {"kl_clamp": 0.0}, "kl_clamp must be positive"),
    ("policy_loss", {"token_count": 0}, "token_count must be positive"),
    ("value_loss", {"clip": 0.0}, "clip must be positive"),
    ("value_loss", {"old_values": None}, "needs old_values"),
    ("value_loss", {"aggregate": "mean"}, "aggregate must be one of"),
    ("group_advantages", {"baseline": "median"}, "baseline must be one of"),
    ("group_advantages", {"ddof": 2}, "ddof must be one of"),
    ("group_advantages", {"lengths": None}, "lengths must be given"),
    ("token_logprobs_and_entropy", {"temperature": 0.0}, "temperature must be positive"),
    ("token_logprobs_and_entropy", {"temperature": float("inf")}, "temperature must be positive"),
    ("mix_adapters", {"split_dim": 0}, "split_dim must be one of"),
    ("routed_lora", {"rows": torch.tensor([0, -1, 1, 0])}, r"rows must lie in \[0, 3\), got -1"),
    (
        "routed_lora",
        {"rows": torch.tensor([0, 3, 1, 0])},
        r"rows must lie in \[0, 3\), got 3 at place 1",
    ),
]


@pytest.mark.parametrize(("case", "change", "message"), NUMBERS)
def test_both_faces_refuse_the_same_numbers(case, change, message):
    for call in (run, run_face):
        with pytest.raises(ValueError, match=message):
            call(case, **change)


@pytest.mark.parametrize("plan", ["auto", "mixtures", "inventory"])
@pytest.mark.parametrize("rows", [[0, -1, 1, 0], [0, 5, 1, 0]])
def test_rows_are_checked_on_every_path(rows, plan):
    """With five mixtures of three skills "auto" takes the inventory."""
    arguments = {"x": draw(4, 6), "weights": draw(5, 2, 3), "rows": torch.tensor(rows)}
    message = r"rows must lie in \[0, 5\)"
    with pytest.raises(ValueError, match=message):
        ops.routed_lora(
            **arguments, lora_a=draw(2, 3, 3, 2), lora_b=draw(2, 3, 2, 3), plan=plan
        )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.routed_ia3(**arguments, inventory=draw(2, 3, 3))
    mixed = ops.mix_adapters(draw(2, 3, 3), arguments["weights"], split_dim=-1)
    with pytest.raises(ValueError, match=message):
        ops.routed_ia3(arguments["x"], mixed, rows=arguments["rows"])


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numpy_face_has_the_bits_of_the_op(case, dtype):
    """In both precisions; a list of Python numbers is float64 as in NumPy."""
    floats = {n: CALLS[case][n].to(dtype, copy=True) for c, n in tensors("float") if c == case}
    got = flat(run_face(case, **floats))
    leaf = {"policy_loss": "logprobs", "value_loss": "values"}.get(case)
    want = run(case, **floats)
    if leaf is None:
        same([x for x in got if x.dim()], [x for x in want if x.dim() and len(x) != 8])
        return
    floats[leaf].requires_grad_()
    getattr(ops, case)(**{**CALLS[case], **floats}).loss.backward()
    result = run_face(case, **floats | {leaf: floats[leaf].detach()})
    np.testing.assert_array_equal(getattr(result, f"grad_{leaf}"), floats[leaf].grad.numpy())
    assert result.loss == pytest.approx(float(want[0]), rel=1e-12)


def test_float64_is_not_narrowed():
    """The sheet's case: in float32 the three numbers are one."""
    got = faces.whiten([1e9, 1e9 + 1, 1e9 + 2])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [-1, 0, 1], rtol=1e-6)
    column = faces.policy_loss(np.zeros((2, 3)), None, np.ones((2, 1)))
    np.testing.assert_allclose(column.grad_logprobs, -1 / 6)


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(3, complex)])
def test_arrays_without_numbers(array):
    with pytest.raises(TypeError, match="values must be an array of float16, float32, float64"):
        faces.whiten(array)


def test_read_only_and_reversed_arrays():
    values = np.arange(6.0)
    frozen = values.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(faces.whiten(frozen), faces.whiten(values))
    np.testing.assert_array_equal(faces.whiten(values[::-1]), faces.whiten(values)[::-1])


def test_other_threads_run_during_a_call():
    """With an endless switch interval a thread gets the lock only where the other lets it go."""
    ticks, done = [0], threading.Event()

    def count():
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0)

    logits, targets = np.zeros((256, 32000), np.float32), np.zeros(256, np.int64)
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    try:
        sys.setswitchinterval(1000)
        before = ticks[0]
        for _ in range(100):  # a busy machine may not run the thread during the first
            faces.token_logprobs_and_entropy(logits, targets)
            if during := ticks[0] - before:
                break
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert during > 0

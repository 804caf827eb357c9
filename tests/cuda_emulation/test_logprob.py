"""The CUDA kernels of `logprob` on the emulator, against the reference in float64."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from emulation import DTYPES, Device, kernels

from oneshot.reference import logprob as reference

TOLERANCE = {
    torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5,
}  # fmt: skip
ROUNDING = {
    torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3,
}  # fmt: skip


class Case(NamedTuple):
    logits: torch.Tensor  # a view: rows may lie apart
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    keep_mask: torch.Tensor | None = None
    temperature: float = 1.0


class Result(NamedTuple):
    logprobs: torch.Tensor
    entropy: torch.Tensor
    stats: torch.Tensor


def row_stride(t: torch.Tensor | None) -> int:
    return 0 if t is None or t.dim() == 1 or t.shape[0] == 1 else t.stride(0)


def common(device: Device, case: Case, logits: int | None, gradient_stride: int) -> list[object]:
    shape = (*case.logits.shape, case.targets.shape[1], row_stride(case.logits),
             row_stride(case.keep_mask), gradient_stride)  # fmt: skip
    return [
        ctypes.c_int(DTYPES[case.logits.dtype]), ctypes.c_void_p(logits),
        (ctypes.c_int64 * 6)(*shape),
        *map(ctypes.c_void_p, map(device.put, (case.targets, case.mask, case.keep_mask))),
        ctypes.c_double(case.temperature),
    ]  # fmt: skip


def real(case: Case) -> torch.dtype:
    return torch.float64 if case.logits.dtype == torch.float64 else torch.float32


def forward(case: Case, seed: int = 0) -> Result:
    device, library = Device(kernels(), seed), kernels()
    rows, vocab = case.logits.shape
    library.emu_logprob_workspace.restype = ctypes.c_int64
    workspace = library.emu_logprob_workspace(
        DTYPES[case.logits.dtype], ctypes.c_int64(rows), ctypes.c_int64(vocab)
    )
    shapes = (case.targets.shape, (rows,), (rows, 3))
    out = [device.empty(shape, real(case)) for shape in shapes]
    arguments = common(device, case, device.put(case.logits), 0)
    pointers = map(ctypes.c_void_p, (*out, device.scratch(workspace)))
    device.check(library.emu_logprob_forward(*arguments, *pointers))
    return Result(*map(device.get, out))


def backward(case: Case, by_logprobs, by_entropy, saved: Result, in_place=False, seed=0):
    device, library = Device(kernels(), seed), kernels()
    logits = device.put(case.logits, kind=2 if in_place else 1)
    stride = row_stride(case.logits) if in_place else case.logits.shape[1]
    grad = logits if in_place else device.empty(case.logits.shape, case.logits.dtype)
    tensors = (by_logprobs, by_entropy, saved.logprobs, saved.stats)
    pointers = map(ctypes.c_void_p, (*map(device.put, tensors), grad))
    device.check(library.emu_logprob_backward(*common(device, case, logits, stride), *pointers))
    if not in_place:
        return device.get(grad)
    # The whole storage comes back, so that what lies between the rows is seen too.
    storage = case.logits.untyped_storage()
    start = grad - case.logits.storage_offset() * case.logits.element_size()
    count = storage.nbytes() // case.logits.element_size()
    flat = device.read(start, (count,), case.logits.dtype)
    return flat, flat.as_strided(
        case.logits.shape, case.logits.stride(), case.logits.storage_offset()
    )


def expected(case: Case) -> Result:
    return Result(
        *reference.token_logprobs_and_entropy(
            case.logits.double(), case.targets, case.mask, case.keep_mask, case.temperature, False
        )
    )


def expected_gradient(case: Case, by_logprobs, by_entropy, saved: Result) -> torch.Tensor:
    wide = [None if g is None else g.double() for g in (by_logprobs, by_entropy)]
    return reference.token_logprobs_and_entropy_backward(
        *wide, case.logits.double(), case.targets, case.mask, case.keep_mask,
        saved.logprobs, saved.stats, case.temperature,
    )  # fmt: skip


def check(case: Case, seed: int = 0) -> None:
    got, want = forward(case, seed), expected(case)
    tolerance = TOLERANCE[case.logits.dtype]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance, equal_nan=True)
    up = torch.randn_like(got.logprobs), torch.randn_like(got.entropy)
    for by_logprobs, by_entropy in (up, (up[0], None), (None, up[1])):
        gradient = backward(case, by_logprobs, by_entropy, got, seed=seed + 1)
        right = expected_gradient(case, by_logprobs, by_entropy, want)
        rounding = ROUNDING[case.logits.dtype]
        torch.testing.assert_close(
            gradient.double(), right, rtol=rounding, atol=tolerance, equal_nan=True
        )


def random_case(rows: int, vocab: int, k: int, dtype: torch.dtype, **options) -> Case:
    logits = (torch.randn(rows, vocab, dtype=torch.float64) * 4).to(dtype)
    return Case(logits, torch.randint(0, vocab, (rows, k)), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab", "k"), [(1, 1, 1), (7, 63, 2), (9, 1000, 1)])
def test_forward_and_gradient(rows: int, vocab: int, k: int, dtype: torch.dtype) -> None:
    check(random_case(rows, vocab, k, dtype, temperature=0.6))


@pytest.mark.gpu_free
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [2, 8, 255, 8192, 8193, 16384, 16385, 50257])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_full_sweep(vocab: int, k: int, dtype: torch.dtype) -> None:
    check(random_case(3, vocab, k, dtype, temperature=1.7), seed=vocab)


def test_a_row_of_several_segments() -> None:
    case = random_case(2, 40001, 1, torch.bfloat16)
    case.logits[0, 39000] = 100.0  # a late maximum
    case.targets[0] = 39000
    check(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_minus_infinity_repeated_targets_and_garbage(dtype: torch.dtype) -> None:
    case = random_case(12, 300, 4, dtype, temperature=0.8)
    mask, keep = torch.rand(12) < 0.6, torch.rand(12, 300) < 0.5
    mask[0], keep[:, 0] = True, True
    case.targets[0] = torch.tensor([5, 5, 9, 5])
    case.targets[~mask] = -7
    case.logits[~mask] = float("nan")
    case.logits[0, 100:200] = -float("inf")
    check(case._replace(mask=mask, keep_mask=keep))
    check(case._replace(mask=mask, keep_mask=keep[0]))


def test_rows_that_are_no_distribution_are_nan_and_alone_so() -> None:
    case = random_case(4, 70, 1, torch.float32)
    case.logits[1] = -float("inf")
    case.logits[2, 3] = float("nan")
    case.logits[3, 3] = float("inf")
    got = forward(case)
    assert torch.isfinite(got.logprobs[0]).all()
    assert got.logprobs[1:].isnan().all()
    assert got.entropy[1:].isnan().all()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gives_the_same_bits_wherever_it_lies(dtype: torch.dtype, offset: int) -> None:
    base = random_case(5, 1003, 1, dtype)
    wide = torch.full((5, 1024), float("nan"), dtype=dtype)
    view = wide[:, offset : offset + 1003]
    view.copy_(base.logits)
    together = forward(base._replace(logits=view), seed=1)
    for i in range(5):
        alone = forward(Case(base.logits[i : i + 1], base.targets[i : i + 1]), seed=i)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_gradient_and_touches_nothing_else(dtype: torch.dtype) -> None:
    wide = torch.full((6, 600), 77.0, dtype=dtype)
    case = random_case(6, 501, 2, dtype, mask=torch.tensor([True, False, True, True, True, True]))
    view = wide[:, 3:504]
    view.copy_(case.logits)
    case = case._replace(logits=view)
    saved = forward(case)
    up = torch.randn_like(saved.logprobs), torch.randn_like(saved.entropy)
    up[0][2], up[1][2] = 0.0, 0.0
    fresh = backward(case, *up, saved)
    flat, over = backward(case, *up, saved, in_place=True, seed=5)
    assert torch.equal(over, fresh)
    assert (fresh[1:3] == 0).all()
    untouched = torch.ones(6, 600, dtype=torch.bool)
    untouched[:, 3:504] = False
    assert (flat.view(6, 600)[untouched] == 77.0).all()


@pytest.mark.parametrize("target", [-1, 63])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    case = random_case(3, 63, 1, torch.float32)
    case.targets[1] = target
    with pytest.raises(RuntimeError, match="refuses its input"):
        forward(case)

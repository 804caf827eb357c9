"""The CUDA kernels of `policy_loss` on the emulator, against the reference in float64."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from emulation import DTYPES, Device, kernels

from oneshot.reference import policy_loss as reference

INF = math.inf
PLAIN = reference.PolicyOptions(
    surrogate=0, ratio=0, clip_min=0.8, clip_max=1.28, dual_clip=INF, delta=INF,
    log_ratio_min=-INF, log_ratio_max=INF, kl=3, kl_importance_weighted=False,
    kl_log_ratio_clamp=INF, kl_clamp=INF, policy_coef=1.0, kl_coef=0.1, entropy_coef=0.01,
    aggregate=0, kl_aggregate=-1, entropy_aggregate=-1, count_empty=True, max_length=50,
)  # fmt: skip
BOUNDED = {
    "dual_clip": 1.5, "delta": 1.6, "log_ratio_min": -0.9, "log_ratio_max": 0.7,
    "kl_log_ratio_clamp": 0.8, "kl_clamp": 0.3,
}  # fmt: skip
NAMES = ("logprobs", "old", "advantages", "ref", "entropy", "weights")
KINDS = {torch.float32: 1, torch.float64: 2, torch.int64: 3}


class Batch:
    """Token values, padded [B, T] or packed [N] with bounds."""

    def __init__(self, lengths: list[int], dtype: torch.dtype, packed: bool = False) -> None:
        width, batch = max(lengths), len(lengths)
        shape = (sum(lengths),) if packed else (batch, width)
        make = lambda: torch.randn(shape, dtype=torch.float64).mul(0.6).to(dtype)  # noqa: E731
        self.tensors: dict[str, torch.Tensor | None] = {name: make() for name in NAMES}
        self.tensors["weights"] = make().abs()
        self.bounds = torch.tensor([0, *itertools.accumulate(lengths)]) if packed else None
        self.batch = batch
        self.mask = torch.rand(shape) < 0.7
        if not packed:
            self.mask &= torch.arange(width) < torch.tensor(lengths)[:, None]
        for name in NAMES:  # garbage where nothing counts
            self.tensors[name][~self.mask] = float("nan")  # type: ignore[index]

    def common(self, device: Device, options: reference.PolicyOptions) -> list[object]:
        first = self.tensors["logprobs"]
        assert first is not None
        shape = (self.batch, first.shape[1] if first.dim() == 2 else 0,
                 first.dtype == torch.float64, first.numel())  # fmt: skip
        pointers, layouts = [], []
        for name in NAMES:
            t = self.tensors[name]
            pointers.append(device.put(t))
            if t is None:
                layouts += [0, 0, 0]
            elif t.shape == first.shape:
                layouts += [DTYPES[t.dtype], t.stride(0) if t.dim() == 2 else 0, t.stride(-1)]
            else:  # one value a sequence
                layouts += [DTYPES[t.dtype], t.stride(0), 0]
        return [
            (ctypes.c_int64 * 4)(*map(int, shape)), ctypes.c_void_p(device.put(self.bounds)),
            ctypes.c_void_p(device.put(self.mask)), (ctypes.c_void_p * 6)(*pointers),
            (ctypes.c_int64 * 18)(*layouts), (ctypes.c_double * 20)(*map(float, options)),
        ]  # fmt: skip

    def arguments(self) -> list[torch.Tensor | None]:
        wide = {k: None if t is None else t.double() for k, t in self.tensors.items()}
        return [wide["logprobs"], wide["old"], wide["advantages"], self.mask, wide["ref"],
                wide["entropy"], wide["weights"], self.bounds]  # fmt: skip


def forward(batch: Batch, options, count=None, seed=0):
    device, library = Device(kernels(), seed), kernels()
    arguments = batch.common(device, options)
    real = torch.float64 if batch.tensors["logprobs"].dtype == torch.float64 else torch.float32
    out = [device.empty((), real), device.empty((14,), real)]
    out.append(device.empty((4, batch.batch), torch.float64))
    library.emu_policy_workspace.restype = ctypes.c_int64
    sums = device.scratch(library.emu_policy_workspace(ctypes.c_int64(batch.batch)))
    device.check(
        library.emu_policy_loss(
            *arguments, ctypes.c_void_p(device.put(count)),
            0 if count is None else KINDS[count.dtype], *map(ctypes.c_void_p, (sums, *out)),
        )
    )  # fmt: skip
    return [device.get(x) for x in out]


def backward(batch: Batch, options, grad_loss, weights, seed=0):
    device, library = Device(kernels(), seed), kernels()
    first = batch.tensors["logprobs"]
    out = [device.empty(first.shape, first.dtype) for _ in range(2)]
    device.check(
        library.emu_policy_loss_backward(
            *batch.common(device, options), ctypes.c_void_p(device.put(grad_loss)),
            KINDS[grad_loss.dtype], *map(ctypes.c_void_p, (device.put(weights), *out)),
        )
    )  # fmt: skip
    return [device.get(x) for x in out]


def check(batch: Batch, options: reference.PolicyOptions, count=None, seed: int = 0) -> None:
    dtype = batch.tensors["logprobs"].dtype
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    loss, metrics, weights = forward(batch, options, count, seed)
    want = reference.policy_loss(*batch.arguments(), count, *options)
    for got, right in zip((loss, metrics, weights), want, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=tolerance, atol=tolerance)
    upstream = torch.tensor(-1.7, dtype=loss.dtype)
    grads = backward(batch, options, upstream, weights, seed + 1)
    arguments = batch.arguments()
    del arguments[5]  # entropy
    right = reference.policy_loss_backward(
        upstream.double(), *arguments, weights, True, True, *options
    )
    rounding = {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, tolerance)
    for got, exact in zip(grads, right, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=max(tolerance, 1e-7))
        assert (got[~batch.mask] == 0).all()


LENGTHS = [1, 7, 0, 63, 30]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_type_and_layout(dtype: torch.dtype, packed: bool) -> None:
    check(Batch(LENGTHS, dtype, packed), PLAIN)


@pytest.mark.parametrize(("surrogate", "ratio"), list(itertools.product(range(3), range(3))))
def test_surrogates_and_ratios_with_every_bound(surrogate: int, ratio: int) -> None:
    options = PLAIN._replace(surrogate=surrogate, ratio=ratio, **BOUNDED)
    check(Batch(LENGTHS, torch.float64), options, seed=ratio)


@pytest.mark.parametrize("kl", range(8))
def test_kl_estimators(kl: int) -> None:
    options = PLAIN._replace(kl=kl, kl_importance_weighted=True, kl_clamp=0.4)
    check(Batch(LENGTHS, torch.float64), options)


@pytest.mark.parametrize("aggregate", range(5))
@pytest.mark.parametrize("count", [None, torch.tensor(37), torch.tensor(11.5)])
def test_aggregation(aggregate: int, count: torch.Tensor | None) -> None:
    options = PLAIN._replace(
        aggregate=aggregate, kl_aggregate=(aggregate + 1) % 5, count_empty=aggregate % 2 == 0
    )
    check(Batch(LENGTHS, torch.float64), options, count)


def test_what_may_be_missing_strided_or_one_value_a_sequence() -> None:
    batch = Batch(LENGTHS, torch.float32)
    for name in ("old", "ref", "entropy", "weights"):
        batch.tensors[name] = None
    batch.tensors["advantages"] = torch.randn(2 * len(LENGTHS))[::2]
    wide = torch.randn(len(LENGTHS), 2 * 63)
    batch.tensors["logprobs"] = wide[:, 1::2]
    options = PLAIN._replace(surrogate=2, kl=0)
    batch.tensors["logprobs"][~batch.mask] = float("nan")
    check(batch, options)


def test_a_batch_without_a_counted_token() -> None:
    batch = Batch([3, 2], torch.float64)
    batch.mask[:] = False
    loss, metrics, _ = forward(batch, PLAIN)
    assert loss == 0
    assert (metrics == 0).all()


@pytest.mark.gpu_free
@pytest.mark.parametrize("seed", range(40))
def test_random_options(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pick = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
    torch.manual_seed(seed)
    options = PLAIN._replace(
        surrogate=pick(3), ratio=pick(3), kl=pick(8), kl_importance_weighted=bool(pick(2)),
        policy_coef=float(pick(2)), kl_coef=float(pick(2)), aggregate=pick(5),
        kl_aggregate=pick(6) - 1, entropy_aggregate=pick(6) - 1, count_empty=bool(pick(2)),
        **{name: bound if pick(2) else PLAIN._asdict()[name] for name, bound in BOUNDED.items()},
    )  # fmt: skip
    lengths = [pick(300) for _ in range(1 + pick(6))] + [1]
    check(Batch(lengths, torch.float64, packed=bool(pick(2))), options, seed=seed)


@pytest.mark.parametrize("bounds", [[1, 8], [0, 7], [0, 5, 3, 8]])
def test_bounds_that_do_not_rise_to_the_tokens_are_refused(bounds: list[int]) -> None:
    batch = Batch([8], torch.float32, packed=True)
    batch.bounds, batch.batch = torch.tensor(bounds), len(bounds) - 1
    with pytest.raises(RuntimeError, match="refuses its input"):
        forward(batch, PLAIN)

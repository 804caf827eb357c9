"""The list of operations, the floors, and real worker processes."""

import os

import pytest
import torch

from oneshot._load import native
from oneshot.bench import measure, registry
from oneshot.bench.floors import floor

OPERATIONS = registry.operations()


def test_ids_are_unique_and_find_their_operation():
    ids = [operation.id for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    assert all(registry.find(operation.id) is operation for operation in OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_every_operation_is_complete(operation):
    names = [provider.name for provider in operation.providers]
    assert len(set(names)) == len(names)
    kinds = {provider.kind for provider in operation.providers}
    assert {"ours", "peer", "floor"} <= kinds
    for provider in operation.providers:
        bound = operation.floor_of(provider)
        assert (bound is None) == (provider.kind == "floor")
        assert bound is None or operation.provider(bound).kind == "floor"
    assert operation.family in registry.GROUPS
    assert (operation.mode == "forward") == (not operation.differentiate)


def test_quick_leaves_the_large_logits_out():
    quick = registry.operations(quick=True)
    assert {operation.family for operation in quick} == set(registry.GROUPS)
    assert not any("2048x151936" in operation.shape for operation in quick)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_floors_touch_memory_and_change_nothing(dtype, size):
    x = (torch.randn(3, size) > 0).to(dtype)
    if dtype.is_floating_point:
        x[0, 0] = float("nan")
    before = x.clone().view(torch.uint8)
    call = floor("all", read=("x",), copy=("x",), rewrite=("x",)).load()
    read, copy, rewritten = call({"x": x})
    assert torch.equal(x.view(torch.uint8), before)
    assert torch.equal(copy.view(torch.uint8), before)
    assert copy.data_ptr() != x.data_ptr() == rewritten.data_ptr()
    words = x.view(-1).view(torch.uint8)
    words = words.view(torch.int32) if words.numel() % 4 == 0 else words
    assert read == words.max()


@pytest.mark.skipif(native()[0] is None, reason="needs the native library")
@pytest.mark.skipif("ONESHOT_CPU_ISA" in os.environ, reason="a level is forced already")
def test_a_worker_runs_at_its_level_and_survives_failures():
    worker = measure.Worker("cpu", ONESHOT_CPU_ISA="scalar")
    try:
        assert worker.isa == "scalar"
        chosen = next(operation for operation in OPERATIONS if operation.kernel == "whiten")
        worker.ask("open", operation=chosen.id)
        assert worker.ask("verify", provider="oneshot")["status"] == "ok"
        once = worker.ask("time", provider="oneshot", iterations=2)
        assert once["wall"] > 0
        found = worker.ask("calibrate", provider="oneshot", min_time=0.0)
        assert found["iterations"] == 1
        with pytest.raises(measure.WorkerDied, match="KeyError: 'nobody'"):
            worker.ask("time", provider="nobody", iterations=1)
        worker._process.kill()
        with pytest.raises(measure.WorkerDied, match="ended with status -9"):
            worker.ask("describe")
        assert not worker.alive
        worker.start()
        assert worker.ask("describe")["isa"] == "scalar"
    finally:
        worker.stop()


@pytest.mark.skipif(native()[0] is None, reason="needs the native library")
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_peak_memory_counts_what_a_call_holds(monkeypatch):
    from bench_planted import local_worker, operation, provider

    def four_megabytes(inputs):
        torch.zeros(2**20).sum()
        return (inputs["x"].softmax(-1),)

    chosen = operation(provider(four_megabytes), provider(lambda x: (x["x"].softmax(-1),), "none"))
    worker = local_worker(monkeypatch, chosen)
    worker.ask("open", operation=chosen.id)
    for name, low, high in (("planted", 4e6, 6e6), ("none", 0, 1e6)):
        worker.ask("verify", provider=name)
        peak = worker.ask("calibrate", provider=name, min_time=0.0)["peak_memory"]
        assert low <= peak <= high


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_a_worker_keeps_to_as_many_cores_as_it_has_threads(monkeypatch):
    """So that a library that counts cores (XLA) gets no more of them than we do."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = measure.Worker("cpu")
    try:
        assert worker.threads == 1
        assert len(os.sched_getaffinity(worker._process.pid)) == 1
    finally:
        worker.stop()

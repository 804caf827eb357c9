"""The suite of the GPU without a GPU: all that can run does, on tiny CPU tensors, and its clock."""

import time
from types import SimpleNamespace

import bench_planted
import pytest
import torch

from oneshot.bench import cli, clocks, measure, registry
from oneshot.bench.registry import Foreign, Provider

REHEARSAL = registry.operations(suite="gpu-rehearsal")


@pytest.fixture(scope="module")
def workers():
    started = measure.start_workers("gpu-rehearsal")
    yield started
    for worker in started:
        worker.stop()


@pytest.mark.parametrize("operation", REHEARSAL, ids=lambda operation: operation.id)
def test_every_operation_is_verified_and_timed(operation, workers):
    settings = {"timed": True, "min_rounds": 1, "max_time": 0.0, "min_time": 0.0}
    entries = measure.measure(operation, workers, **settings)
    assert not [(e.name, e.detail) for e in entries if e.status == "failed"]
    ours = [entry for entry in entries if entry.provider.kind == "ours"]
    floors = [entry for entry in entries if entry.provider.kind == "floor"]
    assert ours
    assert floors
    assert all(entry.wall for entry in (*ours, *floors))


def test_both_suites_of_the_gpu_have_the_same_operations():
    def names(suite):
        return [(o.kernel, o.variant, o.dtype, o.mode) for o in registry.operations(suite=suite)]

    assert names("gpu-rehearsal") == names("gpu")


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--suite", "gpu"])
    assert "--suite gpu needs a GPU" in capsys.readouterr().err


class FakeEvent:
    """Counts in milliseconds from a clock that the work moves."""

    now = 0.0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def device_clock(monkeypatch):
    """The clock of a GPU over a made-up device: events, allocator."""
    memory = SimpleNamespace(now=100, peak=100)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: memory.peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: setattr(memory, "peak", memory.now)
    )
    return clocks.DeviceClock(), memory


def test_the_clock_of_the_gpu_reads_events_and_the_host(device_clock):
    clock, _ = device_clock

    def work():
        FakeEvent.now += 2.5  # milliseconds on the device
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    device, host = clock.seconds(work)
    assert device == pytest.approx(2.5e-3)
    assert 0.01 <= host < 0.1


def test_the_peak_on_the_gpu_is_what_the_call_added(device_clock):
    clock, memory = device_clock
    memory.peak = 5000  # of an earlier call

    def work():
        memory.peak = memory.now + 64

    assert clock.peak(work) == 64


def test_a_library_of_cpu_arrays_is_left_out_on_a_gpu(monkeypatch, device_clock):
    foreign = Foreign(lambda inputs: inputs, lambda inputs: inputs, lambda outputs: outputs)
    chosen = bench_planted.operation(Provider("numpy", "peer", lambda: foreign))
    worker = bench_planted.local_worker(monkeypatch, chosen)
    worker.ask("open", operation=chosen.id)
    worker.served.clock = device_clock[0]
    verdict = worker.ask("verify", provider="numpy")
    assert verdict["status"] == "not installed"
    assert verdict["detail"] == "computes on arrays of the CPU"

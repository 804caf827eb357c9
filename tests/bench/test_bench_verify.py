"""Nobody is timed who computes the wrong thing, and nobody is accused who is only absent."""

import numpy as np
import pytest
import torch
from bench_planted import local_worker, operation, provider, softmax

from oneshot.bench import measure, results, test_suite
from oneshot.bench.registry import Foreign, Provider


def verdict(monkeypatch, planted, **changes):
    chosen = operation(planted, **changes)
    worker = local_worker(monkeypatch, chosen)
    worker.ask("open", operation=chosen.id)
    return worker.ask("verify", provider=planted.name)


def tail_unwritten(inputs):
    (out,) = softmax(inputs)
    out = out.clone()
    out[:, -1] = 0
    return (out,)


class WrongGradient(torch.autograd.Function):
    """Softmax whose backward forgets the last column."""

    @staticmethod
    def forward(ctx, x):
        p = x.softmax(-1)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        out = p * (grad - (grad * p).sum(-1, keepdim=True))
        out[:, -1] = 0
        return out


WRONG = {
    "scaled": lambda x: (softmax(x)[0] * 1.001,),
    "tail": tail_unwritten,
    "nan": lambda x: (torch.where(x["x"] > 1, float("nan"), softmax(x)[0]),),
    "shape": lambda x: (softmax(x)[0].T,),
    "count": lambda x: (*softmax(x), *softmax(x)),
    "raises": lambda x: (torch.zeros(3) + torch.zeros(4),),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_output_fails(monkeypatch, fault):
    assert verdict(monkeypatch, provider(WRONG[fault]))["status"] == "failed"


@pytest.mark.parametrize("backward", [False, True])
def test_right_provider_passes_with_its_error(monkeypatch, backward):
    found = verdict(monkeypatch, provider(softmax), backward=backward)
    assert found["status"] == "ok"
    assert 0 < found["error"] < 1e-6 < found["tolerance"]


def test_wrong_gradient_fails_and_is_named(monkeypatch):
    planted = provider(lambda x: (WrongGradient.apply(x["x"]),))
    assert verdict(monkeypatch, planted)["status"] == "ok"  # its forward is right
    found = verdict(monkeypatch, planted, backward=True)
    assert found["status"] == "failed"
    assert "gradient of x" in found["detail"]


def test_one_wrong_element_in_many_fails(monkeypatch):
    """A norm alone would let a single unwritten element among 10^6 pass."""

    def make():
        return {"x": torch.rand(1000, 1000) + 1}

    def hole(inputs):
        out = inputs["x"].clone()
        out[999, 999] = 0
        return (out,)

    same = {"make": make, "oracle": lambda x: (x["x"],)}
    assert verdict(monkeypatch, provider(hole), **same)["status"] == "failed"
    assert verdict(monkeypatch, provider(lambda x: (x["x"],)), **same)["status"] == "ok"


def test_half_result_has_its_own_tolerance(monkeypatch):
    half = provider(lambda x: (softmax(x)[0].bfloat16(),))
    found = verdict(monkeypatch, half)
    assert found["status"] == "ok"
    assert found["error"] > 1e-4


def test_noise_in_single_elements_is_forgiven_only_where_announced(monkeypatch):
    """Elements far below the rest, wrong by half their size: what cancellation does in bfloat16."""

    def cancelled(inputs):
        out = inputs["x"].clone()
        out[:, 0] *= 0.5
        return (out,)

    def make():
        return {"x": torch.cat((torch.full((5, 1), 0.1), torch.full((5, 600), 0.3)), 1)}

    same = {"make": make, "oracle": lambda x: (x["x"],)}

    def half(coarse):
        return provider(lambda x: (cancelled(x)[0].bfloat16(),), coarse=coarse)

    assert verdict(monkeypatch, half(False), **same)["status"] == "failed"
    assert verdict(monkeypatch, half(True), **same)["status"] == "ok"


def test_sampled_rows_still_see_first_and_last(monkeypatch):
    def last_row_wrong(inputs):
        out = softmax(inputs)[0].clone()
        out[-1] += 1
        return (out,)

    found = verdict(monkeypatch, provider(last_row_wrong), verify_rows=2)
    assert found["status"] == "failed"
    assert verdict(monkeypatch, provider(softmax), verify_rows=2)["status"] == "ok"


def absent():
    import a_library_that_nobody_has  # noqa: F401


def test_wrong_and_missing_are_reported_and_never_timed(monkeypatch):
    missing = measure.Provider("missing peer", "peer", absent)
    wrong = provider(WRONG["scaled"], name="wrong")
    good = provider(softmax, name="good", kind="ours")
    chosen = operation(good, wrong, missing)
    entries = measure.measure(
        chosen,
        [local_worker(monkeypatch, chosen)],
        timed=True,
        min_rounds=3,
        max_time=1e-3,
        min_time=0,
    )
    by_name = {entry.name: entry for entry in entries}
    assert set(by_name) == {"good [scalar]", "wrong", "missing peer", "read"}
    assert by_name["missing peer"].status == "not installed"
    assert "a_library_that_nobody_has" in by_name["missing peer"].detail
    assert by_name["wrong"].status == "failed"
    assert by_name["wrong"].wall == by_name["missing peer"].wall == []
    for name in ("good [scalar]", "read"):
        assert len(by_name[name].wall) == len(by_name[name].cpu) >= 3
        assert min(by_name[name].wall) > 0
    statuses = {row.provider: row.status for row in results.rows(chosen, entries)}
    assert statuses["wrong"] == "failed"
    assert statuses["good [scalar]"] == "ok"


@pytest.mark.parametrize("wrong", [False, True])
def test_the_suite_is_red_for_a_wrong_provider_only(monkeypatch, pytestconfig, wrong):
    planted = provider(WRONG["scaled"] if wrong else softmax)
    chosen = operation(planted, measure.Provider("missing peer", "peer", absent))

    class Benchmark:
        enabled = False

    def run():
        worker, recorder = local_worker(monkeypatch, chosen), results.Recorder(None, "cpu")
        test_suite.test_operation(chosen, Benchmark(), [worker], recorder, pytestconfig)
        return recorder.rows

    if wrong:
        with pytest.raises(AssertionError, match=r"planted: output 0 is off by 0\.001"):
            run()
    else:
        assert {row.status for row in run()} == {"not timed", "not installed"}


def test_a_provider_that_spoils_its_input_gets_it_back(monkeypatch):
    seen = []

    def spoil(inputs):
        seen.append(inputs["x"].clone())
        out = softmax(inputs)
        inputs["x"].zero_()
        return out

    chosen = operation(provider(spoil, mutates=("x",)), provider(softmax, name="innocent"))
    worker = local_worker(monkeypatch, chosen)
    worker.ask("open", operation=chosen.id)
    assert worker.ask("verify", provider="planted")["status"] == "ok"
    worker.ask("time", provider="planted", iterations=3)
    assert len(seen) == 5  # verified once, one call to warm up, three timed
    worker.ask("calibrate", provider="planted", min_time=1e-9)
    assert worker.ask("verify", provider="innocent")["status"] == "ok"
    assert all(torch.equal(x, seen[0]) for x in seen)


def foreign_softmax(calls, factor=1.0):
    """Softmax and its gradient on NumPy arrays, as another library would compute them."""

    def prepare(inputs):
        calls.append("prepare")
        return inputs["x"].numpy(), inputs["cotangents"][0].numpy()

    def run(arguments):
        calls.append("run")
        assert not torch.is_grad_enabled()  # it differentiates by itself
        x, cotangent = arguments
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        return p, p * (cotangent - (cotangent * p).sum(-1, keepdims=True)) * factor

    def outputs(result):
        calls.append("outputs")
        return tuple(map(torch.from_numpy, result))

    return Provider("foreign", "peer", lambda: Foreign(prepare, run, outputs))


def test_a_foreign_library_is_judged_whole_and_only_its_run_is_timed(monkeypatch):
    calls = []
    chosen = operation(foreign_softmax(calls), backward=True)
    worker = local_worker(monkeypatch, chosen)
    worker.ask("open", operation=chosen.id)
    assert worker.ask("verify", provider="foreign")["status"] == "ok"
    assert calls == ["prepare", "run", "outputs"]
    worker.ask("time", provider="foreign", iterations=3)
    assert calls[3:] == ["run"] * 4  # one to warm up
    worker.ask("close")
    assert not worker.served.foreign

    found = verdict(monkeypatch, foreign_softmax(calls, factor=1.001), backward=True)
    assert found["status"] == "failed"
    assert "gradient of x" in found["detail"]


def test_where_several_outputs_are_right_a_judge_says_what_is_compared(monkeypatch):
    """Positions of the largest of tied values: any will do, if the value there is the largest."""

    def make():
        return {"x": torch.tensor([[0.0, 2.0, 2.0, 1.0]]).repeat(3, 1)}

    def first(inputs):
        return (inputs["x"].argmax(-1, keepdim=True),)

    def value(inputs, outputs):
        return (inputs["x"].gather(-1, outputs[0]),)

    same = {"make": make, "oracle": first, "judge": value}
    other = provider(lambda x: (first(x)[0] + 1,))
    wrong = provider(lambda x: (first(x)[0] + 2,))
    assert verdict(monkeypatch, other, **same)["status"] == "ok"
    assert verdict(monkeypatch, wrong, **same)["status"] == "failed"

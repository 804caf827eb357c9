"""The demo: routing for each head finds the skills, and a few examples of a new task are enough."""

import copy
import json

import pytest
import torch

from oneshot.poly import demo
from oneshot.poly.experiments import synthetic


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run_demo(0, output=folder, steps=500), folder


def test_one_routing_for_each_head_explains_what_the_others_cannot(result):
    missed = {name: row["unexplained"] for name, row in result[0]["learners"].items()}
    assert missed["Poly-S"] < 0.02 < 0.3 < missed["Poly"] < missed["shared LoRA"]
    assert result[0]["learners"]["Poly-S"]["correlation"] > 0.95
    assert result[0]["learners"]["shared LoRA"]["correlation"] is None


def test_four_examples_are_enough_for_the_routing_of_a_new_task(result):
    adapted = result[0]["adapted"]
    assert adapted["Poly-S: routing only"][4] < 0.1
    assert adapted["Poly-S: routing only"][4] < adapted["Poly-S"][4] / 2
    assert adapted["Poly-S"][4] < adapted["shared LoRA"][4] / 2
    for row in adapted.values():
        assert row[32] < row[4]


def test_files(result, capsys):
    metrics, folder = result
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(metrics))
    assert (folder / "demo.png").stat().st_size > 5000
    demo.print_table(metrics)
    printed = capsys.readouterr().out
    assert "Poly-S: routing only" in printed
    assert f"{metrics['learners']['Poly']['unexplained']:.4f}" in printed


def test_adaptation_leaves_the_learner_alone_and_sees_only_the_shots():
    truth = synthetic.make_truth(0, tasks=5)
    learner = synthetic.pretrain(truth, demo.POLY_S, 0, tasks=4, steps=20)
    before = copy.deepcopy(learner.state_dict())
    few, again = (
        synthetic.adapt(learner, truth, 4, shots=4, seed=1, mode="z", steps=5) for _ in range(2)
    )
    assert few == again
    assert few != synthetic.adapt(learner, truth, 4, shots=4, seed=2, mode="z", steps=5)
    assert before.keys() == learner.state_dict().keys()
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name])
        assert learner.poly_config.tasks == 4


def test_what_is_missed_is_counted_by_task():
    """The task alone, against the mean square written out."""
    truth = synthetic.make_truth(1, tasks=3)
    learner = synthetic.pretrain(truth, demo.POLY_S, 1, steps=30)
    learner.resize(1, keep=[2])
    generator = torch.Generator().manual_seed(synthetic.derive_seed(0, "test"))
    x = torch.randn(4096, 32, generator=generator)
    layer = truth.model.layers["0"]
    update = truth.model(x, task_ids=2) - layer.base(x)
    miss = learner(x, task_ids=0) - truth.model(x, task_ids=2)
    want = (miss.square().sum() / update.square().sum()).item()
    assert synthetic.unexplained(learner, truth, range(2, 3)) == pytest.approx(want, rel=1e-5)

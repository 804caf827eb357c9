"""Tasks whose right routing is known: it is found, and it pays."""

import dataclasses
import math
import statistics

import pytest
import torch

from oneshot.poly.config import PolyConfig
from oneshot.poly.experiments.miniature import inventories
from oneshot.poly.experiments.synthetic import adapt, learn, make_truth, unexplained

POLY_S = PolyConfig(skills=4, heads=4, rank=2, alpha=2)


def test_the_truth_explains_itself():
    truth = make_truth(0)
    assert unexplained(truth.model, truth) < 1e-10
    torch.testing.assert_close(truth.model.router.weights()[0], truth.routing)
    used = (truth.routing > 0).sum(-1)
    assert set(used.unique().tolist()) == {1, 2}


def test_an_unknown_mode_of_adaptation():
    truth = make_truth(0, tasks=2)
    with pytest.raises(ValueError, match='mode must be "poly", "z" or "mu", got \'Z\''):
        adapt(truth.model, truth, 1, shots=4, seed=0, mode="Z")


def compare(seeds, steps):
    """Unexplained variance of each learner, and the recovered routing, seed by seed."""
    found = {"poly-s": [], "lora": []}
    correlations = []
    for seed in seeds:
        truth = make_truth(seed)
        poly = learn(truth, POLY_S, seed, steps=steps)
        lora = learn(truth, inventories(POLY_S)["lora-big"], seed, steps=steps)
        routing = truth.routing.numel()
        assert poly.parameters == lora.parameters + routing
        assert math.isnan(lora.routing_correlation)
        found["poly-s"].append(poly.unexplained)
        found["lora"].append(lora.unexplained)
        correlations.append(poly.routing_correlation)
    return found, correlations


def test_poly_s_beats_a_shared_lora_of_the_same_size():
    found, correlations = compare([0], steps=250)
    assert found["poly-s"][0] < 0.25 < 0.5 < found["lora"][0]
    assert correlations[0] > 0.85


@pytest.mark.slow
def test_on_five_seeds():
    """The stated margin; one seed of twenty ends in a local optimum, and seed 3 is the one."""
    found, correlations = compare(range(5), steps=1000)
    ratios = [poly / lora for poly, lora in zip(found["poly-s"], found["lora"], strict=True)]
    assert max(ratios) < 1 / 4
    assert statistics.median(ratios) < 1 / 100
    assert min(correlations) > 0.75
    assert statistics.median(correlations) > 0.9


@pytest.mark.slow
def test_one_head_is_not_enough_when_the_truth_has_four():
    truth = make_truth(0)
    one = learn(truth, dataclasses.replace(POLY_S, heads=1), 0, steps=1000)
    four = learn(truth, POLY_S, 0, steps=1000)
    assert four.unexplained < one.unexplained / 50
    assert four.routing_correlation > one.routing_correlation + 0.4

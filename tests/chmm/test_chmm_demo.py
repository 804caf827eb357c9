"""The demo: CHMM > HMM > vote on sources that are reliable on some words and not on others."""

import json

import numpy as np
import pytest

from oneshot.chmm import demo


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run_demo(0, output=folder), folder


def test_each_step_is_worth_more_than_five_points(result):
    methods = result[0]["methods"]
    f1 = [methods[name]["f1"] for name in ("majority vote", "HMM", "CHMM")]
    assert f1[2] > f1[1] + 0.05 > f1[0] + 0.1
    assert methods["CHMM"]["nll"] < methods["HMM"]["nll"] - 0.02
    likelihood = "log_likelihood_per_token"
    assert methods["CHMM"][likelihood] > methods["HMM"][likelihood] + 0.05


def test_the_chmm_finds_out_which_source_knows_which_words(result):
    found, true = (np.array(result[0]["reliability"][key]) for key in ("learned", "true"))
    assert np.abs(found - true).max() < 0.12
    assert ((found > 0.6) == (true > 0.6)).all()


def test_files(result, capsys):
    figures, folder = result
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(figures))
    assert (folder / "demo.png").stat().st_size > 5000
    demo.print_table(figures)
    printed = capsys.readouterr().out
    assert "CHMM" in printed
    assert "majority vote" in printed

"""Devices by the value of an option."""

import pytest
import torch

from oneshot.training.distributed import resolve_device


def test_a_device_that_is_not_there_is_named_with_its_option(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (resolve_device("auto"), resolve_device("cpu"), resolve_device("meta")) == (
        "cpu",
        "cpu",
        "meta",
    )
    with pytest.raises(ValueError, match=r"model\.device: cuda was requested, .*use cpu or auto"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match=r"run\.device: cuda:1 was requested"):
        resolve_device("cuda:1", "run.device")
    with pytest.raises(ValueError, match=r'run\.device must be "auto", "cpu" or "cuda", got .gpu'):
        resolve_device("gpu", "run.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_device("auto"), resolve_device("cuda:1")) == ("cuda", "cuda:1")

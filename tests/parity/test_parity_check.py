"""The check of this suite finds what it is there to find."""

import backends
import parity
import pytest
import torch
from parity import NAN, check, close, placed


@pytest.mark.parametrize("fault", ["scaled", "tail", "nan"])
def test_a_wrong_output_fails(monkeypatch, fault):
    right = parity.REFERENCES["whiten"]

    def wrong(*arguments):
        out = right(*arguments).clone()
        if fault == "scaled":
            return out * 1.0001
        out[-1] = NAN if fault == "nan" else 0.0
        return out

    monkeypatch.setattr(parity, "REFERENCES", {"whiten": wrong})
    with pytest.raises(AssertionError):
        check("whiten", torch.randn(63), None, True, 1e-8)


def test_an_op_without_a_kernel_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(backends, "SERVED", set())
    with pytest.raises(pytest.skip.Exception, match="has no kernel of whiten"):
        check("whiten", torch.randn(3), None, True, 1e-8)


def test_half_formats_may_be_off_by_their_own_rounding_alone():
    want = torch.tensor([1.0, 2.0], dtype=torch.float64)
    close(want.bfloat16() * (1 + 2**-7), want, 1e-6, 1e-6)
    with pytest.raises(AssertionError):
        close(want.bfloat16() * (1 + 2**-5), want, 1e-6, 1e-6)
    with pytest.raises(AssertionError):
        close(want.float() * (1 + 2**-7), want, 1e-6, 1e-6)


def test_a_view_keeps_its_strides():
    view = torch.arange(40.0).view(5, 8)[1:, ::2]
    there = placed(view)
    assert there.stride() == view.stride()
    assert torch.equal(there.cpu(), view)

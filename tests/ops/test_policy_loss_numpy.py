"""NumPy faces of the `policy_loss` family: the bits of the ops."""

import pytest
import torch
from policy_loss_inputs import Batch, needs_native

import oneshot.numpy
from oneshot import ops


@needs_native
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_numpy_policy_loss_has_the_bits_of_the_op(packed, per_sequence):
    batch = Batch([40, 0, 63, 1, 300], 300)
    case = {"objective": "gspo", "kl_coef": 0.1, "entropy_coef": 0.01, "sequence_count": 4}
    names = ("new", "old", "ref", "entropy", "weights", "mask", "advantages")
    data = {name: getattr(batch, name) for name in names}
    if packed:
        data = {name: batch.packed(x)[0] for name, x in data.items()}
        case["cu_seqlens"] = batch.packed(batch.mask)[1]
    if per_sequence:
        data["advantages"] = batch.advantage
    new, entropy = data["new"].clone().requires_grad_(), data["entropy"].clone().requires_grad_()
    out = ops.policy_loss(
        new, data["old"], data["advantages"], data["mask"], ref_logprobs=data["ref"],
        entropy=entropy, importance_weights=data["weights"], **case,
    )  # fmt: skip
    out.loss.backward()
    arrays = {name: x.numpy() for name, x in data.items()}
    if packed:
        case["cu_seqlens"] = case["cu_seqlens"].numpy()
    found = oneshot.numpy.policy_loss(
        arrays["new"], arrays["old"], arrays["advantages"], arrays["mask"],
        ref_logprobs=arrays["ref"], entropy=arrays["entropy"],
        importance_weights=arrays["weights"], **case,
    )  # fmt: skip
    assert torch.tensor(found.loss, dtype=torch.float32) == out.loss
    for name, value in out.metrics_dict().items():
        assert value == pytest.approx(found.metrics[name], rel=1e-7), name
    assert torch.equal(torch.from_numpy(found.grad_logprobs), new.grad)
    assert torch.equal(torch.from_numpy(found.grad_entropy), entropy.grad)


@needs_native
def test_numpy_value_loss_and_weights_have_the_bits_of_the_ops():
    batch = Batch([40, 0, 63, 1], 63)
    values = batch.new.clone().requires_grad_()
    out = ops.value_loss(values, batch.old, batch.ref, batch.mask, clip=0.2)
    out.loss.backward()
    new, old, ref, mask = (x.numpy() for x in (batch.new, batch.old, batch.ref, batch.mask))
    found = oneshot.numpy.value_loss(new, old, ref, mask, clip=0.2)
    assert torch.tensor(found.loss, dtype=torch.float32) == out.loss
    assert torch.equal(torch.from_numpy(found.grad_values), values.grad)
    assert oneshot.numpy.policy_loss(new, old, new[:, 0], mask).grad_entropy is None
    for level in ("token", "sequence"):
        weights = ops.importance_weights(
            batch.new, batch.old, batch.mask, level=level, normalize=True
        )
        same = oneshot.numpy.importance_weights(new, old, mask, level=level, normalize=True)
        assert torch.equal(torch.from_numpy(same.weights), weights.weights)


@needs_native
def test_numpy_errors():
    x = torch.zeros(2, 3).numpy()
    with pytest.raises(ValueError, match="old_logprobs must have the shape of logprobs"):
        oneshot.numpy.policy_loss(x, x[:1], x)
    with pytest.raises(ValueError, match=r"advantages must be \[2\] .*got \[3\]"):
        oneshot.numpy.policy_loss(x, x, x[0])
    with pytest.raises(RuntimeError, match="cu_seqlens must rise from 0 to 6"):
        oneshot.numpy.policy_loss(x.ravel(), None, x.ravel(), cu_seqlens=[0, 7, 6])
    with pytest.raises(ValueError, match="objective must be one of"):
        oneshot.numpy.policy_loss(x, x, x, objective="none")

"""Inputs and checks that the tests of the `advantage` family share."""

import torch


def random_mask(*shape):
    """Any pattern: holes, empty rows, full rows."""
    mask = torch.rand(shape) > 0.3
    if len(shape) == 2 and shape[0] > 2:
        mask[0], mask[1] = True, False
    return mask


def garbage(mask, tensor):
    """NaN, inf and -inf in every masked place."""
    trash = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(3, mask.shape)]
    return torch.where(mask, tensor, trash.to(tensor.dtype))


def same_at_any_thread_count(call):
    outputs = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs.append(call())
    torch.set_num_threads(before)
    return all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))

"""The head whose weight lies in shards on several processes, against one process."""

import functools
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from oneshot import ops

VOCAB, WIDTH = 3001, 16
CASES = {
    "plain": {},
    "bias and soft-capping": {"bias": True, "softcap": 4.0, "temperature": 0.7},
    "half": {"dtype": torch.bfloat16},
    "masked": {"mask": torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)},
    "kept": {"kept": True},
    "frozen weight": {"frozen": True},
}


def inputs(dtype=torch.float32, bias=False, kept=False, **options):
    torch.manual_seed(3)
    hidden = torch.randn(2, 3, WIDTH).to(dtype)
    weight = torch.randn(VOCAB, WIDTH).to(dtype)
    targets = torch.randint(VOCAB, (2, 3, 2))
    targets[0, 0], targets[0, 1] = torch.tensor([0, VOCAB - 1]), torch.tensor([1500, 1500])
    if bias:
        options["bias"] = torch.randn(VOCAB).to(dtype)
    if kept:
        options["kept_ids"] = torch.cat((targets.flatten(0, 1), torch.arange(6)[:, None] * 400), 1)
        options["kept_ids"] = options["kept_ids"].flatten()
        options["kept_offsets"] = torch.arange(7) * 3
    return hidden, weight, targets, options


def results(hidden, weight, targets, options, part=slice(None), **more):
    """All outputs, and the gradients of hidden states, weight and bias."""
    options = dict(options)
    frozen = options.pop("frozen", False)
    leaf = hidden.clone().requires_grad_()
    head = weight[part].clone().requires_grad_(not frozen)
    bias = options.pop("bias", None)
    bias = None if bias is None else bias[part].clone().requires_grad_()
    out = ops.linear_token_statistics(leaf, head, targets, bias=bias, **options, **more)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator) for x in out[:2]]
    torch.autograd.backward(out[:2], upstream)
    return [*out, leaf.grad, head.grad, None if bias is None else bias.grad]


def bounds(rank, ranks):
    """Shards of different sizes."""
    cuts = [0, 700, 2400, 2401, VOCAB] if ranks == 4 else [0, 1100, VOCAB]
    return slice(cuts[rank], cuts[rank + 1])


def compare(rank, ranks):
    group = torch.distributed.group.WORLD
    part = bounds(rank, ranks)
    for name, case in CASES.items():
        hidden, weight, targets, options = inputs(**case)
        want = results(hidden, weight, targets, options)
        got = results(hidden, weight, targets, options, part, process_group=group)
        want[6:] = [None if x is None else x[part] for x in want[6:]]
        loose = hidden.dtype == torch.bfloat16
        for field, mine, true in zip(range(8), got, want, strict=True):
            limit = (
                {"rtol": 2e-2, "atol": 2e-2}
                if loose and field > 4
                else {"rtol": 1e-5, "atol": 3e-6}
            )
            message = functools.partial("{} of output {} on rank {}: {}".format, name, field, rank)
            torch.testing.assert_close(mine, true, msg=message, **limit)
        every = [torch.empty_like(got[0]) for _ in range(ranks)]
        torch.distributed.all_gather(every, got[0])
        assert all(torch.equal(x, got[0]) for x in every), name


def disagree(rank, ranks):
    group = torch.distributed.group.WORLD
    hidden, weight, targets, _ = inputs()
    wrong = {
        "temperature": {"temperature": 1.0 + rank},
        "number of rows with mask True": {"mask": torch.arange(6).view(2, 3) >= rank},
    }
    for words, options in wrong.items():
        with pytest.raises(ValueError, match=rf"ranks of process_group must agree.*of {words}: \["):
            ops.linear_token_logprobs_and_entropy(
                hidden, weight[bounds(rank, ranks)], targets, process_group=group, **options
            )
    with pytest.raises(ValueError, match=r"of number of rows: \["):
        ops.linear_token_logprobs_and_entropy(
            hidden[: 2 - rank], weight, targets[: 2 - rank], process_group=group
        )
    targets[1, 2, 0] = VOCAB
    with pytest.raises(RuntimeError, match=rf"\[0, {VOCAB}\), got {VOCAB} in row 5"):
        ops.linear_token_logprobs_and_entropy(
            hidden, weight[bounds(rank, ranks)], targets, process_group=group
        )


def start(rank, ranks, folder, check):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    check(rank, ranks)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file by a POSIX path")
@pytest.mark.parametrize(("ranks", "check"), [(2, compare), (4, compare), (2, disagree)])
def test_ranks(ranks, check, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), *sys.path)))
    torch.multiprocessing.spawn(start, (ranks, str(tmp_path), check), nprocs=ranks)

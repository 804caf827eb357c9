"""What can be done to an inventory, and adapters on disk."""

import poly_tiny
import pytest
import torch

from oneshot.poly import PolyConfig, inject, load, save

ALL = pytest.mark.parametrize("name", sorted(poly_tiny.ARCHITECTURES))
ADAPTERS = pytest.mark.parametrize("adapter", ["lora", "ia3"])


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@ALL
@ADAPTERS
@torch.no_grad()
def test_collapse_merge_and_unload(name, adapter):
    make = poly_tiny.ARCHITECTURES[name]
    ids = poly_tiny.tokens()
    poly = poly_tiny.adapted(make, adapter=adapter)
    expected = poly_tiny.logits(poly, ids, task_ids=3)
    poly.collapse(3)
    assert (poly.poly_config.routing, poly.poly_config.skills) == ("uniform", 1)
    for task in range(5):
        close(poly_tiny.logits(poly, ids, task_ids=task), expected)
    merged = poly_tiny.adapted(make, adapter=adapter).merge(3)
    kwargs = {"decoder_input_ids": ids.flip(1)[:, :5]} if name == "t5" else {}
    close(merged(input_ids=ids, **kwargs).logits, expected)
    fresh = make()
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in fresh.named_parameters()]
    bare = poly_tiny.adapted(make, adapter=adapter).unload()
    for (_, a), (_, b) in zip(bare.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(a, b)


@ADAPTERS
@torch.no_grad()
def test_average_is_uniform_routing(adapter):
    ids = poly_tiny.tokens()
    poly = poly_tiny.adapted(adapter=adapter)
    poly.router.logits.zero_()
    expected = poly(input_ids=ids, task_ids=2).logits
    poly = poly_tiny.adapted(adapter=adapter)
    poly.average()
    close(poly(input_ids=ids, task_ids=[0, 1, 2, 3]).logits, expected)
    assert list(poly.router.parameters()) == []


def test_training_the_average_is_training_all_copies_alike():
    """The gradient of each of K copies under weights 1 / K is that of their average over K."""
    ids = poly_tiny.tokens()
    copies = poly_tiny.adapted(routing="uniform")
    copies(input_ids=ids, labels=ids, task_ids=0).loss.backward()
    one = poly_tiny.adapted(routing="uniform")
    one.average()
    one(input_ids=ids, labels=ids, task_ids=0).loss.backward()
    for name, parameter in copies.adapter_parameters().items():
        average = one.adapter_parameters()[name].grad
        close(parameter.grad, average.expand_as(parameter) / 3)


@torch.no_grad()
def test_private_adapters_and_soup():
    """With one-hot routing task t uses adapter t alone; a soup is the mean of some."""
    ids = poly_tiny.tokens()
    poly = poly_tiny.adapted(routing="private", tasks=4, heads=1)
    mixed = poly(input_ids=ids, task_ids=[2, 0, 1, 2]).logits
    for i, task in enumerate([2, 0, 1, 2]):
        alone = poly_tiny.adapted(routing="private", tasks=4, heads=1)
        alone.soup([task])
        close(alone(input_ids=ids[i : i + 1], task_ids=0).logits[0], mixed[i])
    with pytest.raises(ValueError, match="private adapters know no new task: average some"):
        poly.resize(5)
    with pytest.raises(ValueError, match="routing 'private' has no parameter"):
        poly.freeze_inventory()
    with pytest.raises(ValueError, match=r"skills must be some of \[0, 4\), got \[4\]"):
        poly.soup([4])
    before = {n: layer.lora_a.clone() for n, layer in poly.layers.items()}
    poly.soup([1, 3])
    for n, layer in poly.layers.items():
        close(layer.lora_a, (before[n][:, 1] + before[n][:, 3])[:, None] / 2)


@torch.no_grad()
def test_resize():
    ids = poly_tiny.tokens(2)
    poly = poly_tiny.adapted()
    old = poly.router.logits.clone()
    expected = poly(input_ids=ids, task_ids=[0, 4]).logits
    poly.resize(7)
    assert torch.equal(poly.router.logits[:, :5], old)
    assert 0 < poly.router.logits[:, 5:].abs().max() <= 1e-3
    close(poly(input_ids=ids, task_ids=[0, 4]).logits, expected)
    assert torch.isfinite(poly(input_ids=ids, task_ids=6).logits).all()
    poly.resize(3, keep=[4, 0])
    close(poly(input_ids=ids, task_ids=[1, 0]).logits, expected)
    with pytest.raises(ValueError, match=r"task_ids must be in \[0, 3\)"):
        poly(input_ids=ids, task_ids=3)
    poly.resize(1, keep=[])
    assert poly.router.logits.shape == (14, 1, 2, 3)
    assert poly.router.logits.abs().max() <= 1e-3
    for tasks, keep in [(0, None), (1, [0, 1]), (2, [1])]:
        with pytest.raises(ValueError, match=r"resize: .* tasks must be positive and hold keep"):
            poly.resize(tasks, keep=keep)


def test_only_the_router_trains_after_freezing_and_resizing():
    poly = poly_tiny.adapted()
    poly.freeze_inventory()
    poly.resize(1, keep=[])
    trained = [name for name, p in poly.named_parameters() if p.requires_grad]
    assert trained == ["router.logits"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"granularity": "block", "alpha": 4.0, "noise": "per_task"},
        {"adapter": "ia3", "heads": 4},
        {"routing": "private", "tasks": 3, "target_modules": ("q_proj", "mlp.up_proj")},
        {"routing": "uniform", "skills": 1, "granularity": "model"},
    ],
)
@torch.no_grad()
def test_save_and_load_are_exact(fields, tmp_path):
    poly = poly_tiny.adapted(**fields)
    ids = poly_tiny.tokens()
    save(poly, tmp_path / "adapters", task_names=["a", "b"])
    again = load(poly_tiny.llama(), tmp_path / "adapters")
    assert again.poly_config == poly.poly_config
    for name, parameter in poly.adapter_parameters().items():
        assert torch.equal(again.adapter_parameters()[name], parameter)
    tasks = [0, 2, 1, 2]
    assert torch.equal(
        again(input_ids=ids, task_ids=tasks).logits, poly(input_ids=ids, task_ids=tasks).logits
    )
    again.collapse(1)
    save(again, tmp_path / "adapters")  # an earlier save is replaced
    assert load(poly_tiny.llama(), tmp_path / "adapters").poly_config.skills == 1
    assert [p.name for p in tmp_path.iterdir()] == ["adapters"]


def test_adapters_of_another_model_are_refused(tmp_path):
    save(poly_tiny.adapted(), tmp_path / "a")
    config = poly_tiny.llama().config
    config.intermediate_size = 32
    other = type(poly_tiny.llama())(config)
    names = [name for name, _ in other.named_modules()]
    with pytest.raises(
        ValueError, match=r"gate_proj\.lora_b must have the shape .* got \[2, 3, 2, 12\]"
    ):
        load(other, tmp_path / "a")
    assert [name for name, _ in other.named_modules()] == names
    config.num_hidden_layers = 1
    with pytest.raises(ValueError, match="does not fit the model: it lacks"):
        load(type(other)(config), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"neither poly_config\.json nor checkpoints"):
        load(other, tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="holds no adapters to replace"):
        save(poly_tiny.adapted(), tmp_path / "mine")


def test_new_adapters_change_nothing():
    ids = poly_tiny.tokens()
    with torch.no_grad():
        expected = poly_tiny.llama()(input_ids=ids).logits
        for adapter in ("lora", "ia3"):
            poly = inject(poly_tiny.llama(), PolyConfig(tasks=2, heads=4, adapter=adapter))
            close(poly(input_ids=ids, task_ids=1).logits, expected)

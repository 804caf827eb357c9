"""What can be done to an inventory, and adapters on disk."""

import json

import poly_tiny
import pytest
import torch
from torch import nn

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


CALLS = {
    "forward": lambda poly: poly(input_ids=poly_tiny.tokens(), task_ids=1),
    "generate": lambda poly: poly.generate(poly_tiny.tokens(), task_ids=1),
    "routing": lambda poly: poly.routing(1).__enter__(),
    "merge": lambda poly: poly.merge(1),
    "unload": lambda poly: poly.unload(),
    "resize": lambda poly: poly.resize(2),
    "average": lambda poly: poly.average(),
    "collapse": lambda poly: poly.collapse(0),
    "freeze_inventory": lambda poly: poly.freeze_inventory(),
    "task_weights": lambda poly: poly.task_weights(0),
    "param_groups": lambda poly: poly.param_groups(),
    "adapter_parameters": lambda poly: poly.adapter_parameters(),
    "state_dict": lambda poly: poly.state_dict(),
    "save_pretrained": lambda poly: poly.save_pretrained("nowhere"),
}


@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.parametrize("end", ["merge", "unload"])
def test_a_model_that_was_left_behind_does_not_answer(call, end):
    poly = poly_tiny.adapted()
    plain = poly.merge(2) if end == "merge" else poly.unload()
    before = {name: p.clone() for name, p in plain.named_parameters()}
    with pytest.raises(RuntimeError, match=rf"was left behind by {end}\("):
        CALLS[call](poly)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, before[name])


def test_unloading_gives_the_model_back_as_it_was():
    """What was trainable is trainable again, and nothing else."""
    model = poly_tiny.llama()
    model.lm_head.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    poly = inject(model, PolyConfig(tasks=2, heads=2))
    assert not any(p.requires_grad for p in (model.lm_head.weight, model.model.norm.weight))
    plain = poly.unload()
    assert {name: p.requires_grad for name, p in plain.named_parameters()} == before
    plain(input_ids=poly_tiny.tokens(), labels=poly_tiny.tokens()).loss.backward()
    with pytest.raises(ValueError, match="do not divide"):
        inject(model, PolyConfig(tasks=2, heads=16, target_modules=["q_proj", "down_proj"]))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("change", ["resize", "average", "collapse"])
@pytest.mark.parametrize("stepped", [False, True])
def test_an_optimizer_from_before_a_change_trains_or_raises(change, stepped):
    """It never trains tensors that nothing reads."""
    poly = poly_tiny.adapted().train()
    ids = poly_tiny.tokens()
    optimizer = torch.optim.AdamW(poly.param_groups(lr=0.1))

    def step():
        optimizer.zero_grad()
        poly(input_ids=ids, labels=ids, task_ids=0).loss.backward()
        optimizer.step()

    if stepped:
        step()
    {
        "resize": lambda: poly.resize(9),
        "average": poly.average,
        "collapse": lambda: poly.collapse(1),
    }[change]()
    before = {name: p.detach().clone() for name, p in poly.adapter_parameters().items()}
    if stepped:
        with pytest.raises(RuntimeError, match=r"size|shape"):
            step()
        return
    step()
    for name, parameter in poly.adapter_parameters().items():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    "fields",
    [{"adapter": "lora"}, {"adapter": "ia3"}, {"skills": 1, "adapter": "lora"}],
)
def test_routing_alone_cannot_train_a_new_inventory(fields):
    """Its gradient is exactly 0: every mixture is the same."""
    poly = inject(poly_tiny.llama(), PolyConfig(**{"tasks": 2, "skills": 3, "heads": 2, **fields}))
    with pytest.raises(ValueError, match="every mixture of this inventory is the same"):
        poly.freeze_inventory()
    assert all(p.requires_grad for p in poly.adapter_parameters().values())


def merge_is_refused(poly, message):
    plain = poly.base_model
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    with pytest.raises(ValueError, match=message):
        poly.merge(0)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, before[name]), name
    poly.router.weights()  # alive


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bart"])
def test_tied_weights_are_not_merged(name):
    make = getattr(poly_tiny, name)
    targets = {"qwen3": "q_proj", "gpt2": "c_attn", "bart": "fc1"}[name]
    poly = poly_tiny.adapted(make, target_modules=(targets, "lm_head"))
    merge_is_refused(poly, r"weight of lm_head is also .*(embed_tokens|wte|shared).*untie them")


def test_untied_weights_are_merged():
    """What the message asks for: the merged model is the routed one."""
    config = poly_tiny.qwen3().config
    config.tie_word_embeddings = False

    def make():
        torch.manual_seed(3)
        return type(poly_tiny.qwen3())(config).eval()

    poly = poly_tiny.adapted(make, target_modules=("q_proj", "lm_head"))
    ids = poly_tiny.tokens()
    with torch.no_grad():
        expected = poly(input_ids=ids, task_ids=3).logits
        close(poly.merge(3)(input_ids=ids).logits, expected)


class _Scaled(nn.Linear):
    """As FP8Linear: the weight is not what the input is multiplied with."""

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize("kind", ["own forward", "parametrized", "integer", "subclass"])
def test_weights_that_nothing_can_be_added_to(kind):
    layer = _Scaled(8, 8) if kind == "own forward" else nn.Linear(8, 8)
    if kind == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(layer)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    poly = inject(model, PolyConfig(tasks=2, heads=2, rank=2))
    if kind == "integer":
        layer.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    if kind == "subclass":
        from torch.testing._internal.two_tensor import TwoTensor

        layer.weight = nn.Parameter(TwoTensor(torch.ones(8, 8), torch.ones(8, 8)))
    message = {
        "own forward": "1 of a _Scaled is not simply multiplied",
        "parametrized": "1 of a ParametrizedLinear is not simply multiplied",
        "integer": "1 is torch.int8, which is not a floating-point type",
        "subclass": "1 is a TwoTensor, which cannot be added to",
    }[kind]
    merge_is_refused(poly, message)


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_merge_that_overflows_is_refused(adapter):
    """float16 ends at 65504."""
    poly = poly_tiny.adapted(adapter=adapter)
    poly.base_model.half()
    for layer in poly.layers.values():
        for parameter in layer.inventory().values():
            parameter.data = parameter.data.float()
    with torch.no_grad():
        list(poly.layers.values())[-1].inventory()[{"lora": "lora_b", "ia3": "ia3"}[adapter]].fill_(
            1e6
        )
    merge_is_refused(poly, r"of model\.layers\.1\.mlp\..* overflows torch\.float16 .* wider dtype")


def test_damaged_and_newer_adapters_are_explained(tmp_path):
    folder = save(poly_tiny.adapted(), tmp_path / "a")
    tensors = folder / "poly.safetensors"
    whole = tensors.read_bytes()
    model = poly_tiny.llama()
    names = [name for name, _ in model.named_modules()]
    for damaged in (whole[:-50], whole[:5], b"", b"\xff" * 100):
        tensors.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"poly\.safetensors: damaged or cut off"):
            load(model, folder)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no poly\.safetensors"):
        load(model, folder)
    description = json.loads((folder / "poly_config.json").read_text())
    description["poly_config"]["gates"] = 3
    (folder / "poly_config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="unexpected fields gates: another version"):
        load(model, folder)
    for damaged in ('{"poly_config": {', "[]", "{}"):
        (folder / "poly_config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"poly_config\.json: damaged"):
            load(model, folder)
    assert [name for name, _ in model.named_modules()] == names


def test_a_run_folder_is_its_newest_checkpoint(tmp_path):
    poly = poly_tiny.adapted()
    for step in (2, 10):
        with torch.no_grad():
            poly.router.logits.fill_(step)
        save(poly, tmp_path / "run" / "checkpoints" / f"step_{step:06d}")
    again = load(poly_tiny.llama(), tmp_path / "run")
    assert again.router.logits.eq(10).all()
    with pytest.raises(FileNotFoundError, match="no adapters in it"):
        load(poly_tiny.llama(), tmp_path)


@pytest.mark.parametrize("noise", ["per_task", "per_example"])
@torch.no_grad()
def test_loaded_adapters_answer_without_noise(noise, tmp_path):
    """Whether or not the model inside was in evaluation mode."""
    save(poly_tiny.adapted(noise=noise), tmp_path / "a")
    ids = poly_tiny.tokens()
    for model in (poly_tiny.llama(), poly_tiny.llama().train()):
        poly = load(model, tmp_path / "a")
        assert not any(module.training for module in poly.modules())
        first = poly(input_ids=ids, task_ids=[0, 1, 2, 3]).logits
        assert torch.equal(poly(input_ids=ids, task_ids=[0, 1, 2, 3]).logits, first)

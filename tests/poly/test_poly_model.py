"""Routed layers, injection, and calling a model with tasks."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import poly_tiny
import pytest
import torch
from torch import nn

from oneshot.poly import PolyConfig, inject, load, save
from oneshot.poly.layers import RoutedLora

ALL = pytest.mark.parametrize("name", sorted(poly_tiny.ARCHITECTURES))


def by_hand(poly, task):
    """The model's logits with every adapted weight replaced by base + update, in float64 sums."""
    if poly.router.logits is None:
        weights = poly.router.weights()[:, task]
    else:
        s = torch.sigmoid(poly.router.logits[:, task].double())
        weights = s / s.sum(-1, keepdim=True)
    for layer in poly.layers.values():
        own = weights[layer.group]
        if isinstance(layer, RoutedLora):
            a, b = poly_tiny.mixed_by_hand(layer, own)
            update = poly.poly_config.alpha / poly.poly_config.rank * (a @ b)
            update = update.t() if isinstance(layer.base, nn.Linear) else update
            layer.base.weight.data += update.float()
        else:
            scale = (own.double()[..., None] * layer.ia3.double()).sum(1).flatten().float()
            wide = scale[:, None] if isinstance(layer.base, nn.Linear) else scale
            layer.base.weight.data *= wide
            if layer.base.bias is not None:
                layer.base.bias.data *= scale
    return poly.unload()


@ALL
@pytest.mark.parametrize("adapter", ["lora", "ia3"])
@pytest.mark.parametrize("granularity", ["layer", "block", "model"])
def test_every_example_gets_the_adapters_of_its_task(name, adapter, granularity):
    make = poly_tiny.ARCHITECTURES[name]
    options = {"adapter": adapter, "granularity": granularity, "alpha": 3.0}
    ids = poly_tiny.tokens()
    tasks = [2, 0, 2, 4]
    with torch.no_grad():
        found = poly_tiny.logits(poly_tiny.adapted(make, **options), ids, task_ids=tasks)
        for i, task in enumerate(tasks):
            plain = by_hand(poly_tiny.adapted(make, **options), task)
            expected = poly_tiny.logits(_Plain(plain), ids[i : i + 1])
            torch.testing.assert_close(found[i : i + 1], expected, atol=2e-5, rtol=1e-4)


class _Plain:
    def __init__(self, model):
        self.base_model = model

    def __call__(self, **kwargs):
        return self.base_model(**kwargs)


def test_number_of_parameters_and_groups():
    """K r (d_in + d_out) for each layer, tasks * H * K for each group."""
    for granularity, groups in {"layer": 14, "block": 2, "model": 1}.items():
        poly = poly_tiny.adapted(granularity=granularity)
        dimensions = sum(sum(layer.base.weight.shape) for layer in poly.layers.values())
        total = sum(p.numel() for p in poly.adapter_parameters().values())
        assert len(poly.groups) == groups
        assert total == 3 * 2 * dimensions + 5 * groups * 2 * 3
        assert total == sum(p.numel() for p in poly.parameters() if p.requires_grad)
    assert poly.lm_head is poly.base_model.lm_head  # attributes of the model inside
    assert not isinstance(poly.lm_head, RoutedLora)


@pytest.mark.parametrize(("init", "heads"), [("reference", 1), ("reference", 4), ("peft", 4)])
def test_initialisation(init, heads):
    model = nn.Sequential(nn.Linear(512, 64))
    config = PolyConfig(target_modules=("0",), heads=heads, skills=8, rank=16, init=init)
    layer = inject(model, config).layers["0"]
    variance = 1 / (9 * 512) * (1 if init == "reference" else 3 * heads)
    assert layer.lora_a.var().item() == pytest.approx(variance, rel=0.02)
    assert layer.lora_a.abs().max().item() <= (3 * variance) ** 0.5
    assert not layer.lora_b.any()
    x = torch.randn(3, 512)
    poly = inject(nn.Sequential(nn.Linear(512, 64)), config)
    torch.testing.assert_close(poly(x, task_ids=0), poly.layers["0"].base(x), atol=0, rtol=0)
    assert 0 < poly.router.logits.abs().max() <= 1e-3


def test_task_ids_of_every_form():
    poly = poly_tiny.adapted()
    ids = poly_tiny.tokens(3)
    with torch.no_grad():
        expected = poly(input_ids=ids, task_ids=torch.tensor([1, 1, 1])).logits
        for form in (1, torch.tensor(1), [1], torch.tensor([[1], [1], [1]]), [1, 1, 1]):
            torch.testing.assert_close(poly(input_ids=ids, task_ids=form).logits, expected)
        with poly.routing([1, 1, 1]):
            torch.testing.assert_close(poly.base_model(input_ids=ids).logits, expected)
            torch.testing.assert_close(poly(input_ids=ids).logits, expected)
        with pytest.warns(RuntimeWarning, match="task_ids is missing: every skill weighs the same"):
            missing = poly(input_ids=ids).logits
        poly.router.logits.zero_()
        torch.testing.assert_close(missing, poly(input_ids=ids, task_ids=4).logits)


def test_bad_task_ids_are_explained():
    poly = poly_tiny.adapted()
    ids = poly_tiny.tokens(3)
    with pytest.raises(ValueError, match=r"task_ids must be in \[0, 5\), got \[-1\]"):
        poly(input_ids=ids, task_ids=[0, -1, 2])
    with pytest.raises(ValueError, match=r"task_ids must be in \[0, 5\), got \[5\]"):
        poly(input_ids=ids, task_ids=5)
    with pytest.raises(ValueError, match=r"\[3\], \[3, 1\] or \[3, tokens\], got the shape \[2\]"):
        poly(input_ids=ids, task_ids=[0, 1])
    with pytest.raises(TypeError, match="task_ids must be integers"):
        poly(input_ids=ids, task_ids=[0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"task_ids for each token have the shape \[3, 6\]"):
        poly(input_ids=ids, task_ids=torch.zeros(3, 6, dtype=torch.long))
    with pytest.raises(RuntimeError, match="call the PolyModel and not the model inside it"):
        poly.base_model(input_ids=ids)
    assert torch.isfinite(poly(input_ids=ids, task_ids=0).logits).all()  # nothing was left behind


def test_packed_sequences_of_several_tasks():
    """Two sequences in one row, each token with its task, equal the two alone."""
    poly = poly_tiny.adapted()
    first, second = poly_tiny.tokens(1, 5, seed=1), poly_tiny.tokens(1, 3, seed=2)
    packed = torch.cat([first, second], 1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    visible = torch.block_diag(torch.ones(5, 5), torch.ones(3, 3)).tril().bool()
    mask = torch.zeros(1, 1, 8, 8).masked_fill(~visible, torch.finfo(torch.float).min)
    with torch.no_grad():
        found = poly(
            input_ids=packed,
            position_ids=positions,
            attention_mask=mask,
            task_ids=torch.tensor([[3] * 5 + [1] * 3]),
        ).logits
        expected = [poly(input_ids=first, task_ids=3), poly(input_ids=second, task_ids=1)]
    torch.testing.assert_close(found, torch.cat([o.logits for o in expected], 1))
    with pytest.raises(ValueError, match="generation needs one task id per example"):
        poly.generate(packed, task_ids=torch.zeros(1, 8, dtype=torch.long), max_new_tokens=2)
    noisy = poly_tiny.adapted(noise="per_example").train()
    with pytest.raises(ValueError, match='name no examples, which noise "per_example" needs'):
        noisy(input_ids=packed, task_ids=torch.zeros(1, 8, dtype=torch.long))


class _Flat(nn.Module):
    """A model that works on [tokens, features], as mixture-of-experts blocks do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).view_as(x)


def test_two_dimensional_rows():
    torch.manual_seed(0)
    config = PolyConfig(tasks=3, target_modules=("inner",), heads=2, rank=2)
    poly = inject(_Flat(), config)
    layer = poly.layers["inner"]
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 5, 8)
    tasks = torch.tensor([2, 0, 1, 2])
    found = poly(x, task_ids=tasks)
    for i, task in enumerate(tasks):
        torch.testing.assert_close(found[i], poly(x[i : i + 1], task_ids=task)[0])
    per_token = torch.arange(20).view(4, 5) % 3
    found = poly(x, task_ids=per_token)
    for task in range(3):
        chosen = per_token == task
        torch.testing.assert_close(found[chosen], poly(x, task_ids=task)[chosen])
    message = r"inner: task_ids name 3 examples, .* has 20"
    with pytest.raises(ValueError, match=message), poly.routing([0, 1, 2]):
        poly.base_model(x)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 1},
    ],
)
def test_beams_and_several_samples(name, options):
    """A batch of several tasks gives what each prompt gives alone with its merged model."""
    poly = poly_tiny.adapted(poly_tiny.ARCHITECTURES[name])
    ids = poly_tiny.tokens(3)
    tasks = [4, 1, 0]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, **options}
    found = poly.generate(ids, task_ids=tasks, **options)
    several = options.get("num_return_sequences", 1)
    assert found.shape[0] == 3 * several
    for i, task in enumerate(tasks):
        merged = poly_tiny.adapted(poly_tiny.ARCHITECTURES[name]).merge(task)
        alone = merged.generate(ids[i : i + 1], **options)
        assert torch.equal(found[i * several : (i + 1) * several], alone)


def test_a_wrong_batch_inside_a_training_pass_is_refused():
    poly = poly_tiny.adapted()
    message = r"q_proj: task_ids name 2 examples, .* has 4"
    with pytest.raises(ValueError, match=message), poly.routing([0, 1]):
        poly.base_model(input_ids=poly_tiny.tokens(4))


def test_injection_is_refused_before_anything_changes():
    model = poly_tiny.llama()
    before = [name for name, _ in model.named_modules()]
    config = PolyConfig(target_modules=("q_proj", "down_proj"), heads=16)
    with pytest.raises(ValueError, match=r"down_proj has 24 input features, which heads 16 do not"):
        inject(model, config)
    with pytest.raises(ValueError, match="no layer of LlamaForCausalLM is called 'query'"):
        inject(model, dataclasses.replace(config, target_modules=("query", "q_proj")))
    with pytest.raises(ValueError, match="only linear layers are adapted"):
        inject(model, dataclasses.replace(config, target_modules=("embed_tokens",)))
    assert [name for name, _ in model.named_modules()] == before
    poly = inject(model, dataclasses.replace(config, heads=8))
    with pytest.raises(ValueError, match="already has routed adapters"):
        inject(model, config)
    assert [name for name, _ in poly.unload().named_modules()] == before
    experts = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)])})
    with pytest.raises(ValueError, match="is an expert of a mixture"):
        inject(experts, PolyConfig(target_modules=("experts.0",)))
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match=r"belongs to nn\.MultiheadAttention"):
        inject(attention, PolyConfig(target_modules=("out_proj",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skills": 0}, "skills must be a positive number, got 0"),
        ({"routing": "uniform", "noise": "per_task"}, 'noise must be "none" unless routing'),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"target_modules": ()}, "target_modules must be at least one name"),
    ],
)
def test_config_is_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        PolyConfig(**fields)


def test_bfloat16_model_with_float32_adapters():
    poly = poly_tiny.adapted()
    ids = poly_tiny.tokens()
    with torch.no_grad():
        expected = poly(input_ids=ids, task_ids=2).logits
        poly.base_model.to(torch.bfloat16)
        for layer in poly.layers.values():
            layer.float()
            layer.base.to(torch.bfloat16)
        found = poly(input_ids=ids, task_ids=2).logits
    assert found.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (found.float() - expected).abs().max() < 0.05 * scale


def in_threads(function, count=5, rounds=20):
    """What `function` returns in `count` threads at once, each `rounds` times."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, list(range(count)) * rounds))


@torch.no_grad()
def test_each_thread_has_its_own_tasks():
    """A server: forward, generate and routing blocks of one model at once."""
    poly = poly_tiny.adapted()
    ids = poly_tiny.tokens(2)
    expected = [poly(input_ids=ids, task_ids=task).logits for task in range(5)]
    answers = [poly.generate(ids, task_ids=task, max_new_tokens=4) for task in range(5)]
    assert len({tuple(a.flatten().tolist()) for a in answers}) > 1

    def serve(task):
        if not torch.equal(poly(input_ids=ids, task_ids=task).logits, expected[task]):
            return "forward"
        with poly.routing([task, task]):
            if not torch.allclose(poly.base_model(input_ids=ids).logits, expected[task]):
                return "block"
        right = torch.equal(poly.generate(ids, task_ids=task, max_new_tokens=4), answers[task])
        return None if right else "generate"

    assert set(in_threads(serve)) == {None}


@torch.no_grad()
def test_a_thread_outside_any_pass_finds_none():
    poly = poly_tiny.adapted()
    with poly.routing([0]), ThreadPoolExecutor(1) as pool:
        outside = pool.submit(poly.base_model, input_ids=poly_tiny.tokens(1))
        assert "no routing here" in str(outside.exception())


@torch.no_grad()
def test_replicas_of_data_parallel():
    """What nn.DataParallel makes of a model: tensors in the place of parameters, then threads."""
    poly = poly_tiny.adapted()
    modules = list(poly.modules())
    numbers = {module: i for i, module in enumerate(modules)}
    replicas = [m._replicate_for_data_parallel() for m in modules]
    for module, replica in zip(modules, replicas, strict=True):
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[numbers[child]]
        for name, tensor in module._parameters.items():
            if tensor is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, tensor.detach().clone())
        for name, tensor in module._buffers.items():
            replica._buffers[name] = tensor
    ids = poly_tiny.tokens(4)
    expected = poly(input_ids=ids, task_ids=[0, 1, 2, 3]).logits
    tasks = torch.arange(4)

    def half(i):
        rows = slice(2 * i, 2 * i + 2)
        return replicas[0](input_ids=ids[rows], task_ids=tasks[rows]).logits

    found = in_threads(half, count=2, rounds=1)
    torch.testing.assert_close(torch.cat(found), expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapper_is_in_the_mode_of_the_model_inside(training):
    model = poly_tiny.llama().train(training)
    poly = inject(model, PolyConfig(tasks=2, heads=2, noise="per_example"))
    assert {module.training for module in poly.modules()} == {training}


@torch.no_grad()
def test_generation_inside_a_block_uses_its_routing():
    poly = poly_tiny.adapted()
    ids = poly_tiny.tokens(3)
    expected = poly.generate(ids, task_ids=[4, 0, 1], num_beams=2, max_new_tokens=4)
    with poly.routing([4, 0, 1]):
        assert torch.equal(poly.generate(ids, num_beams=2, max_new_tokens=4), expected)
        other = poly.generate(ids, task_ids=2, max_new_tokens=4)
        with pytest.raises(ValueError, match="routing name 3 examples, generate got 1"):
            poly.generate(ids[:1], max_new_tokens=2)
    assert torch.equal(other, poly.generate(ids, task_ids=2, max_new_tokens=4))
    with poly.routing(2):  # one task for whatever comes
        assert torch.equal(poly.generate(ids, max_new_tokens=4), other)
        torch.testing.assert_close(
            poly(input_ids=ids).logits, poly(input_ids=ids, task_ids=2).logits
        )
    with (
        poly.routing([[0] * 7] * 3),
        pytest.raises(ValueError, match="generation needs one task id per example"),
    ):
        poly.generate(ids, max_new_tokens=2)


@pytest.mark.parametrize("first", ["position_ids", "cache_position", "logits_to_keep"])
@torch.no_grad()
def test_the_batch_is_that_of_the_main_input(first):
    """Whatever tensor is named before it."""
    poly, ids = poly_tiny.adapted(), poly_tiny.tokens(3)
    value = torch.arange(7)[None] if first == "position_ids" else torch.arange(7)
    expected = poly(input_ids=ids, task_ids=[1, 2, 0]).logits
    found = poly(**{first: value}, input_ids=ids, task_ids=[1, 2, 0]).logits
    torch.testing.assert_close(found, expected)
    embedded = poly.get_input_embeddings()(ids)
    found = poly(**{first: value}, inputs_embeds=embedded, task_ids=[1, 2, 0]).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tasks", [[], 3, torch.zeros(0, 1, dtype=torch.long)])
def test_an_empty_batch(tasks):
    poly = inject(_Flat(), PolyConfig(tasks=4, target_modules="inner", heads=2, rank=2))
    tasks = torch.tensor(tasks, dtype=torch.long) if tasks == [] else tasks
    assert poly(torch.zeros(0, 5, 8), task_ids=tasks).shape == (0, 5, 8)


def test_names_of_tasks_are_no_ids():
    poly = poly_tiny.adapted()
    with pytest.raises(TypeError, match=r"must be integers, got \['sentiment'\].*task_names"):
        poly(input_ids=poly_tiny.tokens(1), task_ids=["sentiment"])


@pytest.mark.parametrize("adapter", ["lora", "ia3"])
def test_a_float64_model_has_float64_adapters(adapter, tmp_path):
    """The norms of Llama compute in float32, so the two agree to that."""
    plain = poly_tiny.adapted(adapter=adapter)
    fields = dataclasses.asdict(plain.poly_config)
    poly = inject(poly_tiny.llama().double(), PolyConfig(**fields))
    poly.load_state_dict(plain.state_dict())
    assert {p.dtype for p in poly.adapter_parameters().values()} == {torch.float64}
    ids = poly_tiny.tokens()
    found = poly(input_ids=ids, task_ids=[3, 1, 0, 1]).logits
    assert found.dtype == torch.float64
    expected = plain(input_ids=ids, task_ids=[3, 1, 0, 1]).logits
    torch.testing.assert_close(found, expected.double(), atol=1e-4, rtol=1e-4)
    save(plain, tmp_path / "float32")
    again = load(poly_tiny.llama().double(), tmp_path / "float32")
    torch.testing.assert_close(again(input_ids=ids, task_ids=[3, 1, 0, 1]).logits, found)


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_an_offloaded_model(kind, tmp_path):
    """accelerate leaves the weights on the device "meta" between calls."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    plain = poly_tiny.adapted()
    model, place = poly_tiny.llama(), torch.device("cpu")
    if kind == "cpu":
        accelerate.cpu_offload(model, execution_device=place)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=place)
    assert next(model.parameters()).device.type == "meta"
    poly = inject(model, plain.poly_config)
    poly.load_state_dict(plain.state_dict())
    ids = poly_tiny.tokens()
    found = poly(input_ids=ids, labels=ids, task_ids=[0, 1, 4, 1])
    torch.testing.assert_close(
        found.logits, plain(input_ids=ids, task_ids=[0, 1, 4, 1]).logits, atol=0, rtol=0
    )
    found.loss.backward()
    assert poly.router.logits.grad.abs().max() > 0
    with pytest.raises(ValueError, match="is offloaded: load the model whole to merge"):
        poly.merge(0)
    assert poly.unload()(input_ids=ids).logits.shape == found.logits.shape


def test_methods_of_transformers_that_would_mean_something_else(tmp_path):
    """Delegated, save_pretrained would write the model inside under names that nothing reads."""
    poly = poly_tiny.adapted()
    poly.save_pretrained(tmp_path / "adapters", safe_serialization=True)
    again = load(poly_tiny.llama(), tmp_path / "adapters")
    for name, parameter in poly.adapter_parameters().items():
        assert torch.equal(again.adapter_parameters()[name], parameter)
    with pytest.raises(ValueError, match="push_to_hub must be False"):
        poly.save_pretrained(tmp_path / "adapters", push_to_hub=True)
    assert poly.num_parameters(only_trainable=True) == sum(
        p.numel() for p in poly.adapter_parameters().values()
    )
    embedding = poly.get_input_embeddings().weight.numel()
    every = sum(p.numel() for p in poly.parameters())
    assert poly.num_parameters() == every
    assert poly.num_parameters(exclude_embeddings=True) == every - embedding
    for name in (
        "push_to_hub", "from_pretrained", "load_adapter", "add_adapter", "set_adapter",
        "disable_adapters", "enable_adapters", "active_adapters", "delete_adapter",
        "get_adapter_state_dict",
    ):  # fmt: skip
        assert hasattr(poly.base_model, name)
        with pytest.raises(AttributeError, match=f"{name} of LlamaForCausalLM knows nothing of"):
            getattr(poly, name)

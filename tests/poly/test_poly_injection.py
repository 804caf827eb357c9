"""Which layers are adapted: names, "all-linear", what it leaves out and what it says of that."""

import dataclasses

import poly_tiny
import pytest
import torch
from torch import nn

from oneshot.poly import PolyConfig, inject
from oneshot.poly.layers import RoutedLora

CONFIG = PolyConfig(tasks=5, skills=3, heads=2, rank=2, alpha=1)


def names(model, **fields):
    return set(inject(model, dataclasses.replace(CONFIG, **fields)).layers)


def test_a_single_text_is_one_name():
    """PEFT's spelling; T5 has layers that are called q and v, of which "qv" is neither."""
    linear = names(poly_tiny.t5())
    assert names(poly_tiny.t5(), target_modules="all-linear") == linear
    assert {n.rpartition(".")[2] for n in linear} == {"q", "k", "v", "o", "wi_0", "wi_1", "wo"}
    assert PolyConfig(target_modules=["q", "v"]).target_modules == ("q", "v")
    with pytest.raises(ValueError, match=r"called 'qv'; the last parts .* are k, lm_head, o, q"):
        names(poly_tiny.t5(), target_modules="qv")


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("adapter", "LoRA", "'lora', 'ia3'"),
        ("routing", "Learned", "'learned', 'private', 'uniform'"),
        ("granularity", "layers", "'layer', 'block', 'model'"),
        ("init", "Reference", "'reference', 'peft'"),
        ("noise", "yes", "'none', 'per_task', 'per_example'"),
        ("noise", True, "'none', 'per_task', 'per_example'"),
        ("adapter", None, "'lora', 'ia3'"),
    ],
)
def test_enumerations_are_checked_in_the_api(field, value, known):
    with pytest.raises(
        ValueError, match=rf"PolyConfig\.{field} must be one of {known}, got {value!r}"
    ):
        PolyConfig(**{field: value})


def test_excluded_modules():
    every = names(poly_tiny.llama())
    without = names(poly_tiny.llama(), exclude_modules="down_proj")
    assert without == {n for n in every if not n.endswith("down_proj")}
    without = names(poly_tiny.llama(), exclude_modules=("layers.0", "mlp"))
    assert without == {n for n in every if "layers.1.self_attn" in n}
    with pytest.raises(ValueError, match=r"is called 'layers\.7'"):
        names(poly_tiny.llama(), exclude_modules="layers.7")


def test_all_linear_leaves_out_what_heads_do_not_divide():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"not adapted: 1: has 1 output features, which heads 2"):
        assert names(model) == {"0"}
    named = dataclasses.replace(CONFIG, target_modules=("0", "2"))
    with pytest.raises(ValueError, match="2 has 3 output features, which heads 2 do not divide"):
        inject(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 3)), named)
    with pytest.raises(ValueError, match="nothing of Sequential can be adapted: 0: has 1 output"):
        inject(nn.Sequential(nn.Linear(8, 1)), CONFIG)


class _Quantised(nn.Module):
    """What GPTQ, AWQ and dynamic int8 put in the place of nn.Linear."""


def test_a_model_without_linear_layers():
    class QuantLinear(_Quantised):
        pass

    message = r"Sequential has no nn.Linear or Conv1D to adapt; .* of the classes QuantLinear"
    with pytest.raises(ValueError, match=message):
        inject(nn.Sequential(QuantLinear()), CONFIG)


def test_layers_whose_weights_are_read_by_a_fused_path():
    """A TransformerEncoder in evaluation would compute without the adapters."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    with pytest.raises(ValueError, match=r"linear1 belongs to nn\.TransformerEncoderLayer"):
        names(encoder, target_modules=("linear1",))
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(16, 4)})
    with pytest.warns(UserWarning, match="fused path reads its weight"):
        assert names(model) == {"head"}


class _Reads(nn.Module):
    """Computes with the weight of a layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.inner.weight)


def test_a_weight_that_is_read_and_a_layer_that_is_not_called():
    poly = inject(_Reads(), CONFIG)
    with pytest.warns(
        RuntimeWarning, match="the weight of inner was read and the layer not called"
    ):
        poly(torch.ones(2, 8), task_ids=1)


def test_a_layer_under_two_names_is_not_half_adapted():
    one = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Sequential(one), "b": nn.Sequential(one)})
    with pytest.raises(ValueError, match=r"a\.0 is used under several names"):
        names(model, target_modules=("0",))
    block = nn.Sequential(nn.Linear(8, 8))  # a shared parent is replaced for both
    assert names(nn.ModuleDict({"a": block, "b": block})) == {"a.0"}


def test_mamba_reads_a_weight(recwarn):
    poly = inject(poly_tiny.mamba(), dataclasses.replace(CONFIG, heads=1))
    with pytest.warns(RuntimeWarning, match=r"weight of .*dt_proj was read") as caught:
        poly(input_ids=poly_tiny.tokens(), task_ids=1)
    assert caught[0].filename == __file__
    rest = dataclasses.replace(CONFIG, heads=1, exclude_modules="dt_proj")
    recwarn.clear()
    inject(poly_tiny.mamba(), rest)(input_ids=poly_tiny.tokens(), task_ids=1)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("make", "adapted", "total"), [("qwen3_moe", 1536, 4608), ("mixtral", 1536, 10752)]
)
def test_experts_in_three_dimensions_are_named(make, adapted, total):
    """transformers 5 keeps them as parameters. Counted by hand from the configs of `poly_tiny`:

    attention 768 a layer; experts 4 * 3 * 16 * (8 or 24).
    """
    message = rf'"all-linear" adapts {adapted} of {total} weights .*experts\.gate_up_proj'
    with pytest.warns(UserWarning, match=message):
        poly = inject(getattr(poly_tiny, make)(), CONFIG)
    assert sum(layer.base.weight.numel() for layer in poly.layers.values()) == adapted


def test_a_convolution_is_no_expert(recwarn):
    inject(nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 4)), CONFIG)
    assert not recwarn.list


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj",)])
def test_a_vision_tower_is_left_out(targets):
    """Its rows are images; nothing says of which example they are."""
    with pytest.warns(UserWarning, match=r"vision_tower.*: lies outside the text"):
        found = names(poly_tiny.gemma3(), target_modules=targets)
    assert found
    assert all(name.startswith("model.language_model.") for name in found)


def test_a_vision_tower_that_is_named_in_full_serves_one_task_only():
    layer = "model.vision_tower.encoder.layers.0.mlp.fc1"
    poly = inject(poly_tiny.gemma3(), dataclasses.replace(CONFIG, target_modules=(layer,))).eval()
    nn.init.normal_(poly.layers[layer].lora_b)
    nn.init.normal_(poly.router.logits, std=3)
    nn.init.normal_(poly.base_model.model.multi_modal_projector.mm_input_projection_weight)
    ids = torch.cat([poly_tiny.tokens(2).clamp(max=36), torch.full((2, 4), 39)], 1)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one = poly(input_ids=ids, pixel_values=images, task_ids=1).logits
        other = poly(input_ids=ids, pixel_values=images, task_ids=2).logits
    assert torch.isfinite(one).all()
    assert (one - other).abs().max() > 0
    with pytest.raises(ValueError, match=r"must be one integer for the whole batch.*fc1 lies out"):
        poly(input_ids=ids, pixel_values=images, task_ids=[1, 2])


@pytest.mark.parametrize("make", ["llama", "t5", "gpt2", "qwen3", "bart", "whisper"])
def test_text_and_speech_models_have_no_such_tower(make, recwarn):
    poly = inject(getattr(poly_tiny, make)(), CONFIG)
    assert not [w for w in recwarn if "not adapted" in str(w.message)]
    outputs = {poly.base_model.get_output_embeddings()}
    linear = [
        m
        for m in poly.modules()
        if (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D") and m not in outputs
    ]
    assert len(linear) == len(poly.layers)
    assert all(isinstance(layer, RoutedLora) for layer in poly.layers.values())

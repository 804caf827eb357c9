"""Checkpoints exchanged with the installed PEFT, in both directions."""

import json

import poly_tiny
import pytest
import torch

from oneshot.poly import load_peft, save_peft, save_peft_lora

peft = pytest.importorskip("peft", reason="PEFT is not installed")

TARGETS = {"llama": ["q_proj", "down_proj"], "t5": ["q", "wo"]}
TYPES = {"llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}
TASKS = [4, 0, 2, 0]


def peft_poly(name):
    torch.manual_seed(5)
    config = peft.PolyConfig(
        r=2,
        n_tasks=5,
        n_skills=3,
        n_splits=2,
        target_modules=TARGETS[name],
        init_weights=False,
        task_type=TYPES[name],
    )
    model = peft.get_peft_model(poly_tiny.ARCHITECTURES[name](), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "poly_" in key:
                parameter.normal_(std=1.5 if "router" in key else 0.4)
    return model.eval()


def peft_logits(model, ids, **kwargs):
    if model.config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = ids.flip(1)[:, :5]
    return model(input_ids=ids, **kwargs).logits


def assert_equal(found, expected, tolerance=1e-6):
    """Equal but for the last float32 bits of the largest logit."""
    assert (found - expected).abs().max() < tolerance * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", sorted(TARGETS))
@torch.no_grad()
def test_import(name, tmp_path):
    theirs = peft_poly(name)
    theirs.save_pretrained(tmp_path)
    ours = load_peft(poly_tiny.ARCHITECTURES[name](), tmp_path)
    assert not ours.training  # so its routing has no noise
    ids = poly_tiny.tokens()
    expected = peft_logits(theirs, ids, task_ids=torch.tensor(TASKS))
    found = poly_tiny.logits(ours, ids, task_ids=TASKS)
    assert (expected - poly_tiny.logits(ours, ids, task_ids=1)).abs().max() > 1e-2
    assert_equal(found, expected)


def assert_peft_reads(poly, name, folder):
    save_peft(poly, folder)
    theirs = peft.PeftModel.from_pretrained(poly_tiny.ARCHITECTURES[name](), folder).eval()
    ids = poly_tiny.tokens()
    found = peft_logits(theirs, ids, task_ids=torch.tensor(TASKS))
    expected = poly_tiny.logits(poly, ids, task_ids=TASKS)
    assert_equal(found, expected)


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize(
    "fields",
    [
        {"granularity": "layer", "alpha": 0.5},
        {"granularity": "block"},
        {"granularity": "model", "heads": 4},
        {"routing": "private", "skills": 5},
        {"routing": "uniform"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
@torch.no_grad()
def test_export(name, fields, tmp_path):
    assert_peft_reads(poly_tiny.adapted(poly_tiny.ARCHITECTURES[name], **fields), name, tmp_path)


@torch.no_grad()
def test_there_and_back_is_exact(tmp_path):
    theirs = peft_poly("llama")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_peft(poly_tiny.llama(), tmp_path / "theirs")
    save_peft(ours, tmp_path / "ours")
    from safetensors.torch import load_file

    first = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    second = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
@torch.no_grad()
def test_plain_lora_of_one_task(name, tmp_path):
    make = poly_tiny.ARCHITECTURES[name]
    poly = poly_tiny.adapted(make, alpha=0.5)
    save_peft_lora(poly, tmp_path, task=3)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    ids = poly_tiny.tokens()
    expected = poly_tiny.logits(poly, ids, task_ids=3)
    assert_equal(peft_logits(theirs, ids), expected)
    merged = theirs.merge_and_unload()
    assert_equal(peft_logits(merged, ids), expected, 1e-5)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"this model has \(IA\)\^3"):
        save_peft(poly_tiny.adapted(adapter="ia3"), tmp_path)
    with pytest.raises(ValueError, match=r"adapts nn\.Linear only, .*c_attn is a Conv1D"):
        save_peft(poly_tiny.adapted(poly_tiny.gpt2), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it has no adapter_config\.json"):
        load_peft(poly_tiny.llama(), tmp_path)
    save_peft_lora(poly_tiny.adapted(), tmp_path, task=0)
    with pytest.raises(ValueError, match="peft_type must be POLY, got 'LORA'"):
        load_peft(poly_tiny.llama(), tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "CAUSAL_LM"),
        ("gpt2", "CAUSAL_LM"),
        ("gemma3", "CAUSAL_LM"),
        ("t5", "SEQ_2_SEQ_LM"),
        ("bart", "SEQ_2_SEQ_LM"),
        ("whisper", None),
    ],
)
@pytest.mark.filterwarnings("ignore:not adapted")
@torch.no_grad()
def test_the_kind_of_task_is_one_that_peft_can_call(name, kind, tmp_path):
    """PEFT's SEQ_2_SEQ_LM would pass Whisper input_ids, which it does not have."""
    make = getattr(poly_tiny, name)
    poly = poly_tiny.adapted(make)
    save_peft_lora(poly, tmp_path, task=2)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == kind
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path).eval()
    inputs = {"input_ids": poly_tiny.tokens(2).clamp(max=36)}
    if name == "whisper":
        features = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0))
        inputs = {"input_features": features, "decoder_input_ids": poly_tiny.tokens(2)}
    elif poly.base_model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = poly_tiny.tokens(2, 5)
    assert_equal(theirs(**inputs).logits, poly(**inputs, task_ids=2).logits, 1e-5)


def test_folders_and_files_of_checkpoints(tmp_path):
    poly = poly_tiny.adapted()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    for write in (save_peft, lambda *a: save_peft_lora(*a, task=0)):
        with pytest.raises(FileExistsError, match="holds no PEFT checkpoint to replace"):
            write(poly, tmp_path / "mine")
    save_peft(poly, tmp_path / "poly")
    save_peft(poly, tmp_path / "poly")  # an earlier export is replaced
    tensors = tmp_path / "poly" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    model = poly_tiny.llama()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: damaged or cut off"):
        load_peft(model, tmp_path / "poly")
    tensors.rename(tmp_path / "poly" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="save it again with safe_serialization=True"):
        load_peft(model, tmp_path / "poly")
    (tmp_path / "poly" / "adapter_config.json").write_text('{"peft_type": ')
    with pytest.raises(ValueError, match=r"adapter_config\.json: damaged"):
        load_peft(model, tmp_path / "poly")
    assert model(input_ids=poly_tiny.tokens()).logits.requires_grad  # as it was

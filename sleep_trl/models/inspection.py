"""What can be said of a checkpoint from its config, its tokenizer and its headers, without weights."""

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
from .loading import load_tokenizer

T = TypeVar("T")

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_config(name: str) -> PretrainedConfig:
    """Read the config of a causal language model.

    Args:
        name (`str`):
            A folder, or a name on the Hugging Face hub.

    Raises:
        `ValueError`: if there is no model, it is of an unknown kind, needs code of its own, is no
            causal language model, or has no safetensors.
    """
    path = Path(name)
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise ValueError(f"Model: {name} is a file. Give the folder that holds config.json.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"Model: the folder {name} does not exist. Check the path.")
    config = _told(
        f"Model: {name!r} cannot be used: its config does not load",
        "Check the name, the network and config.json; code that comes with a model is never run.",
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
        `ValueError`: if there is none, it has no end-of-sequence token, or knows tokens that the
            model does not.
    """
    tokenizer = _told(
        f"Model: the tokenizer of {config.model!r} does not load",
        "Save it beside the weights with `tokenizer.save_pretrained`.",
        lambda: load_tokenizer(config),
    )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"Model: the tokenizer of {config.model!r} has no end-of-sequence token, so that no "
            f"sample would end. Set eos_token in its tokenizer_config.json."
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(
            f"Model: the tokenizer of {config.model!r} has the token id {largest}, but the model's "
            f"vocabulary ends at {vocabulary - 1}. Give the tokenizer that belongs to the model."
        )
    return tokenizer


def build_without_weights(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device: all shapes, no memory.

    Raises:
        `ValueError`: if the config describes no model.
    """

    def build() -> PreTrainedModel:
        with sharding(None), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    return _told(f"Model: {name!r} cannot be built", "Check its config.json.", build)


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
            f"Model: {folder} holds an adapter and no model. Give the base model; the experts of an "
            f"earlier run are taken with --continue_from."
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"Model: the folder {folder} has no config.json, so it holds no model. Give a folder "
            f"written by `save_pretrained`."
        )


def _check_kind(name: str, config: PretrainedConfig) -> None:
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    known = (known,) if isinstance(known, str) else tuple(known)
    named = tuple(getattr(config, "architectures", None) or known)
    if not known or not set(named) & set(known) or getattr(config, "is_encoder_decoder", False):
        kind = ", ".join(named) or config.model_type
        raise ValueError(
            f"Model: {name!r} is no causal language model but {kind}. Give a model that writes text "
            f"from left to right, such as LlamaForCausalLM."
        )


def _check_weights(name: str) -> None:
    if not any(has_file(name, file) for file in SAFETENSORS):
        pickles = [file for file in PICKLES if has_file(name, file)]
        if pickles or any(Path(name).glob("*.bin")):
            raise ValueError(
                f"Model: {name!r} has its weights only as pickle (*.bin), which can run code when it "
                f"is loaded. Convert it: load it where you trust it and call "
                f"`model.save_pretrained(folder)`."
            )
        raise ValueError(
            f"Model: {name!r} has a config.json but no model.safetensors. Complete the folder, or "
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


def _told(what: str, advice: str, load: Callable[[], T]) -> T:
    """Call a loader of transformers, and tell its errors about a checkpoint in one line."""
    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{what} ({_first_line(error)}). {advice}") from None


def _first_line(error: BaseException) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else ""
    return f"{type(error).__name__}: {told}"[:200].rstrip(".")

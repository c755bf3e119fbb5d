"""Inspect a checkpoint by its config, its tokenizer and its headers, without loading weights."""

from __future__ import annotations

import json
import logging
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
from ..config.model_name import MAIN, check_exists, is_gguf
from ..distributed.zero3 import sharding
from .gguf import local_checkpoint, read_gguf, unconverted
from .loading import load_tokenizer

T = TypeVar("T")

log = logging.getLogger(__name__)

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_config(name: str, revision: str = MAIN, needs_weights: bool = True) -> PretrainedConfig:
    """Read the config of a causal language model; of a model with a vision tower that of its language model, if
    transformers has a class for it.

    Args:
        name (`str`):
            A folder, a name on the Hugging Face Hub, or a GGUF file, which is read as it is if it is not converted.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        needs_weights (`bool`, *optional*, defaults to `True`):
            Whether there have to be weights next to the config.

    Raises:
        `ValueError`: if there is no model, its type is unknown, it needs custom code, is not a causal language model,
            has no safetensors, or a revision is given for a folder or file.
    """
    if revision != MAIN and (is_gguf(name) or Path(name).is_dir()):
        raise ValueError(
            f"model_revision: {name} is a folder or a GGUF file, of which no revision can be chosen. Leave it out, or "
            f"give a model of safetensors by its name on the Hugging Face Hub."
        )
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
    check_exists(name)
    config = _explain_errors(
        f"model: {name!r} cannot be used: its config does not load",
        "Check the name, the network and config.json. Code in a model repository is never run.",
        lambda: AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False),
    )
    config = _language_model(name, config)
    _check_kind(name, config)
    if needs_weights:
        _check_weights(name, revision)
    return config


def read_tokenizer(config: RunConfig, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    Args:
        config (`RunConfig`):
            The run.
        vocabulary (`int`):
            Size of the model's vocabulary.

    Raises:
        `ValueError`: if there is none, it has no end-of-sequence token, or needs tokens that the model does not know.
            Added tokens without a row in the embedding, such as Gemma 3's token for images, are left out with a
            warning, and their text is read like any other.
    """
    tokenizer = _explain_errors(
        f"model: the tokenizer of {config.model!r} does not load",
        "Save it next to the weights with `tokenizer.save_pretrained`.",
        lambda: load_tokenizer(config),
    )
    return check_tokenizer(tokenizer, config.model, vocabulary)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: str, vocabulary: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer with which a model can learn, without tokens that the model cannot read.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, which is changed.
        model (`str`):
            Name of the model.
        vocabulary (`int`):
            Size of the model's vocabulary.

    Raises:
        `ValueError`: as [`read_tokenizer`], apart from loading.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model: the tokenizer of {model!r} has no end-of-sequence token, so no "
            f"sample would ever end. Set eos_token in its tokenizer_config.json."
        )
    if unreadable := leave_out_unreadable(tokenizer, vocabulary):
        log.warning(
            "The tokenizer of %s has tokens for which the model has no embedding; they are read as ordinary text: %s",
            model,
            ", ".join(unreadable),
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ValueError(
            f"model: the tokenizer of {model!r} has the token id {largest}, but the model's "
            f"vocabulary ends at {vocabulary - 1}. Give the tokenizer that belongs to the model."
        )
    return tokenizer


def leave_out_unreadable(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """Take out of a tokenizer the added tokens that lie beyond a model's vocabulary, unless prompts need them, and
    return them."""
    backend, needed = getattr(tokenizer, "_tokenizer", None), str(tokenizer.chat_template)
    ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    beyond = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if number >= vocabulary and str(token) not in ends and str(token) not in needed
    }
    if backend is None or not beyond:
        return []
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in beyond.values()]
    tokenizer._tokenizer = type(backend).from_str(json.dumps(state))
    return sorted(beyond)


def build_without_weights(
    name: str, config: PretrainedConfig, attn_implementation: str | None = None
) -> PreTrainedModel:
    """Build a model on the meta device, with all shapes but without memory.

    Raises:
        `ValueError`: if the config does not describe a model, or it cannot have the implementation of attention.
    """

    def build(**options: str) -> PreTrainedModel:
        with sharding(None), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)

    model = _explain_errors(f"model: {name!r} cannot be built", "Check its config.json.", build)
    if attn_implementation is not None:
        _explain_errors(
            f"attn_implementation: {name!r} cannot have {attn_implementation!r}",
            "Give sdpa, eager or another that transformers and this machine support, or leave it out.",
            lambda: build(attn_implementation=attn_implementation),
        )
    return model


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


def _language_model(name: str, config: PretrainedConfig) -> PretrainedConfig:
    """Return the config of the language model in a model that reads images too, if it is what
    `AutoModelForCausalLM` loads; any other config as it is."""
    text = config.sub_configs.get("text_config")
    mapping = AutoModelForCausalLM._model_mapping
    if text is None or type(config) not in mapping or getattr(mapping[type(config)], "config_class", None) != text:
        return config
    kind = mapping[type(config)].__name__
    log.warning("%s is a model for texts and images. Its language model learns (%s); the rest is left out", name, kind)
    language = config.get_text_config()
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        language.quantization_config = quantization
    return language


def _check_kind(name: str, config: PretrainedConfig) -> None:
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    known = (known,) if isinstance(known, str) else tuple(known)
    named = tuple(getattr(config, "architectures", None) or known)
    if not known or not set(named) & set(known) or getattr(config, "is_encoder_decoder", False):
        kind = ", ".join(named) or config.model_type
        raise ValueError(
            f"model: {name!r} is not a causal language model but {kind}. Give one, such as LlamaForCausalLM."
        )


def _check_weights(name: str, revision: str) -> None:
    if not any(has_file(name, file, revision=revision) for file in SAFETENSORS):
        pickles = [file for file in PICKLES if has_file(name, file, revision=revision)]
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, StrictDataclassError) as error:
        raise ValueError(f"{what} ({_first_line(error)}). {advice}") from None


def _first_line(error: BaseException) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else ""
    return f"{type(error).__name__}: {first}"[:200].rstrip(".")

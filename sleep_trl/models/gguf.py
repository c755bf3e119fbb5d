"""GGUF files as ordinary checkpoints: converted once, into a folder that everything else reads.

transformers reads the tensors of a GGUF file (`from_pretrained(folder, gguf_file=NAME)`), which takes long and leaves
special tokens as the tokenizer's class has them, not as the file says. So the file is read once, its special tokens are
set from its own metadata, and the result is saved as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.utils import cached_file

from ..config.model_name import is_gguf
from ..runs.files import write_json

log = logging.getLogger(__name__)

ORIGIN = "gguf.json"  # written last: a folder with it is complete
CACHE = "SLEEP_TRL_CACHE"  # environment variable
BROKEN = 0.6  # share of a uniform distribution's loss on plain English above which a conversion has failed (ours)
PROBE_TEXTS = 8
SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def local_checkpoint(name: str) -> str:
    """Return the folder of a GGUF file's conversion, or any other model's name as it is.

    Args:
        name (`str`):
            A model. `FOLDER/NAME.gguf` and `ORGANIZATION/REPOSITORY/NAME.gguf` are converted the first time, into the
            cache (`~/.cache/sleep_trl`, or `$SLEEP_TRL_CACHE`).

    Raises:
        `ValueError`: if there is no such file, the package `gguf` is missing, or the conversion is broken.
    """
    if not is_gguf(name):
        return name
    source = _find(name)
    folder = _conversion(source)
    if not (folder / ORIGIN).is_file():
        convert_gguf(source, folder)
    return str(folder)


def unconverted(name: str) -> Path | None:
    """Return the GGUF file that a model's name stands for, or `None` if it is not a GGUF file or is converted already.

    Raises:
        `ValueError`: if there is no such file, or the package `gguf` is missing.
    """
    if not is_gguf(name):
        return None
    source = _find(name)
    return None if (_conversion(source) / ORIGIN).is_file() else source


def read_gguf(source: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Read config and tokenizer of a GGUF file as its conversion will have them, without weights and without writing.

    Raises:
        `ValueError`: if `gguf` is not installed, or transformers cannot read the file.
    """
    config, tokenizer = _read(source, AutoConfig, AutoTokenizer)
    _set_special_tokens(source, tokenizer, config)
    return config, tokenizer


def convert_gguf(source: Path, folder: Path) -> None:
    """Convert a GGUF file into a folder that `from_pretrained` reads: weights, tokenizer, chat template.

    Args:
        source (`Path`):
            The file. Quantized tensors are dequantized to the nearest bfloat16.
        folder (`Path`):
            Where the checkpoint goes.

    Raises:
        `ValueError`: if `gguf` is not installed, transformers cannot read the file, or the model's loss on plain
            English is near that of a model that knows nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of several processes, one converts and the others wait
        if (folder / ORIGIN).is_file():
            return
        log.warning("Converting %s to %s; this is done once", source, folder)
        model, tokenizer = _read(source, AutoModelForCausalLM, AutoTokenizer)
        _set_special_tokens(source, tokenizer, model.config, model.generation_config)
        _refuse_broken(source, model, tokenizer)
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer = None  # or save_pretrained refuses to write what is no longer quantized
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / ORIGIN, {"file": str(source)})


def mean_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Return the mean negative log likelihood of texts, in nats per token.

    Args:
        model (`PreTrainedModel`):
            Reads the texts one by one, up to 512 tokens of each.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        texts (`list[str]`):
            At least one of two tokens or more.
    """
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=512).input_ids
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    return total / count


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    repository, _, file = name.rpartition("/")
    if repository.count("/") == 1 and not path.parent.is_dir():
        try:
            return Path(cached_file(repository, file)).absolute()  # keeps the file's own name, a link into the cache
        except OSError as error:
            raise ValueError(
                f"model: {file} of {repository} cannot be fetched ({str(error).splitlines()[0]}). Check both names and "
                f"the network, or give the path of a GGUF file."
            ) from None
    raise ValueError(f"model: there is no GGUF file {name}. Check the path.")


def _conversion(source: Path) -> Path:
    """Return the folder of a file's conversion. Path, size and time identify the file, as reading gigabytes in every
    process would take long."""
    root = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "sleep_trl")
    stat = source.stat()
    identity = hashlib.sha256(f"{source} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    return root / "gguf" / f"{source.stem}-{identity[:12]}"


def _read(source: Path, *classes: Any) -> list[Any]:
    """Read a GGUF file with `from_pretrained` of some classes of transformers."""
    if find_spec("gguf") is None:
        raise ValueError(f"model: {source} is a GGUF file; to read it, run `pip install 'sleep-trl[gguf]'`.")
    options: dict[str, Any] = {"gguf_file": source.name, "trust_remote_code": False}
    try:
        with _bar_on_terminals_only():
            return [
                cls.from_pretrained(
                    source.parent, **options, **({"dtype": torch.bfloat16} if cls is AutoModelForCausalLM else {})
                )
                for cls in classes
            ]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # whatever transformers raises
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model: transformers cannot read {source} ({reason}). Give a GGUF of an architecture that it "
            f"supports, or the original checkpoint as safetensors."
        ) from None


@contextmanager
def _bar_on_terminals_only() -> Iterator[None]:
    """Context manager that keeps the bar of transformers' conversion out of log files, where each refresh is a line."""
    if (former := getattr(reader, "tqdm", None)) is None:  # another version of transformers
        yield
        return
    reader.tqdm = partial(former, disable=None)
    try:
        yield
    finally:
        reader.tqdm = former


def _set_special_tokens(source: Path, tokenizer: PreTrainedTokenizerBase, *configs: Any) -> None:
    """Set the special tokens that the file names; the end of a turn ends an answer too."""
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    for kind, attribute in SPECIAL_TOKENS.items():
        if (field := fields.get(f"tokenizer.ggml.{kind}_token_id")) is not None:
            setattr(tokenizer, attribute, tokenizer.convert_ids_to_tokens(int(field.contents())))
    if tokenizer.eos_token is None:
        raise ValueError(f"model: {source} names no end-of-sequence token, so that no sample would end.")
    tokenizer.clean_up_tokenization_spaces = False
    for config in configs:
        if config is not None:
            config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id


def _refuse_broken(source: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if the converted model predicts plain English hardly better than chance: some architectures load with
    weights in the wrong layout, without an error."""
    shipped = files("sleep_trl.data") / "shipped" / "prose.jsonl"
    texts = [json.loads(line)["text"] for line in shipped.read_text("utf-8").splitlines()[:PROBE_TEXTS]]
    loss, chance = mean_loss(model.eval(), tokenizer, texts), math.log(model.config.get_text_config().vocab_size)
    if not loss <= BROKEN * chance:  # NaN is broken too
        raise ValueError(
            f"model: {source} does not predict plain English once it is loaded: {loss:.1f} nats a token, where chance "
            f"is {chance:.1f}. transformers reads this architecture's GGUF wrongly; give the original checkpoint as "
            f"safetensors."
        )

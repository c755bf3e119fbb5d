"""`sleep-trl export`: a grown model in a folder of its own, with a card, and onto the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runs.files import read_json, write_json, write_text
from ..runs.finished import FinishedRun, newest_committed_night
from ..runs.model_card import model_card

if TYPE_CHECKING:
    from ..runs.model_card import Form

Target = Literal["checkpoint", "adapter", "peft"]

NOT_PEFT = (
    "--to peft: an expert is no PEFT adapter. PEFT's methods change maps that a model has (LoRA adds a low-rank matrix "
    "to one, IA3 scales what it returns), while an expert gives the MLP further hidden units, act(gate(x)) * up(x), "
    "which no change of the old maps equals. It could only be approximated, so it is not written. Use --to checkpoint, "
    "which loads everywhere, or --to adapter, which is about as small as a LoRA."
)


def export(folder: Path, to: Target, output: Path) -> Path:
    """Write the newest committed model of a run, or of a life, for others.

    Neither form holds texts: prompts and questions of the nights stay in the run.

    Args:
        folder (`Path`):
            A run's `output_dir`, or a life's.
        to (`str`):
            `checkpoint`: the folded model, an ordinary checkpoint. `adapter`: the experts that speak, for
            [`~sleep_trl.memory.load_memory`]. `peft` is refused, since an expert is no PEFT adapter.
        output (`Path`):
            Where it goes; must not be there, or be empty. It appears whole or not at all.

    Returns:
        `Path`: `output`.

    Raises:
        `ValueError`: if there is no committed night, nothing speaks, the form cannot be written, or `output` is not
            free.
    """
    if to == "peft":
        raise ValueError(NOT_PEFT)
    run = FinishedRun.read(newest_committed_night(folder))
    if not any(run.enabled.values()):
        raise ValueError(f"No entry of {run.folder} speaks: this is the base model. See `sleep-trl memory list`.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output: {output} is there already. Give another folder, or remove it.")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    WRITERS[to](run, partial)
    write_text(partial / "README.md", card_of(run, to))
    if output.is_dir():
        output.rmdir()
    partial.rename(output)
    return output


def card_of(run: FinishedRun, form: Form) -> str:
    """Return the model card of a finished run."""
    enabled = {index for index, is_enabled in run.enabled.items() if is_enabled}
    return model_card(run.config.model, run.entries, enabled, form)


def write_checkpoint(run: FinishedRun, output: Path) -> None:
    """Copy the folded model.

    Raises:
        `ValueError`: if the run has none.
    """
    if not (run.folder / "model" / "config.json").is_file():
        raise ValueError(
            f"{run.folder} has no model/: routed experts do not fold into a checkpoint. Use --to adapter, or sleep "
            f"with --memory.routing dense."
        )
    shutil.copytree(run.folder / "model", output)


def write_adapter(run: FinishedRun, output: Path) -> None:
    """Write the experts that speak. What is silenced stays behind."""
    from safetensors.numpy import load_file, save_file  # experts are float32, and torch takes long to import

    adapter = run.folder / "adapter"
    description = read_json(adapter / "memory.json")
    kept = [expert for expert in description["experts"] if expert["is_enabled"]]
    prefixes = tuple(f"experts.{expert['index']}." for expert in kept)
    tensors = load_file(adapter / "experts.safetensors")
    output.mkdir(parents=True)
    save_file({name: t for name, t in tensors.items() if name.startswith(prefixes)}, output / "experts.safetensors")
    write_json(output / "memory.json", description | {"experts": kept})


WRITERS: dict[str, Callable[[FinishedRun, Path], None]] = {"checkpoint": write_checkpoint, "adapter": write_adapter}


def check_repository(repository: str) -> None:
    """Raise `ValueError` unless this is a name that a repository on the hub can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub: {error} Give NAMESPACE/NAME.") from None


def push(folder: Path, repository: str, is_private: bool = True) -> str:
    """Upload a folder to a model repository on the Hugging Face hub, made if it is missing.

    Args:
        folder (`Path`):
            What [`export`] wrote.
        repository (`str`):
            `NAMESPACE/NAME`. An existing one keeps its visibility.
        is_private (`bool`, *optional*, defaults to `True`):
            Whether a new one is private: what a model has learnt may be.

    Returns:
        `str`: its address.

    Raises:
        `RuntimeError`: if the hub refuses, or is not reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        made = api.create_repo(repository, private=is_private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Export from sleep-trl")
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"{folder} is written, but was not pushed to {repository}: {reason}. Log in with `hf auth login`, or set "
            f"HF_TOKEN, and call this again with another --output."
        ) from None
    return str(made)

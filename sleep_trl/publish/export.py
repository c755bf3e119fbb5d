"""`sleep-trl export`: a grown model with a model card, in its own folder and on the Hugging Face Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..runs import checksums
from ..runs.files import read_json, write_json, write_text
from ..runs.finished import FinishedRun, chat_variables, newest_committed_night
from ..runs.folder import AdapterFolder, RunFolder
from ..runs.lock import run_lock
from ..runs.model_card import model_card
from ..runs.permissions import follow_umask

if TYPE_CHECKING:
    from ..runs.model_card import Form

Target = Literal["checkpoint", "adapter", "peft"]

NOT_PEFT = (
    "--to peft: an expert is not a PEFT adapter. PEFT's methods modify a model's existing linear layers (LoRA adds a "
    "low-rank matrix to one, IA3 scales its output). An expert adds hidden units to the MLP, act(gate(x)) * up(x), "
    "which such a modification can only approximate. Use --to checkpoint, which loads everywhere, or --to adapter, "
    "which is about as small as a LoRA."
)


def export(folder: str | Path, to: Target, output: str | Path, pad_to: int | None = None) -> Path:
    """Write the newest committed model of a run or chain to a folder of its own.

    No form contains texts: the nights' prompts and questions stay in the run.

    Args:
        folder (`str` or `Path`):
            The `output_dir` of a run or chain.
        to (`str`):
            `checkpoint`: the folded model, an ordinary checkpoint. `adapter`: the enabled experts, for
            [`~sleep_trl.memory.load_memory`]. `peft` is refused, because an expert is not a PEFT adapter.
        output (`str` or `Path`):
            Destination folder, which must be missing or empty. It is written atomically.
        pad_to (`int`, *optional*):
            Pad the MLPs of a checkpoint with units of zeros to a width that is divisible by this.

    Returns:
        `Path`: `output`.

    Raises:
        `RunInUse`: if another process exports to `output`.
        `ValueError`: if there is no committed night, no entry is enabled, the form cannot be written, or `output` is
            not empty.
    """
    if pad_to is not None and to != "checkpoint":
        raise ValueError(f"--pad_to {pad_to} is for --to checkpoint: --to {to} has no MLPs to pad. Leave it out.")
    if to == "peft":
        raise ValueError(NOT_PEFT)
    output = Path(output)
    run = FinishedRun.read(newest_committed_night(Path(folder)))
    if not any(run.enabled.values()):
        raise ValueError(f"No entry of {run.folder} is enabled: this is the base model. See `sleep-trl memory list`.")
    target = output.resolve()
    unfinished = target.with_name(f".{target.name}.sleep-trl-export")  # what a killed export has left is written anew
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        shutil.rmtree(unfinished, ignore_errors=True)  # left by an export that was killed after its end
        raise ValueError(f"--output: {output} already exists and is not empty. Give another folder, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished / target.name
    with run_lock(unfinished):
        try:
            if partial.exists():
                shutil.rmtree(partial)
            units = WRITERS[to](run, partial, pad_to)
            write_text(partial / "README.md", card_of(run, to, units))
            partial.replace(target)  # also over an empty folder
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return output


def card_of(run: FinishedRun, form: Form, padding: int = 0) -> str:
    """Return the model card of a finished run, whose MLPs have so many units of zeros."""
    enabled = {index for index, is_enabled in run.enabled.items() if is_enabled}
    variables, revision = chat_variables(run.folder), run.config.model_revision
    return model_card(run.config.model, run.entries, enabled, form, variables, revision, padding)


def write_checkpoint(run: FinishedRun, output: Path, pad_to: int | None = None) -> int:
    """Copy the folded model, padded to a width that is divisible by `pad_to`, and return the units of zeros per MLP.

    Raises:
        `ValueError`: if the run has none.
    """
    model = RunFolder(run.folder).model
    if not (model / "config.json").is_file():
        raise ValueError(
            f"{run.folder} has no model/, because routed experts do not fold into a checkpoint. Use --to adapter, or "
            f"sleep with --memory.routing dense."
        )
    checksums.check_folder(model)
    units, replaced = 0, ["*.safetensors", "*.safetensors.index.json"] if pad_to else []
    shutil.copytree(model, output, ignore=shutil.ignore_patterns(checksums.NAME, *replaced))
    if pad_to:
        from ..memory.padding import write_padded  # imports torch

        units = write_padded(model, output, pad_to)
    for path in output.glob("*.safetensors"):
        follow_umask(path)
    return units


def write_adapter(run: FinishedRun, output: Path, pad_to: int | None = None) -> int:
    """Write the enabled experts only. They are not padded."""
    from safetensors.numpy import load_file, save_file  # experts are float32, and torch takes long to import

    source, target = RunFolder(run.folder).adapter, AdapterFolder(output)
    description = read_json(source.description)
    kept = [expert for expert in description["experts"] if expert["is_enabled"]]
    prefixes = tuple(f"experts.{expert['index']}." for expert in kept)
    checksums.check(source.experts)
    tensors = load_file(source.experts)
    output.mkdir(parents=True)
    save_file({name: t for name, t in tensors.items() if name.startswith(prefixes)}, target.experts)
    follow_umask(target.experts)
    write_json(target.description, description | {"experts": kept})
    return 0


Writer = Callable[[FinishedRun, Path, int | None], int]
WRITERS: dict[str, Writer] = {"checkpoint": write_checkpoint, "adapter": write_adapter}


def check_repository(repository: str) -> None:
    """Check a repository name.

    Raises:
        `ValueError`: if the Hub does not allow it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub: {error} Give NAMESPACE/NAME.") from None


def push(folder: str | Path, repository: str, is_private: bool = True) -> str:
    """Upload a folder to a model repository on the Hugging Face Hub, created if it is missing.

    Args:
        folder (`str` or `Path`):
            A folder written by [`export`].
        repository (`str`):
            `NAMESPACE/NAME`. An existing one keeps its visibility.
        is_private (`bool`, *optional*, defaults to `True`):
            Whether to create it as private, since what a model learned may be private.

    Returns:
        `str`: its URL.

    Raises:
        `RuntimeError`: if the Hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        created = api.create_repo(repository, private=is_private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Export from sleep-trl")
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"{folder} was written, but not pushed to {repository}: {reason}. Log in with `hf auth login`, or set "
            f"HF_TOKEN, and export again to another --output."
        ) from None
    return str(created)

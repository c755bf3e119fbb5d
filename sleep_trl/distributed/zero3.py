"""Weights that are sharded over the processes (DeepSpeed ZeRO-3): which are, and how to gather a few of them.

All functions do nothing for weights that are not sharded, so that callers need not check.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DeepSpeedPlugin
from torch import nn
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)


def expect_no_gpu() -> None:
    """Tell DeepSpeed if there is no GPU: otherwise it warns as soon as something imports it."""
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


# -- parameters ---------------------------------------------------------------------------------------------------


def is_sharded(model: nn.Module) -> bool:
    """Return whether the weights of a model are sharded, so that each process holds only a part of them."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the full shape of a parameter, including its shards on other processes."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def whole_size(parameter: torch.Tensor) -> int:
    """Return the number of values of a parameter, including those on other processes."""
    return whole_shape(parameter).numel()


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], write: bool = False) -> Iterator[None]:
    """Context manager that gathers parameters on every process. All processes have to enter it together.

    Args:
        parameters (`Iterable[nn.Parameter]`):
            A few parameters, such as those of one module; never those of a whole model.
        write (`bool`, *optional*, defaults to `False`):
            Keep what the first process writes to them, and send it to the others.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


def takes_part_in_saving(model: nn.Module) -> bool:
    """Return whether this process is needed to save a model: the first is, and if it is sharded, all are."""
    return is_sharded(model) or PartialState().is_main_process


def writes_files(model: nn.Module) -> bool:
    """Return whether this process writes the files, among those that take part in saving."""
    return not is_sharded(model) or PartialState().is_main_process


# -- models -------------------------------------------------------------------------------------------------------


def check_launch(dreams: bool) -> None:
    """Raise if this launch uses DeepSpeed in a way that cannot work, or FSDP.

    Args:
        dreams (`bool`):
            Whether the run has rounds of dreaming.

    Raises:
        `ValueError`: if the run dreams with sharded weights, DeepSpeed cannot compile its operations for a CPU, or FSDP
            would shard the weights.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "accelerate is configured for FSDP, which sleep-trl does not support: a night reads and changes experts "
            "layer by layer, which DeepSpeed allows. Launch with launch/accelerate/zero3.yaml, or ddp.yaml."
        )
    if dreams and is_sharding():
        raise ValueError(
            "dream.rounds: dreams are evaluated on whole layers, which DeepSpeed ZeRO-3 has sharded. Give "
            "--dream.rounds 0, or launch with launch/accelerate/ddp.yaml."
        )
    if is_deepspeed():
        check_compiler()


def check_compiler() -> None:
    """Raise if DeepSpeed cannot compile its operations: all of them where there is no GPU, some with one.

    Raises:
        `ValueError`: if a tool is missing where there is no GPU, or an interrupted build left its lock file behind.
    """
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # ninja is next to Python
    missing = [name for name in (compiler, "ninja") if shutil.which(name, path=path) is None]
    if missing and not torch.accelerator.is_available():
        raise ValueError(
            f"DeepSpeed compiles its operations for the CPU once, with a C++ compiler and ninja; not found: "
            f"{', '.join(missing)}. Install g++ from the system's packages and `pip install ninja`, or launch with "
            f"launch/accelerate/ddp.yaml."
        )
    builds = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    if lock := find_abandoned_lock(builds):
        raise ValueError(
            f"{lock} was left behind by a build that was killed (no process on this machine has it open), and "
            f"DeepSpeed would wait forever for it to go. Run `rm {lock}`."
        )


def find_abandoned_lock(builds: Path) -> Path | None:
    """Return the lock file of an interrupted build, if there is one.

    torch's builds wait until another one's lock file is gone, which never happens if that one was killed. A build keeps
    its lock open until it removes it, so a lock that no process has open is abandoned, however new it is.

    Args:
        builds (`Path`):
            Folder in which torch builds extensions.
    """
    locks = [path.resolve() for path in builds.rglob("lock") if path.is_file()]
    if not locks:
        return None
    import psutil

    opened: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # ended meanwhile, or another user's
            opened.update(file.path for file in process.open_files())
    return next((lock for lock in locks if str(lock) not in opened and lock.exists()), None)


def is_sharding() -> bool:
    """Return whether this launch shards the weights of the models that it loads."""
    return _launched() is not None


def count_shards() -> int:
    """Return the number of processes over which this launch shards a model."""
    return int(os.environ.get("WORLD_SIZE", 1)) if is_sharding() else 1


def is_deepspeed() -> bool:
    """Return whether this process was launched for DeepSpeed, at any ZeRO stage."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


@cache
def _launched() -> HfDeepSpeedConfig | None:
    """Return the DeepSpeed configuration of this launch, or `None` if it does not shard weights."""
    if not is_deepspeed():
        return None
    plugin = DeepSpeedPlugin()
    if plugin.zero_stage != 3:
        return None
    shard_everything(plugin)
    plugin.set_deepspeed_weakref()
    return plugin.dschf


def shard_everything(plugin: DeepSpeedPlugin) -> None:
    """Shard small weights too. DeepSpeed would gather those that it keeps whole in one buffer, which needs one dtype,
    but experts are float32 and the base may be bfloat16."""
    plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0


@contextmanager
def sharding(dtype: torch.dtype | None) -> Iterator[None]:
    """Context manager that shards the weights of models loaded in it, if this launch shards.

    Args:
        dtype (`torch.dtype`, *optional*):
            Dtype of the weights. `None` does not shard, for a model that every process needs, such as a reward's.
    """
    if (launched := _launched()) is None:
        yield
        return
    config = HfDeepSpeedConfig({**launched.config, "bf16": {"enabled": dtype == torch.bfloat16}})
    if dtype is None:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        del config  # transformers holds only a weak reference
        set_hf_deepspeed_config(launched)


def serve(model: nn.Module) -> None:
    """Prepare a sharded model to run outside a trainer: each module is gathered for its own forward pass only."""
    if not is_sharded(model):
        return
    import deepspeed

    withdraw(model)
    launched = _launched()
    assert launched is not None
    set_hf_deepspeed_config(launched)  # a deleted trainer took its own along, and generate needs one
    config = {name: value for name, value in launched.config.items() if name not in ("optimizer", "scheduler")}
    config["zero_optimization"] = {k: v for k, v in config["zero_optimization"].items() if k != "offload_optimizer"}
    model.__dict__["sleep_engine"] = deepspeed.initialize(model=model, config=config)[0]  # in __dict__, not a submodule


def withdraw(model: nn.Module) -> None:
    """Undo [`serve`], so that a trainer can take the model."""
    if (engine := model.__dict__.pop("sleep_engine", None)) is not None:
        engine.destroy()

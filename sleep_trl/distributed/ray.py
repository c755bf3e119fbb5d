"""One Ray for a run: started here, or a cluster that is there already. Nobody without the run's token may speak to it.

Ray reads its token and whether it may leave this machine when it is imported, so both are set before that. Without a
token, whoever reaches one of its ports runs code as this user.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

# What a launcher says about its processes: a worker that inherits it takes itself for one of them.
LAUNCHER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_USE_AGENT_STORE",  # torch then waits for the launcher's store instead of making one
)
# Despite its name it holds on every system: "0" has every service of a local Ray listen on the loopback address alone.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def connect(address: str | None = None, *, cpus: int | None = None, gpus: int | None = None) -> None:
    """Join a Ray, on all processes of a run alike. A process that is connected already stays where it is.

    Args:
        address (`str`, *optional*):
            Of a cluster that is running, as `host:port`; its token is taken from `RAY_AUTH_TOKEN` or where else Ray
            looks for it. By default the first process starts a Ray of this machine alone, which ends with it, and the
            others join that one.
        cpus (`int`, *optional*):
            Cores that a Ray started here gives away; by default all.
        gpus (`int`, *optional*):
            GPUs likewise.

    Raises:
        `ImportError`: if Ray is not installed.
        `RuntimeError`: if Ray was imported before, without a token.
        `ConnectionError`: if there is no cluster at the address.
    """
    if address is None:
        address = _start_for_all(cpus, gpus)
    if not _is_connected():
        _init(address)


def start(*, cpus: int | None = None, gpus: int | None = None) -> None:
    """Start a Ray of this machine alone, in a process that drives it for all, if it is connected to none. The others
    may join by [`connect`].

    Args:
        cpus (`int`, *optional*):
            Cores that it gives away; by default all.
        gpus (`int`, *optional*):
            GPUs likewise.

    Raises:
        `ImportError`: if Ray is not installed.
        `RuntimeError`: if Ray was imported before, without a token, or the other processes have not got it.
    """
    if _is_connected():
        return
    if PartialState().num_processes > 1 and not _is_prepared():
        raise RuntimeError(
            "The other processes do not know this Ray's token. Call sleep_trl.distributed.ray.prepare() on all."
        )
    prepare()
    _init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False)


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _is_prepared() -> bool:
    return os.environ.get(LOOPBACK) == "0" and "RAY_AUTH_TOKEN" in os.environ


def prepare() -> None:
    """Give all processes of a run the token of a Ray that one of them may start later.

    [`connect`] does so itself. A program calls this first where something else imports Ray before: TRL imports vLLM
    where it is installed, and vLLM imports Ray.

    Raises:
        `RuntimeError`: if Ray was imported before, without a token.
    """
    if _is_prepared():
        return
    if "ray" in sys.modules:
        raise RuntimeError(
            "Ray was imported before it could be given a token. Call sleep_trl.distributed.ray.prepare() before "
            "anything imports ray, trl or vllm, or ray.init() yourself."
        )
    shared = [os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)]
    broadcast_object_list(shared)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": shared[0], LOOPBACK: "0"})


def _start_for_all(cpus: int | None, gpus: int | None) -> str:
    """Start a Ray in the first process, if it has none yet, and return its address in all."""
    if not _is_connected():
        prepare()
    shared = [""]
    if PartialState().is_main_process:
        start(cpus=cpus, gpus=gpus)
        shared[0] = sys.modules["ray"].get_runtime_context().gcs_address
    broadcast_object_list(shared)
    return shared[0]


def _init(address: str, **options: object) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    try:
        import ray
    except ImportError as error:
        raise ImportError("This needs Ray, which is not installed: pip install 'sleep-trl[ray]'.") from error
    with _without(LAUNCHER):
        ray.init(address, logging_level="warning", log_to_driver=False, **options)


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Take variables out of the environment for a while."""
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= held

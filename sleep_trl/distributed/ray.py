"""One Ray for a run: a new local one, or an existing cluster, protected by the run's token.

Ray reads its token, and whether it may listen beyond this machine, at import, so both are set before that. Without a
token, anyone who reaches one of its ports can run code as this user.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

# Set by a launcher for its processes: a Ray worker that inherits them would act as one of those. So would one with
# accelerate's variables, which begin with ACCELERATE.
LAUNCHER = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_USE_AGENT_STORE",  # torch would wait for the launcher's store instead of creating one
)
ACCELERATE = "ACCELERATE_"
# Despite its name it applies to all systems: with "0" all services of a local Ray listen on the loopback address only.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def connect(address: str | None = None, *, cpus: int | None = None, gpus: int | None = None) -> None:
    """Connect all processes of a run to a Ray. A process that is connected already keeps its connection.

    Args:
        address (`str`, *optional*):
            Address of a running cluster, as `host:port`; its token is taken from `RAY_AUTH_TOKEN` or wherever else Ray
            looks for it. By default the first process starts a Ray on this machine, which ends with that process, and
            the others join it.
        cpus (`int`, *optional*):
            Cores that a Ray started here may use; by default all.
        gpus (`int`, *optional*):
            GPUs, likewise.

    Raises:
        `ImportError`: if Ray is not installed.
        `RuntimeError`: if Ray was already imported without a token.
        `ConnectionError`: if there is no cluster at the address.
    """
    if address is None:
        address = _start_for_all(cpus, gpus)
    if not _is_connected():
        _init(address)


def start(*, cpus: int | None = None, gpus: int | None = None) -> None:
    """Start a Ray on this machine, in a process that drives it for all, unless it is already connected. The others may
    join with [`connect`].

    Args:
        cpus (`int`, *optional*):
            Cores that it may use; by default all.
        gpus (`int`, *optional*):
            GPUs, likewise.

    Raises:
        `ImportError`: if Ray is not installed.
        `RuntimeError`: if Ray was already imported without a token, or the other processes lack the token.
    """
    if _is_connected():
        return
    if PartialState().num_processes > 1 and not _is_prepared():
        raise RuntimeError(
            "The other processes lack the token of this Ray. Call sleep_trl.distributed.ray.prepare() on all of them."
        )
    prepare()
    _init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False)


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _is_prepared() -> bool:
    return os.environ.get(LOOPBACK) == "0" and "RAY_AUTH_TOKEN" in os.environ


def prepare() -> None:
    """Give all processes of a run the token of a Ray that one of them may start later.

    [`connect`] does this itself. Call it first if something else imports Ray earlier: TRL imports vLLM if it is
    installed, and vLLM imports Ray.

    Raises:
        `RuntimeError`: if Ray was already imported without a token.
    """
    if _is_prepared():
        return
    if "ray" in sys.modules:
        raise RuntimeError(
            "Ray was imported before its token was set. Call sleep_trl.distributed.ray.prepare() before "
            "anything imports ray, trl or vllm, or ray.init() yourself."
        )
    shared = [os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)]
    broadcast_object_list(shared)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": shared[0], LOOPBACK: "0"})


def _start_for_all(cpus: int | None, gpus: int | None) -> str:
    """Start a Ray in the first process, unless it has one, and return its address on all processes."""
    if not _is_connected():
        prepare()
    shared = [""]
    if PartialState().is_main_process:
        start(cpus=cpus, gpus=gpus)
        shared[0] = sys.modules["ray"].get_runtime_context().gcs_address
    broadcast_object_list(shared)
    return shared[0]


def _init(address: str, **options: object) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to Ray's developers
    try:
        import ray
    except ImportError as error:
        raise ImportError("This needs Ray, which is not installed: pip install 'sleep-trl[ray]'.") from error
    with _without({*LAUNCHER, *(name for name in os.environ if name.startswith(ACCELERATE))}):
        former = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, logging_level="warning", log_to_driver=False, **options)
        finally:
            if callable(former) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, former)  # Ray's only exits


@contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    """Context manager that removes variables from the environment."""
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= held

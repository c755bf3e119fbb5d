"""What this machine has, whatever the run is: devices, engines that can be imported, a network of its own."""

from __future__ import annotations

import os
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from .case import Case
from .child import import_error
from .finding import Finding, fault, mistake, ok, skipped, warning

GIB = 2**30
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")  # by vLLM for text, and often of another build than torch


def find_gpus(case: Case) -> Finding:
    """List the GPUs with their free memory."""
    import torch

    count = torch.cuda.device_count()
    if not count and shutil.which("nvidia-smi"):
        return warning(
            f"there is a driver, but torch {torch.__version__} sees no GPU",
            "Install the torch build for this driver's CUDA, or go on with the CPU.",
        )
    if not count:
        return ok("none: everything runs on the CPU")
    found = [_describe_gpu(index) for index in range(count)]
    if case.launch.processes > count and not case.launch.uses_cpu:
        return fault(
            f"{count} ({'; '.join(found)}) for {case.launch.processes} processes",
            f"Launch with --num_processes {count}.",
        )
    return ok("; ".join(found))


def _describe_gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"


def import_vllm(case: Case) -> Finding:
    """Import vLLM, which TRL does wherever it is installed: if that fails, no night can begin."""
    if find_spec("vllm") is None:
        return skipped("not installed")
    if (reason := import_error("from vllm import LLM")) is None:
        return ok("can be imported")
    remedy = "Install vLLM again in the tested version, or `pip uninstall vllm`: TRL imports it where it is there."
    if any(name in reason for name in NOT_NEEDED):
        remedy = f"`pip uninstall {' '.join(NOT_NEEDED)}`: vLLM writes text without them."
    return fault(f"it is installed, but cannot be imported: {reason}", remedy)


def import_ray(case: Case) -> Finding:
    """Import Ray, if it is wanted."""
    if not case.wants_ray:
        return skipped("nothing of the run needs it")
    if find_spec("ray") is None:
        return skipped("not installed")
    if (reason := import_error("import ray")) is None:
        return ok("can be imported")
    return fault(f"it is installed, but cannot be imported: {reason}", "pip install --force-reinstall ray.")


def use_loopback(case: Case) -> Finding:
    """Connect to this machine itself, as processes, Ray and model servers do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return fault(
            f"127.0.0.1 cannot be used: {error.strerror or error}",
            "Bring the interface up (`ip link set lo up`), and let no firewall close it.",
        )
    return ok("127.0.0.1 answers")


def find_compiler(case: Case) -> Finding:
    """Look for what DeepSpeed compiles with, and for what a build that was killed has left: the next ones wait for it
    for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    from ..distributed.zero3 import check_compiler

    if not case.launch.is_deepspeed:
        return skipped("not launched with DeepSpeed")
    if find_spec("deepspeed") is None:
        return fault("DeepSpeed is not installed", "pip install 'sleep-trl[deepspeed]'.")
    try:
        check_compiler()
    except ValueError as error:
        return mistake(str(error))
    builds = Path(os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root()))
    if lock := next(builds.rglob("lock"), None):
        return fault(
            f"{lock} is there: something is being compiled, or was when it was killed, and DeepSpeed waits for it",
            f"If nothing is at work there: rm {lock}",
        )
    return ok("C++ compiler and ninja are there, or a GPU")

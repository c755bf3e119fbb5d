"""Memory and disk: what there is, against what the plan says the run needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..planning.plan import MIB
from .case import Case
from .finding import Finding, fault, ok, warning

NEARLY = 0.8  # of what is free; the estimate is no bound
ON_DISK = 2  # times what the plan needs: a night is seldom alone on its disk
CGROUP = Path("/sys/fs/cgroup")


def find_memory(case: Case) -> Finding:
    """Compare free memory, of the smallest GPU or of the machine, with the estimate of all that share it."""
    import torch

    config, needed = case.run, case.plan.peak_memory_mib
    if torch.cuda.is_available() and not case.launch.uses_cpu:
        free, total = min(torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count()))
        where, free_mib = "on the GPU", free / MIB
        needed += config.rollout.gpu_memory * total / MIB if case.engine.replica == "vllm" else 0
    else:
        where, free_mib = "in main memory", free_memory() / MIB
        needed *= case.launch.processes
    told = f"about {needed:,.0f} MiB are needed {where}, {free_mib:,.0f} MiB are free"
    remedy = (
        "Give a smaller --seeding.per_device_batch_size or --seeding.max_completion_length, or "
        "--seeding.gradient_checkpointing; end other programs, or take a smaller model."
    )
    if needed > free_mib and not case.launch.has_shards:
        return fault(told, remedy)
    return warning(told, remedy) if needed > NEARLY * free_mib else ok(told)


def free_memory() -> int:
    """Return the bytes of main memory that this process can still have: the machine's, or its container's."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (given := limit.read_text().strip()) != "max":
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(given) - int(used.read_text()) + int(statistics["inactive_file"]))
    return free


def find_disk(case: Case) -> Finding:
    """Compare the room on the disk with what the run writes."""
    folder, needed = case.run.output_dir.absolute(), case.plan.disk_bytes / MIB
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free / MIB
    told = f"about {needed:,.1f} MiB are needed at {case.run.output_dir}, {free:,.0f} MiB are free"
    return ok(told) if free >= ON_DISK * needed else warning(told, "Make room before there are more nights.")

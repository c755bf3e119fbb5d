"""All checks in their order, and how they are made: none stops another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from . import machine, memory, network, proof, run
from .case import Case
from .finding import Finding, fault, mistake, skipped
from .versions import PACKAGES, check_version

Check = Callable[[Case], Finding]

MACHINE: Mapping[str, Check] = {
    **{package: partial(check_version, package) for package in PACKAGES},
    "GPUs": machine.find_gpus,
    "loopback": machine.use_loopback,
    "vLLM": machine.import_vllm,
    "Ray": machine.import_ray,
    "Ray's address": network.join_ray,
    "compiler": machine.find_compiler,
    "launcher's port": network.find_launch_port,
    "serving port": network.find_serve_port,
    "options": run.read_options,
}
RUN: Mapping[str, Check] = {
    "folder": run.write_to_folder,
    "tokenizer": run.load_tokenizer,
    "chat template": run.find_chat_template,
    "engine": run.choose_engine,
    "rewards": run.make_rewards,
    "plan": run.make_plan,
    "teacher's prompts": run.compare_prompts,
    "context": run.fit_memories,
    "memory": memory.find_memory,
    "disk": memory.find_disk,
}


def diagnose(case: Case, prove: bool = True) -> Iterator[Finding]:
    """Make all checks.

    Args:
        case (`Case`):
            What is looked at.
        prove (`bool`, *optional*, defaults to `True`):
            Also let a tiny model be taught with the engine that the run would choose.

    Yields:
        `Finding`: one for each check. A fault that several checks run into is told by the first.
    """
    checks = {**MACHINE, **(RUN if case.config else {})}
    told: dict[str, str] = {}
    for name, check in checks.items():
        yield _told_once(_make(name, check, case), told)
    for finding in proof.prove(case) if prove else ():
        yield _told_once(finding, told)


def _told_once(finding: Finding, told: dict[str, str]) -> Finding:
    if finding.state == "fault" and (first := told.setdefault(finding.found, finding.name)) != finding.name:
        return replace(skipped(f"needs what is at fault at {first!r}"), name=finding.name)
    return finding


def _make(name: str, check: Check, case: Case) -> Finding:
    """Make one check. What it raises is what was looked for: no check may keep the others from being made."""
    try:
        finding = check(case)
    except ValueError as error:
        finding = mistake(str(error))
    except Exception as error:
        finding = fault(
            f"{type(error).__name__}: {error}",
            "Install the versions that were tested (constraints.txt); what then is still there should be reported.",
        )
    return replace(finding, name=name)

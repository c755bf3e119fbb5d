"""Checks whether this machine can do a run, and says what to do where it cannot. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from . import machine, run
from .launcher import Launch
from .report import Case, Finding, State, run_checks, without_repeats

__all__ = ["Case", "Finding", "Launch", "State", "diagnose"]


def diagnose(case: Case, smoke_test: bool = True) -> Iterator[Finding]:
    """Run all checks of the machine and, if there is one, of the run.

    Args:
        case (`Case`):
            What to check.
        smoke_test (`bool`, *optional*, defaults to `True`):
            Whether to train a tiny model with the engine that the run would choose.

    Yields:
        `Finding`: one per check.
    """
    checks = {**machine.CHECKS, "options": run.check_options, **(run.CHECKS if case.config else {})}
    findings = run_checks(checks, case)
    return without_repeats(chain(findings, run.smoke_test(case)) if smoke_test else findings)

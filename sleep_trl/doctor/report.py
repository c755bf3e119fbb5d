"""What checks get (a [`Case`]) and report (a [`Finding`]), and how they run: one fault does not hide another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..config import RunConfig
from .launcher import Launch

if TYPE_CHECKING:
    from ..planning.inputs import RunInputs
    from ..planning.plan import Plan

State = Literal["ok", "warning", "fault", "skipped"]


@dataclass
class Case:
    """What to check. `inputs` and `plan` are derived when a check first asks for them; a mistake in the run raises
    `ValueError`, as in preflight.

    Args:
        config (`RunConfig`, *optional*):
            The run; if not given, only the machine is checked.
        config_error (`str`, *optional*):
            Why the given options could not be parsed.
        launch (`Launch`, *optional*):
            How it will be launched; by default as one process.
        port (`int`, *optional*):
            Port where the model will be served.
        check_rewards (`Callable[[RunInputs], Iterable[str]]`, *optional*):
            Raises `ValueError` for a reward that cannot be created, and returns warnings.
    """

    config: RunConfig | None = None
    config_error: str = ""
    launch: Launch = field(default_factory=Launch)
    port: int | None = None
    check_rewards: Callable[[RunInputs], Iterable[str]] | None = None

    @property
    def run(self) -> RunConfig:
        """The run, for checks that are made only if there is one."""
        assert self.config is not None
        return self.config

    @property
    def needs_ray(self) -> bool:
        """Whether the run needs Ray; true if there is no run, since any run may follow."""
        if self.config is None:
            return True
        return self.config.starts_ray or self.config.rollout.ray_address is not None

    @cached_property
    def inputs(self) -> RunInputs:
        """What follows from the run's configuration without its weights."""
        from ..planning.inputs import RunInputs

        return RunInputs(self.run)

    @cached_property
    def plan(self) -> Plan:
        """The run in numbers, if preflight finds no mistake."""
        from ..planning.preflight import preflight

        return preflight(self.inputs)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        name (`str`):
            Name of the check.
        state (`str`):
            `"fault"` if the run cannot work, `"warning"` if it can but the user should know, `"ok"`, or `"skipped"` if
            the check does not apply.
        found (`str`):
            What was found.
        remedy (`str`, *optional*):
            What to do about it; empty if nothing needs to be done.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(found: str) -> Finding:
    return Finding("", "ok", found)


def warning(found: str, remedy: str) -> Finding:
    return Finding("", "warning", found, remedy)


def fault(found: str, remedy: str) -> Finding:
    return Finding("", "fault", found, remedy)


def skipped(found: str) -> Finding:
    return Finding("", "skipped", found)


def from_error(message: str) -> Finding:
    """Make a fault of the message of a `ValueError` raised by this package, whose last sentence says what to do."""
    found, point, remedy = message.rstrip().rpartition(". ")
    return fault(found + point.strip(), remedy) if point else fault(message, "Correct this option.")


Check = Callable[[Case], Finding]


def run_checks(checks: Mapping[str, Check], case: Case) -> Iterator[Finding]:
    """Run checks in order.

    Args:
        checks (`Mapping[str, Callable[[Case], Finding]]`):
            Checks by name.
        case (`Case`):
            What to check.

    Yields:
        `Finding`: one per check. An exception is a fault: it must not keep the other checks from running.
    """
    for name, check in checks.items():
        try:
            finding = check(case)
        except ValueError as error:
            finding = from_error(str(error))
        except Exception as error:
            finding = fault(
                f"{type(error).__name__}: {error}",
                "Install the tested versions (constraints.txt). If the error stays, please report it.",
            )
        yield replace(finding, name=name)


def without_repeats(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Report a fault that several checks run into only once, at the first of them."""
    first_at: dict[str, str] = {}
    for finding in findings:
        if finding.state == "fault" and (first := first_at.setdefault(finding.found, finding.name)) != finding.name:
            yield replace(skipped(f"blocked by the fault at {first!r}"), name=finding.name)
        else:
            yield finding

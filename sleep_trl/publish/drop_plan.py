"""What will be dropped, enabled or disabled, and whether it can be: decided before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from ..config.memory_source import MemorySource
from ..runs.files import read_json
from ..runs.finished import FinishedRun
from ..runs.folder import RunFolder
from ..runs.ledger import LedgerEntry, expert_owners, now


@dataclass(frozen=True)
class DropPlan:
    """What is dropped, as `dropping.json` has it until that is done.

    Args:
        entries (`tuple[str, ...]`): ids of the entries.
        without (`str`, *optional*): the source whose records are forgotten.
        when (`str`): UTC, ISO 8601.
        has_report (`bool`): whether the run has a report to write again.
    """

    entries: tuple[str, ...]
    without: str | None
    when: str
    has_report: bool


def interrupted_drop(run: FinishedRun) -> DropPlan | None:
    """Return the drop that was interrupted in a run, if any."""
    if not (path := RunFolder(run.folder).dropping).is_file():
        return None
    plan = read_json(path)
    return DropPlan(**plan | {"entries": tuple(plan["entries"])})


def plan_drop(
    run: FinishedRun,
    names: Sequence[str],
    without: str | None = None,
    later: Literal["drop", "keep"] | None = None,
) -> DropPlan:
    """Return what [`~sleep_trl.publish.unlearn.drop`], whose arguments these are, will drop: what an interrupted drop
    has left, or else these entries and those that share an expert with them.

    Raises:
        `ValueError`: if an entry is unknown or already dropped, `later` is needed, or another drop was interrupted.
    """
    if (begun := interrupted_drop(run)) is not None:
        if not set(names) <= set(begun.entries) or without != begun.without:
            raise ValueError(_how_to_finish(run, begun))
        return begun
    if (gone := [entry for entry in map(run.entry, names) if entry.dropped]) and is_settled(run):
        raise ValueError(f"{gone[0].id} was already dropped, on {gone[0].dropped}.")
    requested, names = names, run.sharing_expert_with(names)
    if (dependents := run.dependents_of(names)) and later is None:
        source = MemorySource(forget=tuple(requested))
        raise ValueError(
            f"Entries that depend on {', '.join(names)} in {run.folder}: {', '.join(dependents)}. A night can relearn "
            f"them: sleep-trl night --continue_from {run.folder} --memories {source}. Or choose: --later drop also "
            f"drops them and queues their records for the next night; --later keep keeps them, although they may "
            f"answer worse."
        )
    return DropPlan((*names, *(dependents if later == "drop" else [])), without, now(), has_report(run))


def has_report(run: FinishedRun) -> bool:
    """Return whether a run has a report that can be written again."""
    return RunFolder(run.folder).report.is_file() and find_spec("plotly") is not None


def check_switch(run: FinishedRun, entry: LedgerEntry, is_enabled: bool) -> None:
    """Raise `ValueError` if an entry cannot be enabled or disabled, see [`~sleep_trl.publish.unlearn.set_enabled`]."""
    check_is_whole(run)
    if (adapter := RunFolder(run.folder).dream_adapter).is_dir():
        raise ValueError(f"{adapter} fits only the model with its present experts. Move it away and try again.")
    if entry.dropped is not None:
        raise ValueError(f"{entry.id} was dropped on {entry.dropped}: its expert is gone. Learn its records again.")
    owner = run.owners[entry.id]
    if (run.state(owner) == "enabled") == is_enabled and is_settled(run):
        raise ValueError(f"{owner.id} is already {run.state(owner)}.")


def check_is_whole(run: FinishedRun) -> None:
    """Raise `ValueError` if a drop was interrupted in a run."""
    if (plan := interrupted_drop(run)) is not None:
        raise ValueError(_how_to_finish(run, plan))


def _how_to_finish(run: FinishedRun, plan: DropPlan) -> str:
    what = f"--source {plan.without!r}" if plan.without is not None else plan.entries[0]
    return (
        f"Dropping {', '.join(plan.entries)} from {run.folder} was interrupted. Finish it first: sleep-trl memory drop "
        f"{run.folder} {what}, with --buffer and --yes if they were given."
    )


def is_settled(run: FinishedRun) -> bool:
    """Return whether no earlier change was interrupted: experts and ledger agree, and `model/` is the only model."""
    files = RunFolder(run.folder)
    is_routed = read_json(files.adapter.description)["spec"]["routing"] == "topk"
    has_model = is_routed or files.model.is_dir()
    is_clean = not (files.partial_model.exists() or files.replaced_model.exists())
    return has_model and is_clean and {entry.expert for entry in expert_owners(run.entries)} == set(run.enabled)

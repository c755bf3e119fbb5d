"""A chain of nights: each continues the one before, in a folder of its own.

Which nights are finished is read from the folders, so the same call resumes an interrupted chain, and a call with more
nights extends a finished one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import RunConfig
from ..config.run import AUTO
from ..config.sections import Section
from ..runs.files import read_json
from ..runs.finished import newest_night
from ..runs.folder import NIGHT, RunFolder, night_folder
from ..runs.ledger import read_ledger
from .consolidation import HOW_TO_FREE_EXPERTS, MIN_CAPACITY, missing_blocks, needed_free
from .night_source import night_memories

SECTIONS = {name for name, field in RunConfig.model_fields.items() if isinstance(field.default, Section)}


def nights_of(config: RunConfig) -> list[RunConfig]:
    """Return the nights of a run, first to last: the run itself, or its chain.

    With `resume`, the nights of a chain that were begun are resumed. A resumed night keeps the options that it was
    begun with, apart from those given now: a default that has changed since does not stop it. `continue_from` may be a
    chain's folder, whose newest night is continued.
    """
    config = _continuing_a_night(config)
    if not config.nights:
        return [_with_options_of_its_beginning(config)]
    nights, before = [], config.continue_from
    for number, memories in enumerate(_divided(config) if is_auto(config) else config.nights, start=1):
        folder = night_folder(config.output_dir, number)
        night = {
            "memories": memories,
            "nights": AUTO if is_auto(config) else (),
            "output_dir": folder,
            "continue_from": before,
            "resume": config.resume and RunFolder(folder).is_begun,
        }
        nights.append(_with_options_of_its_beginning(config.model_copy(update=night)))
        before = folder
    return nights


def is_auto(config: RunConfig) -> bool:
    """Whether the nights of a chain are as many as it takes to learn its memories."""
    return config.nights == AUTO


def _divided(config: RunConfig) -> list[str]:
    """Return the memories of each night so far, and once more for the next one, if there is something left for it."""
    count = 0
    while is_finished(night_folder(config.output_dir, count + 1)):
        count += 1
    is_next = count == 0 or leaves_a_rest(RunFolder(night_folder(config.output_dir, count)))
    return [config.memories] * (count + is_next)


def leaves_a_rest(run: RunFolder) -> bool:
    """Whether memories wait for another night because they did not fit this one. If it learned nothing or was rolled
    back, another would end the same way."""
    last = read_ledger(run.ledger)[-1]
    is_learned = bool(last.sources) and not last.rolled_back
    return is_learned and read_json(run.results).get("not_trained", {}).get("queued", 0) > 0


def _continuing_a_night(config: RunConfig) -> RunConfig:
    """Replace a chain's folder in `continue_from` by a night of it: the one that was continued when the run began, or
    the newest."""
    if (chain := config.continue_from) is None:
        return config
    night = newest_night(chain)
    began = RunFolder(night_folder(config.output_dir, 1) if config.nights else config.output_dir)
    if began.is_begun and (then := read_json(began.config)["continue_from"]) and _is_night_of(Path(then), chain):
        night = Path(then)
    return config if night == chain else config.model_copy(update={"continue_from": night})


def _is_night_of(night: Path, chain: Path) -> bool:
    return NIGHT.fullmatch(night.name) is not None and night.resolve().parent == chain.resolve()


def _with_options_of_its_beginning(night: RunConfig) -> RunConfig:
    run = RunFolder(night.output_dir)
    if not (night.resume and run.is_begun):
        return night
    given = night.model_dump(mode="json", exclude_unset=True)
    try:
        begun_with = RunConfig.model_validate(read_json(run.config)).model_dump(mode="json")
    except ValidationError:
        return night  # written by another version; `check_output` reports what differs
    if run.given.is_file():
        then = read_json(run.given)
    else:  # of 0.1, or killed at its very beginning: what is not a default was given
        defaults = RunConfig(model="-", memories="-").model_dump(mode="json")
        then = _not_default(begun_with, defaults)
        then |= {name: _not_default(begun_with[name], defaults[name]) for name in SECTIONS}
    sections = {name: then.get(name, {}) | given.get(name, {}) for name in SECTIONS}
    return RunConfig.model_validate(then | given | sections)


def _not_default(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not defaults: the others still count as not given."""
    return {key: value for key, value in values.items() if value != defaults.get(key)}


def begun(chain: Path) -> list[str]:
    """Return the `memories` of the nights of a chain that were begun, first to last."""
    memories: list[str] = []
    while (run := RunFolder(night_folder(chain, len(memories) + 1))).is_begun:
        memories.append(read_json(run.config)["memories"])
    return memories


def quarantine(night: Path) -> Path:
    """Move a night that cannot be finished out of its chain, with its files, and return the new folder. The next night
    takes its number."""
    taken = [int(number) for folder in quarantined_nights(night.parent) for number in re.findall(r"\d+", folder.name)]
    quarantined = night.parent / f"quarantined-{max(taken, default=0) + 1:03}"
    night.rename(quarantined)
    return quarantined


def quarantined_nights(chain: Path) -> list[Path]:
    """Return the folders of quarantined nights, oldest first; 0.1 named them `aside-*`."""
    return [*sorted(chain.glob("aside-*")), *sorted(chain.glob("quarantined-*"))]


def is_finished(folder: Path) -> bool:
    """Whether a night was finished."""
    return RunFolder(folder).is_finished


def unfinished(nights: list[RunConfig]) -> list[RunConfig]:
    """Return the nights that are not finished, in order.

    Raises:
        `ValueError`: if they do not continue what is there: a finished night had other memories, or follows one that is
            not finished, memories cannot be read, or the memory cannot hold so many nights.
    """
    finished = [night for night in nights if is_finished(night.output_dir)]
    waiting = nights[len(finished) :]
    if finished != nights[: len(finished)]:
        missing = next(night for night in nights if not is_finished(night.output_dir))
        raise ValueError(
            f"output_dir: {finished[-1].output_dir} is finished, but {missing.output_dir}, which it continues, is not. "
            f"Restore that folder from a copy, or start a new chain in another --output_dir."
        )
    for night in finished:
        if (then := read_json(RunFolder(night.output_dir).config)["memories"]) != night.memories:
            raise ValueError(
                f"nights: {night.output_dir} is finished with memories {then}, but now {night.memories} is given. Keep "
                f"finished nights first, in their order, and add new ones after them, or give another --output_dir."
            )
    for night in waiting:
        if night.source.documents is not None:  # what a wake buffer will hold by then is unknown
            night_memories(night)
    if waiting:
        check_capacity(waiting)
    return waiting


def check_capacity(waiting: list[RunConfig]) -> None:
    """Raise if the memory cannot hold the nights to come.

    Each night needs an expert; one that removes entries needs it only while it runs. If experts are consolidated in
    between (`levels`), a free one to begin with is enough.
    """
    from ..memory.storage import read_description  # loads torch, which a waiting daemon does without

    first = waiting[0]
    experts, size = [], first.memory.max_experts
    if first.continue_from is not None and (adapter := RunFolder(first.continue_from).adapter).description.is_file():
        description = read_description(adapter.path)
        experts = description["experts"]
        if "max_experts" not in first.memory.model_fields_set:
            size = description["spec"]["max_experts"]
    missing, free = len(missing_blocks(first.levels, experts)), needed_free(first.levels)
    blocks, used = missing + sum(bool(expert.get("is_block")) for expert in experts), missing + len(experts)
    new = sum(not night.source.forget for night in waiting) + bool(waiting[-1].source.forget)
    if used + new <= size:
        return
    if first.levels.when_full == "stop" and not first.levels.chunks:
        raise ValueError(
            f"nights: the {len(waiting)} to run need {new} experts, but the memory has room for {size} and holds "
            f"{used}. Give --memory.max_experts {used + new} or more. {HOW_TO_FREE_EXPERTS}"
        )
    least = blocks + MIN_CAPACITY - 1 + free
    if size < (needed := max(used + free, least)):
        raise ValueError(
            f"nights: consolidation needs room for {least} experts and {free} free to begin with, but the memory has "
            f"room for {size} and holds {used}. Give --memory.max_experts {needed} or more."
        )

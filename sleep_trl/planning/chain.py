"""A life: nights one after another, each of which continues the one before, in a folder each.

What has been slept is read from the folders, so that the same call goes on where an interrupted one was, and adds
nights to a life that has ended.
"""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..data.documents import read_memories
from ..runs.files import read_json
from .consolidation import HOW_TO_FREE_EXPERTS, MIN_CAPACITY, missing_blocks, needed_free


def night_folder(chain: Path, number: int) -> Path:
    """Return the folder of a night, counted from 1."""
    return chain / f"night-{number:03}"


def nights_of(config: RunConfig) -> list[RunConfig]:
    """Return the nights that a run is made of: itself, or those of its life, first to last.

    A night of a life resumes by itself if the life was begun and `resume` was given.
    """
    if not config.nights:
        return [config]
    nights, before = [], config.continue_from
    for number, memories in enumerate(config.nights, start=1):
        folder = night_folder(config.output_dir, number)
        night = {
            "memories": memories,
            "nights": (),
            "output_dir": folder,
            "continue_from": before,
            "resume": config.resume and (folder / "config.json").is_file(),
        }
        nights.append(config.model_copy(update=night))
        before = folder
    return nights


def begun(chain: Path) -> list[str]:
    """Return what the nights of a life that were begun are about, first to last."""
    memories: list[str] = []
    while (config := night_folder(chain, len(memories) + 1) / "config.json").is_file():
        memories.append(read_json(config)["memories"])
    return memories


def quarantine(night: Path) -> Path:
    """Move a night that cannot be finished out of its life, with what is in it, and return where it lies now. The next
    one takes its number."""
    quarantined = night.parent / f"quarantined-{len(quarantined_nights(night.parent)) + 1:03}"
    night.rename(quarantined)
    return quarantined


def quarantined_nights(chain: Path) -> list[Path]:
    """Return the folders of quarantined nights, oldest first; 0.1 named them `aside-*`."""
    return [*sorted(chain.glob("aside-*")), *sorted(chain.glob("quarantined-*"))]


def is_finished(folder: Path) -> bool:
    """Tell whether a night was slept to its end."""
    return (folder / "results.json").is_file()


def unfinished(nights: list[RunConfig]) -> list[RunConfig]:
    """Return the nights that are still to be slept, in order.

    Raises:
        `ValueError`: if they do not go on from what is there: a finished night was about something else than it is now
            said to be, or follows one that is not finished, memories cannot be read, or there are more nights than
            experts.
    """
    finished = [night for night in nights if is_finished(night.output_dir)]
    waiting = nights[len(finished) :]
    if finished != nights[: len(finished)]:
        missing = next(night for night in nights if not is_finished(night.output_dir))
        raise ValueError(
            f"output_dir: {finished[-1].output_dir} is finished, but {missing.output_dir}, which it continues, is not. "
            f"Restore that folder from a copy, or begin another life in another --output_dir."
        )
    for night in finished:
        if (then := read_json(night.output_dir / "config.json")["memories"]) != night.memories:
            raise ValueError(
                f"nights: {night.output_dir} was about {then}, which is now given as {night.memories}. Nights that are "
                f"finished stay first, in their order; give new ones behind them, or another --output_dir."
            )
    for night in waiting:
        if night.source.documents is not None:  # what a wake buffer will hold by then is not known yet
            read_memories(night.memories)
    if waiting:
        check_capacity(waiting)
    return waiting


def check_capacity(waiting: list[RunConfig]) -> None:
    """Raise if the memory has less room than the nights to come need: each an expert, those that take entries back only
    for as long as they take; or, where experts become one in between (`levels`), a free one to begin with."""
    from ..memory.storage import read_description  # loads torch, which a waiting daemon does without

    first = waiting[0]
    experts, size = [], first.memory.max_experts
    if first.continue_from is not None and (first.continue_from / "adapter" / "memory.json").is_file():
        description = read_description(first.continue_from / "adapter")
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
            f"nights: the {len(waiting)} to sleep need {new} experts, but the memory has room for {size} and holds "
            f"{used}. Give --memory.max_experts {used + new} or more. {HOW_TO_FREE_EXPERTS}"
        )
    least = blocks + MIN_CAPACITY - 1 + free
    if size < (needed := max(used + free, least)):
        raise ValueError(
            f"nights: experts that become one need room for {least} and {free} free to begin with, but the memory has "
            f"room for {size} and holds {used}. Give --memory.max_experts {needed} or more."
        )

"""The place of a night's new expert, in a new memory or in that of the run to continue."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig
from ..memory import MemorySpec
from ..memory.storage import read_description
from ..runs.checksums import mention_unchecked
from ..runs.folder import RunFolder
from ..runs.ledger import read_ledger
from .consolidation import HOW_TO_FREE_EXPERTS, HOW_TO_FREE_MORE, missing_blocks
from .paths import check_continued


@dataclass(frozen=True)
class Capacity:
    """The size of a memory, and how much of it is in use once a night has its expert.

    Args:
        width (`int`): hidden units of an expert.
        experts (`int`): experts in use, the new one included.
        max_experts (`int`): experts that the memory has room for.
        top_k (`int`, *optional*): experts that a router chooses for each token; `None` if every expert takes part.
    """

    width: int
    experts: int
    max_experts: int
    top_k: int | None = None

    @property
    def is_routed(self) -> bool:
        return self.top_k is not None


def find_capacity(config: RunConfig) -> Capacity:
    """Return the place of the new expert.

    Raises:
        `ValueError`: if the run to continue is incomplete, has no room left, or is of another size than asked.
    """
    asked = config.memory
    if config.continue_from is None:
        first = 1 + len(missing_blocks(config.levels))
        return Capacity(asked.width, first, asked.max_experts, asked.top_k if asked.routing == "topk" else None)
    folder = config.continue_from
    spec, experts = _read_memory(RunFolder(folder))
    for name in ("width", "routing", *(["top_k"] if spec.is_routed else [])):
        given, fixed = getattr(asked, name), getattr(spec, name)
        if name in asked.model_fields_set and given != fixed:
            raise ValueError(
                f"memory.{name}: {given} was given, but the memory of {folder} has {name} {fixed}, which later nights "
                f"share. Leave out --memory.{name}."
            )
    used = len(experts) + len(missing_blocks(config.levels, experts))
    size = asked.max_experts if "max_experts" in asked.model_fields_set else spec.max_experts
    if used + 1 > size:
        advice = HOW_TO_FREE_EXPERTS if config.levels.when_full == "stop" else HOW_TO_FREE_MORE
        raise ValueError(
            f"continue_from: the memory of {folder} holds {used} experts and has room for {size}. "
            f"Give --memory.max_experts {used + 1} or more. {advice}"
        )
    if spec.is_routed and spec.top_k > size:
        raise ValueError(
            f"memory.max_experts: {size} is less than the {spec.top_k} experts to which each token goes in the memory "
            f"of {folder}. Give --memory.max_experts {spec.top_k} or more."
        )
    return Capacity(spec.width, used + 1, size, spec.top_k if spec.is_routed else None)


def _read_memory(run: RunFolder) -> tuple[MemorySpec, list[dict[str, object]]]:
    """Return the size of a finished run's memory, and its experts as `memory.json` has them."""
    check_continued(run)
    if run.dropping.is_file():
        raise ValueError(
            f"continue_from: a `sleep-trl memory drop` was interrupted in {run.path}. Finish it with the same command."
        )
    mention_unchecked(run.path)
    description = read_description(run.adapter.path)
    try:
        spec = MemorySpec(**description["spec"])
        read_ledger(run.ledger)
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"continue_from: {run.path} was not written by this version ({reason}). Give another run."
        ) from None
    return spec, description["experts"]

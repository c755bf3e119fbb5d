"""Consolidate levels: experts of one level become one expert of the next, slower one (method 3.3).

The new expert learns by Knowledge Seeding, like the expert of a night's memories: the teacher is the model with the old
experts, the student the model with the new one in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..data.samples import Sample
from ..distributed.progress import echo
from ..memory import load_experts
from ..planning.consolidation import Consolidation
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from ..runs.ledger import owners
from ..runs.phases import Phases
from .accumulate import prospective, update
from .context import NightContext
from .seed import SeedExpert, seed


@dataclass(frozen=True)
class Promotion:
    """A consolidation that was done.

    Args:
        expert (`int`): the new expert.
        holds (`tuple[str, ...]`): ids of the entries that it holds from now on.
    """

    expert: int
    holds: tuple[str, ...]


def consolidate_levels(
    ctx: NightContext, phases: Phases, samples: list[Sample], seed_expert: SeedExpert
) -> list[Promotion]:
    """Do the consolidations and the updates of levels (Eq. 2) that are due in a night, slow to fast.

    If both are due at a level, they are done as one (method 3.3): the teacher has its old block and its experts, the
    student the updated block and the receiver's new expert. The update is applied when the senders are pruned.

    Returns:
        `list[Promotion]`: the consolidations, in order.
    """
    promotions, updates = [], list(ctx.inputs.updates)
    for consolidation in ctx.inputs.consolidations:
        level = max(ctx.memory.records[index].level for index in consolidation.senders)
        while updates and updates[0] > level:
            update(ctx, updates.pop(0))
        echo(f"Consolidating: {consolidation}")
        owned = {name: owner for name, owner in owners(ctx.earlier).items() if owner.expert in consolidation.senders}
        if not (to_learn := _samples_of(ctx, samples, set(owned))):
            echo("Skipping this consolidation: none of these entries' prompts got a usable answer", style="yellow")
            continue
        blocks = prospective(ctx, updates.pop(0)) if level in updates else ()
        expert = ctx.memory.activate(consolidation.receiver, (*consolidation.senders, *blocks[:1]), blocks[1:])
        _consolidate(ctx, phases, consolidation, to_learn, seed_expert)
        ctx.memory.commit()  # prunes the senders, so the next expert may take one of their slots
        promotions.append(Promotion(expert, tuple(sorted({owner.id for owner in owned.values()}))))
    for level in updates:
        update(ctx, level)
    return promotions


def begin_expert(ctx: NightContext, samples: list[Sample]) -> tuple[int, list[Sample]]:
    """Activate the night's own expert.

    In a night that unlearns entries it replaces their expert and relearns what the other entries of it know. The
    experts that it replaces are reset when it is committed, and so are the blocks, since no single entry can be removed
    from a block.

    Returns:
        `tuple[int, list[Sample]]`: the expert, and the samples that it learns.

    Raises:
        `ValueError`: if none of the prompts to relearn got a usable answer.
    """
    if (relearning := ctx.relearning) is None:
        return ctx.memory.activate(), samples
    echo(f"Unlearning {', '.join(relearning.forgotten)}; relearning without it: {', '.join(relearning.holds)}")
    if not (to_learn := _samples_of(ctx, samples, set(relearning.holds))):
        raise ValueError(
            f"No prompt of {', '.join(relearning.holds)} got a usable answer, so they cannot be relearned. Raise "
            f"dataset.max_new_tokens if the answers were truncated."
        )
    return ctx.memory.activate(relearning.level, (*relearning.senders, *ctx.memory.blocks.values())), to_learn


def _consolidate(
    ctx: NightContext, phases: Phases, consolidation: Consolidation, samples: list[Sample], seed_expert: SeedExpert
) -> None:
    """Let the new expert learn from the experts that it replaces."""
    name = f"level_{consolidation.receiver}"
    work = partial(
        seed, ctx, samples, seed_expert, consolidation.steps(ctx.config), name=f"seeded_{name}", is_own_teacher=True
    )
    phases.once(f"seed_{name}", work)
    load_experts(ctx.memory, phases.folder / f"seeded_{name}")


def _samples_of(ctx: NightContext, samples: list[Sample], names: set[str]) -> list[Sample]:
    """Return the samples for a consolidation of these entries: answers to their prompts become part `"memory"`, those
    of other entries and general samples are replayed. Empty if there is nothing to learn.

    No text is written for it: a night answers the prompts of all earlier entries anyway, before any weight changes.
    """
    assert ctx.config.continue_from is not None, "a first night has no experts to consolidate"
    rows = read_jsonl(RunFolder(ctx.config.continue_from).adapter.prompts)
    theirs = {(row["prompt"], row["template"]) for row in rows if row["entry"] in names}
    to_learn = [
        replace(s, part="memory") if s.part == "earlier" and (s.prompt, s.template) in theirs else s
        for s in samples
        if s.part != "memory"
    ]
    return to_learn if any(s.part == "memory" for s in to_learn) else []

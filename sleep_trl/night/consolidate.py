"""The edges of the chain of memories that have no context: experts of one level become one expert of the next (method
3.3). What they say is learnt by Knowledge Seeding, as a night's memories are: the teacher is the model with them, the
student the model without them and with the new expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..data.samples import Sample
from ..distributed.progress import echo
from ..memory import load_experts
from ..planning.consolidation import Consolidation
from ..runs.files import read_jsonl
from ..runs.ledger import owners
from ..runs.phases import Phases
from .accumulate import levels_to_update, prospective, update
from .context import NightContext
from .seed import SeedExpert, seed


@dataclass(frozen=True)
class Promotion:
    """A consolidation that was done.

    Args:
        what (`Consolidation`): which experts became one.
        expert (`int`): the one.
        holds (`tuple[str, ...]`): entries whose experts they were.
    """

    what: Consolidation
    expert: int
    holds: tuple[str, ...]


def consolidate_levels(
    ctx: NightContext, phases: Phases, samples: list[Sample], seed_expert: SeedExpert
) -> list[Promotion]:
    """Do the consolidations and the levels' own updates (Eq. 2) that fall due in a night, slow to fast, each before its
    senders' slots are written to.

    A level of which both fall due does them as one (method 3.3): the teacher has its old block and its experts, the
    student the block as it will be, and the receiver's new expert. The block is applied with the pruning.
    """
    done, updates = [], levels_to_update(ctx)
    for what in ctx.inputs.consolidations:
        level = max(ctx.memory.records[index].level for index in what.senders)
        while updates and updates[0] > level:
            update(ctx, updates.pop(0))
        echo(f"Consolidating: {what}")
        owned = {name: owner for name, owner in owners(ctx.earlier).items() if owner.expert in what.senders}
        if not (lesson := _teacher_rows(ctx, samples, set(owned))):
            echo("[yellow]No prompt of theirs got a usable answer, so they stay as they are[/]")
            continue
        blocks = prospective(ctx, updates.pop(0)) if level in updates else ()
        expert = ctx.memory.activate(what.receiver, (*what.senders, *blocks[:1]), blocks[1:])
        _consolidate(ctx, phases, what, lesson, seed_expert)
        ctx.memory.commit()  # the senders are pruned: the next expert may take a slot of theirs
        done.append(Promotion(what, expert, tuple(sorted({owner.id for owner in owned.values()}))))
    for level in updates:
        update(ctx, level)
    return done


def begin_expert(ctx: NightContext, samples: list[Sample]) -> tuple[int, list[Sample]]:
    """Activate the night's own expert, and return it with what it is to learn: what the teacher wrote about the
    memories, or, in a night that takes entries back, what those that stay know. The experts that it replaces then, and
    the blocks, which nobody can take an entry out of, are reset when it is committed.

    Raises:
        `ValueError`: if the teacher cannot answer any prompt of those.
    """
    if (what := ctx.relearning) is None:
        return ctx.memory.activate(), samples
    echo(f"Taking back {', '.join(what.forgotten)}; learning anew without: {', '.join(what.holds)}")
    if not (lesson := _teacher_rows(ctx, samples, set(what.holds))):
        raise ValueError(f"No prompt of {', '.join(what.holds)} got a usable answer, so they cannot be learnt anew.")
    return ctx.memory.activate(what.level, (*what.senders, *ctx.memory.blocks.values())), lesson


def _consolidate(
    ctx: NightContext, phases: Phases, what: Consolidation, lesson: list[Sample], seed_expert: SeedExpert
) -> None:
    """Let the new expert learn what those that it replaces say."""
    name, steps = f"level_{what.receiver}", ctx.config.levels.steps or len(what.senders) * ctx.config.seeding.steps
    work = partial(seed, ctx, lesson, seed_expert, steps, name=f"seeded_{name}", is_own_teacher=True)
    phases.once(f"seed_{name}", work)
    load_experts(ctx.memory, phases.folder / f"seeded_{name}")


def _teacher_rows(ctx: NightContext, samples: list[Sample], names: set[str]) -> list[Sample]:
    """Return what the teacher has written, laid out for a consolidation of these entries: its answers to their prompts,
    which it gave from its weights, are what is to be learnt; other entries' and general samples are replayed. Empty if
    there is nothing to be learnt.

    No text is written for it: a night answers the prompts of all earlier entries anyway, before anything changes.
    """
    assert ctx.config.continue_from is not None, "a first night has no experts to consolidate"
    rows = read_jsonl(ctx.config.continue_from / "adapter" / "prompts.jsonl")
    theirs = {(row["prompt"], row["template"]) for row in rows if row["entry"] in names}
    lesson = [
        replace(s, part="memory") if s.part == "earlier" and (s.prompt, s.template) in theirs else s
        for s in samples
        if s.part != "memory"
    ]
    return lesson if any(s.part == "memory" for s in lesson) else []

"""Questions that the teacher wrote and nobody trains on: they show what a night taught about memories that come without
questions (ours)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from ..config.counting import counted
from ..data.rows import take_turns
from ..data.samples import Sample
from ..distributed.progress import bar, echo
from ..evaluation.recall import QAItem, ask
from ..runs.phases import Phases
from .context import NightContext

TEMPLATE = "question_answer"
FEWEST = 4  # questions, below which a share says nothing
LEAST_TO_CHOOSE_FROM = 20  # questions, so that no more than a fifth of them is held out


def hold_out(
    samples: Sequence[Sample], memories: Collection[str], share: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Hold some of the teacher's questions about these memories out from training.

    A question is held out only if another sample about its sentence stays, so that the night still learns the sentence,
    if no other sample has its prompt, and if its answer is the teacher's own, since no reply contains a whole sentence.
    There is one at most of each sentence, and documents take turns.

    Args:
        samples (`Sequence[Sample]`):
            The night's samples about memories.
        memories (`Collection[str]`):
            Ids of those whose questions may be held out.
        share (`float`):
            Share of the questions to hold out, in [0, 1]; if there are 20 questions that can be, four at least.
        seed (`int`):
            Seed of the choice.

    Returns:
        `tuple[list[Sample], list[Sample]]`: the samples that stay, in order, and those that are held out; none of them
        if there are fewer than 20 to choose from.
    """
    about = Counter((sample.memory_id, sample.sentence) for sample in samples)
    prompts = Counter(sample.prompt for sample in samples)
    asked = [s for s in _asked(samples, memories) if s.request and s.sentence]
    can_be = [s for s in asked if about[s.memory_id, s.sentence] > 1 and prompts[s.prompt] == 1]
    if not share or len(can_be) < LEAST_TO_CHOOSE_FROM:
        return list(samples), []
    random.Random(seed).shuffle(can_be)
    one_each = list({(s.memory_id, s.sentence): s for s in can_be}.values())
    in_turn = take_turns(one_each, lambda s: (s.memory_id, s.window), lambda s: s.memory_id)
    held_out = in_turn[: max(FEWEST, round(share * len(asked)))]
    chosen = {id(sample) for sample in held_out}
    return [sample for sample in samples if id(sample) not in chosen], held_out


def _asked(samples: Sequence[Sample], memories: Collection[str]) -> list[Sample]:
    return [s for s in samples if s.template == TEMPLATE and not s.is_quoted and s.memory_id in memories]


def hold_out_if_needed(ctx: NightContext, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Hold questions out about the memories that have none of their own, and say so."""
    share, unasked = ctx.config.evaluation.teacher_questions, {m.id for m in ctx.memories if not m.questions}
    if not share or not unasked:
        return samples, []
    kept, held_out = hold_out(samples, unasked, share, ctx.config.seed)
    of = len(_asked(samples, unasked))
    is_all = len(unasked) == len(ctx.memories)
    which = "The memories" if is_all else f"{len(unasked):,} of {counted(len(ctx.memories), 'memory')}"
    if held_out:
        echo(
            f"{which} have no questions, so {len(held_out)} of the {of:,} that the teacher wrote about them are not "
            f"trained on but asked before and after the night (evaluation.teacher_questions)"
        )
    else:
        echo(
            f"{which} have no questions, and too few of the teacher's about them have an answer that passed its checks "
            f"({of:,}) to hold some out, so {'recall' if is_all else 'their recall'} is not measured",
            style="yellow",
        )
    return kept, held_out


def ask_teacher_questions(
    ctx: NightContext, phases: Phases, held_out: Sequence[Sample], when: str
) -> dict[str, dict[str, Any]]:
    """Ask the questions that were held out.

    Args:
        ctx (`NightContext`):
            The night.
        phases (`Phases`):
            Where the result is stored.
        held_out (`Sequence[Sample]`):
            The questions.
        when (`str`):
            `"before"` or `"after"`.

    Returns:
        `dict`: nothing if there are no such questions, otherwise `teacher_questions` with their `count`, the `recall`
        without context, and before the night `with_context`, the recall with it.
    """
    if not held_out:
        return {}
    texts = {(window.memory_id, window.index): window.text for window in ctx.inputs.reading}
    items = [QAItem(s.request, (s.reference,), texts[s.memory_id, s.window]) for s in held_out]

    def score(with_context: bool) -> float | None:
        engine = ctx.teachers[0] if ctx.teachers and with_context else ctx.engine
        where = "with" if with_context else "without"
        with bar(f"Asking the teacher's questions {where} context, {when}", len(items)) as progress:
            return ask(
                items,
                ctx.answering(engine),
                ctx.prompter,
                with_context=with_context,
                metric=ctx.config.evaluation.metric,
                max_new_tokens=ctx.config.evaluation.max_new_tokens,
                progress=progress,
            )

    def work() -> dict[str, Any]:
        answered = {"count": len(items), "recall": score(False)}
        return answered | ({"with_context": score(True)} if when == "before" else {})

    return {"teacher_questions": phases.once(f"teacher_questions_{when}", work)}

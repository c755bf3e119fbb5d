"""One night, phase by phase: evaluate, write the data set, consolidate levels, seed a new expert, evaluate, commit.

The result of each phase is on disk before the next one begins (see `Phases`), so an interrupted night resumes where it
stopped. Trainers are passed in as arguments, since the core must not import them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed

from ..config import RunConfig
from ..data.samples import HELD_OUT, Sample
from ..data.sources import shown
from ..distributed.progress import echo
from ..evaluation.metrics import WEAK_TEACHER
from ..evaluation.recall import agreement
from ..evaluation.retention import breach, describe_chain
from ..memory import Memory, load_experts, save_memory
from ..planning.begun import Changed, changes, record_beginning
from ..planning.former_runs import began_in_0_1
from ..planning.inputs import RunInputs
from ..planning.night_source import begin_night
from ..runs.files import write_json
from ..runs.folder import RunFolder
from ..runs.ledger import read_ledger
from ..runs.phases import Phases
from .accumulate import accumulate
from .commit import commit
from .consolidate import begin_expert, consolidate_levels
from .context import prepare
from .dream import adapt_to_dreams, dream
from .dream_tasks import Dreamer
from .evaluate import evaluate, evaluate_after
from .generate_data import NothingUsable, remove_parts, write_dataset
from .results import asked_about, collect_results, not_read, not_trained
from .seed import SeedExpert, log_history, seed, trained_ids
from .teacher_questions import ask_teacher_questions

__all__ = ["NothingUsable", "run_night"]


def run_night(
    inputs: RunInputs, seed_expert: SeedExpert, dreamer: Dreamer | None = None, memory: Memory | None = None
) -> dict[str, Any]:
    """Run one night, or resume it.

    Args:
        inputs (`RunInputs`):
            Inputs of the run, already checked by `preflight`.
        seed_expert (`SeedExpert`):
            Trains the new expert; see `sleep_trl.trainers.knowledge_seeding.from_config`.
        dreamer (`Dreamer`, *optional*):
            Trains it to dream; see `sleep_trl.trainers.dreaming.from_config`. Required if `dream.rounds` is not 0.
        memory (`Memory`, *optional*):
            That of a model that is loaded already, such as the one that an ordinary run trains, with all experts
            settled. By default `model` is loaded.

    Returns:
        `dict`: the content of `results.json`.

    Raises:
        `ValueError`: for a mistake that shows only once weights are loaded, such as the memory of another base model.
        `Changed`: if what the night began with has changed, so that it has to start over.
        `NothingUsable`: if the teacher wrote nothing usable about the memories.
    """
    set_seed(inputs.config.seed)
    ctx = prepare(inputs, memory)
    config, folder = ctx.config, RunFolder(ctx.config.output_dir)
    if PartialState().is_main_process:  # not before `prepare`: a run that it rejects leaves nothing behind
        begin_night(config, ctx.memories)
        record_beginning(config, ctx.memories)
        if memory is not None:
            save_memory(memory, folder.before)
        if not began_in_0_1(config):  # its config.json says so
            write_json(folder.config, config.model_dump(mode="json"), is_checked=True)
        write_json(folder.given, config.model_dump(mode="json", exclude_unset=True), is_checked=True)
    phases = Phases(folder.phases, partial(_check_unchanged, config))
    if inputs.left_out:
        echo(f"Not read of {config.memories}:\n{shown([one.reason for one in inputs.left_out])}", style="yellow")

    before = phases.once("evaluate_before", lambda: evaluate(ctx, "before"))
    _warn_about_weak_teacher(before["with_context"])
    written = phases.once("write_dataset", lambda: write_dataset(ctx))
    remove_parts(ctx)
    samples = [Sample(**row) for row in written["samples"]]
    held_out = [s.prompt_ids + s.reference_ids for s in samples if s.part == "general"][:HELD_OUT]
    before["agreement"] = phases.once("agreement_before", lambda: agreement(ctx.memory, held_out))

    held_out_questions = [Sample(**row) for row in written.get("teacher_questions", [])]  # 0.1 held none out
    before |= ask_teacher_questions(ctx, phases, held_out_questions, "before")

    accumulate(ctx, phases)
    promotions = consolidate_levels(ctx, phases, samples, seed_expert)
    expert, own_samples = begin_expert(ctx, samples)
    is_own_teacher = ctx.relearning is not None
    seeded = phases.once("seed", lambda: seed(ctx, own_samples, seed_expert, is_own_teacher=is_own_teacher))
    trained = trained_ids(seeded, own_samples)
    load_experts(ctx.memory, folder.seeded)
    dreams, rewarded = None, list[Sample]()
    if dreamer and config.dream.rounds:
        dreams, rewarded = dream(ctx, phases, samples, seed_expert, dreamer)
    ctx.memory.commit()
    if ctx.relearning:
        ctx.begin_blocks()

    after = phases.once("evaluate_after", lambda: evaluate_after(ctx, before.get("left_out", {})))
    after |= ask_teacher_questions(ctx, phases, held_out_questions, "after")
    ctx.engine.close()
    after["agreement"] = phases.once("agreement_after", lambda: agreement(ctx.memory, held_out))
    forgotten = ctx.relearning.forgotten if ctx.relearning else ()
    failure = breach(config.retention, before, after, forgotten)
    learned = [sample for sample in samples if sample.part == "memory" and sample.memory_id in trained]
    work = partial(commit, ctx, expert, promotions, samples, learned, before, after, failure)
    committed = phases.once("commit", work)
    if failure:
        then = f"{', '.join(forgotten)} is still there" if forgotten else "its memories wait for another night"
        echo(f"This night is rolled back, and {then}: {failure}", style="red")
        forgotten = ()
        ctx.restore()
    else:
        if rewarded and config.dream.into == "lora":
            phases.once("adapt_to_dreams", lambda: adapt_to_dreams(ctx, rewarded))
        ctx.memory.train_only(expert)  # so that the parameter counts show what was trained

    chain = describe_chain(read_ledger(folder.ledger))
    results = collect_results(
        config,
        ctx.memory,
        before,
        after,
        forgotten,
        written,
        log_history(seeded),
        dreams,
        committed,
        chain,
        phases.seconds,
    )
    results["dtype"] = {"base": ctx.inputs.dtype.name, "reason": ctx.inputs.dtype.reason}
    results |= asked_about(ctx.memories)
    results |= not_read(inputs.left_out)
    results |= not_trained(ctx.memories, written.get("queued", []), committed.get("not_trained", []))
    if PartialState().is_main_process:
        write_json(folder.results, results, is_checked=True)
    return results


def _check_unchanged(config: RunConfig) -> None:
    """Raise [`Changed`] if what the night began with has changed."""
    if why := changes(config):
        raise Changed(
            f"The night in {config.output_dir} stops, because {why} since it began. Resumed with the same command and "
            f"--resume, it starts over without that."
        )


def _warn_about_weak_teacher(recall: float | None) -> None:
    """Warn if the teacher cannot answer the questions even with the text in its context."""
    if recall is not None and recall < WEAK_TEACHER:
        echo(
            f"With the text in its context, the teacher answers only {recall:.0%} of the questions, and it can "
            f"only teach what it can read. Check that the questions are about the memories, or use a stronger model.",
            style="yellow",
        )

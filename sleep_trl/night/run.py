"""One night: read the memories, ask before, write the teacher's data set, pass on the levels that are due, seed a new
expert, ask after, commit.

Each phase leaves its result on disk before the next begins (see `phases.py`), so that an interrupted night goes on
where it was. The trainer comes in as an argument: the core knows no trainer.
"""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed

from ..data.samples import Sample
from ..distributed.progress import echo
from ..evaluation.recall import agreement
from ..evaluation.retention import breach, describe_chain
from ..memory import load_experts
from ..planning.inputs import RunInputs
from ..planning.night_source import begin_night
from ..runs.files import write_json
from ..runs.ledger import read_ledger
from ..runs.phases import Phases
from .accumulate import accumulate
from .commit import commit
from .consolidate import begin_expert, consolidate_levels
from .context import prepare
from .dream import adapt_to_dreams, dream
from .dream_tasks import Dreamer
from .evaluate import evaluate, evaluate_after
from .generate_data import HELD_OUT, NothingUsable, write_dataset
from .results import collect_results
from .seed import SeedExpert, seed

__all__ = ["NothingUsable", "run_night"]

WEAK_TEACHER = 0.5  # recall with context below which the user is warned


def run_night(inputs: RunInputs, seed_expert: SeedExpert, dreamer: Dreamer | None = None) -> dict[str, Any]:
    """Run one night, or go on with it, and return what `results.json` says.

    Args:
        inputs (`RunInputs`):
            Of the run; checked by `preflight` before.
        seed_expert (`SeedExpert`):
            Trains the new expert, see `sleep_trl.trainers.knowledge_seeding.from_config`.
        dreamer (`Dreamer`, *optional*):
            Dreams with it, see `sleep_trl.trainers.dreaming.from_config`; needed if `config.dream.rounds` is not 0.

    Raises:
        `ValueError`: for a mistake that shows only with the weights, such as a memory of another base model.
        `NothingUsable`: if the teacher wrote nothing that could be learnt.
    """
    config = inputs.config
    set_seed(config.seed)
    folder = config.output_dir
    ctx = prepare(inputs)
    if PartialState().is_main_process:  # only now is the folder the run's: what `prepare` refuses leaves nothing behind
        begin_night(config, ctx.memories)
        write_json(folder / "config.json", config.model_dump(mode="json"))
    phases = Phases(folder / "phases")
    before = phases.once("evaluate_before", lambda: evaluate(ctx, "before"))
    if (taught := before["with_context"]) is not None and taught < WEAK_TEACHER:
        echo(
            f"[yellow]The teacher answers only {taught:.0%} of the questions with the text in its context: it cannot "
            f"teach what it cannot read. Can this model read these memories, and are the questions about them?[/]"
        )
    written = phases.once("write_dataset", lambda: write_dataset(ctx))
    samples = [Sample(**row) for row in written["samples"]]
    held_out = [s.prompt_ids + s.reference_ids for s in samples if s.part == "general"][:HELD_OUT]
    before["agreement"] = phases.once("agreement_before", lambda: agreement(ctx.memory, held_out))
    accumulate(ctx, phases)
    passed = consolidate_levels(ctx, phases, samples, seed_expert)
    expert, lesson = begin_expert(ctx, samples)
    is_own = ctx.relearning is not None
    history = phases.once("seed", lambda: seed(ctx, lesson, seed_expert, is_own_teacher=is_own))
    load_experts(ctx.memory, folder / "phases" / "seeded")
    dreams, kept = None, list[Sample]()
    if dreamer and config.dream.rounds:
        dreams, kept = dream(ctx, phases, samples, seed_expert, dreamer)
    ctx.memory.commit()
    if ctx.relearning:
        ctx.begin_blocks()
    after = phases.once("evaluate_after", lambda: evaluate_after(ctx))
    ctx.engine.close()
    after["agreement"] = phases.once("agreement_after", lambda: agreement(ctx.memory, held_out))
    lost = breach(config.retention, before, after, ctx.relearning.forgotten if ctx.relearning else ())
    committed = phases.once("commit", lambda: commit(ctx, expert, passed, samples, before, after, lost))
    if lost:
        echo(f"[red]This night is rolled back, and what it was about waits for another: {lost}[/]")
        ctx.restore()
    else:
        if kept and config.dream.into == "lora":
            phases.once("adapt_to_dreams", lambda: adapt_to_dreams(ctx, kept))
        ctx.memory.train_only(expert)  # so that the counts say what was trained
    chain = describe_chain(read_ledger(folder / "ledger.jsonl"))
    results = collect_results(
        config, ctx.memory, before, after, written, history, dreams, committed, chain, phases.seconds
    )
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
    return results

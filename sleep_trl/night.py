"""One night: read the memories, ask before, write the teacher's data set, seed a new expert, ask after, commit.

Each phase leaves its result on disk before the next begins (see `phases.py`), so that an interrupted night goes on
where it was. The trainer comes in as an argument: the core knows no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .config import RunConfig
from .dataset import (
    Prompter,
    Sample,
    Template,
    Window,
    Written,
    build_rows,
    split_windows,
    write_about,
    write_earlier,
    write_general,
)
from .dream_adapter import learn_into_adapter
from .dream_phase import Dreamer, as_samples, find_tasks, summarize, write_tasks
from .evaluation.recall import Quiz, agreement, ask, sample_quizzes, window_with_answer
from .evaluation.retention import describe_life
from .files import read_jsonl, write_json, write_jsonl, write_text
from .ledger import LedgerEntry, Source, now, read_ledger, standing, write_ledger
from .memories import MemoryText, read_memories, read_skill
from .memory import Memory, MemorySpec, attach, base_fingerprint, fold, load_experts, load_memory, save_memory
from .model_card import model_card
from .models import context_limit, load_model, load_tokenizer
from .phases import Phases
from .progress import bar, say
from .results import collect_results
from .rollout import Engine
from .rollout.choice import make_engine
from .wake.nights import begin_night, night_memories

WEAK_TEACHER = 0.5  # recall with context below which the user is warned
HELD_OUT = 8  # general samples kept from training, on which agreement with the base is measured


class SeedExpert(Protocol):
    """Trains the expert that is learning. Returns the trainer's log history."""

    def __call__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: list[dict[str, Any]],
        folder: Path,
        engine: Engine,
    ) -> list[dict[str, Any]]: ...


@dataclass
class Bedroom:
    """What a night works with."""

    config: RunConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: Memory
    engine: Engine
    prompter: Prompter
    memories: list[MemoryText]
    windows: list[list[str]]  # of each memory, as the teacher reads it
    contexts: list[list[str]]  # of each memory, as long as the context allows, for questions with context
    earlier: list[LedgerEntry]

    @property
    def adapter(self) -> Path:
        return self.config.output_dir / "adapter"


def run_night(config: RunConfig, seed_expert: SeedExpert, dreamer: Dreamer | None = None) -> dict[str, Any]:
    """Run one night, or go on with it, and return what `results.json` says.

    Args:
        config (`RunConfig`):
            The run; checked by `preflight` before.
        seed_expert (`SeedExpert`):
            Trains the new expert, see `sleep_trl.trainers.knowledge_seeding.from_config`.
        dreamer (`Dreamer`, *optional*):
            Dreams with it, see `sleep_trl.trainers.dreaming.from_config`; needed if `config.dream.rounds` is not 0.

    Raises:
        `ValueError`: for a mistake that shows only with the weights, such as a memory of another base model.
    """
    set_seed(config.seed)
    folder = config.output_dir
    room = prepare(config)
    if PartialState().is_main_process:  # only now is the folder the run's: what `prepare` refuses leaves nothing behind
        begin_night(config, room.memories)
        write_json(folder / "config.json", config.model_dump(mode="json"))
    phases = Phases(folder / "phases")
    before = phases.once("evaluate_before", lambda: evaluate(room, "before"))
    if (taught := before["with_context"]) is not None and taught < WEAK_TEACHER:
        say(
            f"[yellow]The teacher answers only {taught:.0%} of the questions with the text in its context: it cannot "
            f"teach what it cannot read. Can this model read these memories, and are the questions about them?[/]"
        )
    written = phases.once("write_dataset", lambda: write_dataset(room))
    samples = [Sample(**row) for row in written["samples"]]
    held_out = [s.prompt_ids + s.reference_ids for s in samples if s.part == "general"][:HELD_OUT]
    before["agreement"] = phases.once("agreement_before", lambda: agreement(room.memory, held_out))
    expert = room.memory.activate()
    history = phases.once("seed", lambda: seed(room, samples, seed_expert))
    load_experts(room.memory, folder / "phases" / "seeded")
    dreams, kept = None, []
    if dreamer and config.dream.rounds:
        dreams, kept = dream(room, phases, samples, seed_expert, dreamer)
    room.memory.learn(None)
    after = phases.once("evaluate_after", lambda: evaluate_after(room))
    room.engine.close()
    after["agreement"] = phases.once("agreement_after", lambda: agreement(room.memory, held_out))
    committed = phases.once("commit", lambda: commit(room, expert, samples, before, after))
    if kept and config.dream.into == "lora":
        phases.once("adapt_to_dreams", lambda: adapt_to_dreams(room, kept))
    room.memory.learn(expert)  # so that the counts say what was trained
    life = describe_life(read_ledger(folder / "ledger.jsonl"))
    results = collect_results(
        config, room.memory, before, after, written, history, dreams, committed, life, phases.seconds
    )
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
    return results


def prepare(config: RunConfig) -> Bedroom:
    """Load the model, attach its memory (or the memory of the run that is continued), and cut the memories."""
    say(f"Loading {config.model}")
    model, tokenizer = load_model(config), load_tokenizer(config)
    earlier: list[LedgerEntry] = []
    if config.continue_from:
        adapter = config.continue_from / "adapter"
        room = config.memory.max_experts if "max_experts" in config.memory.model_fields_set else None
        memory = load_memory(model, adapter, max_experts=room)
        earlier = read_ledger(config.continue_from / "ledger.jsonl")
    else:
        memory = attach(model, MemorySpec(**config.memory.model_dump(), seed=config.seed))
    prompter = Prompter(tokenizer, config.chat_template_kwargs)
    [memories] = broadcast_object_list([night_memories(config)])  # a wake buffer may grow between two readers
    context = context_limit(model, config)
    largest = window_size(config, prompter, context)
    size = min(config.dataset.window or largest, largest)
    overlap = min(config.dataset.window_overlap, size // 2)
    windows = [split_windows(m.text, prompter.count_tokens, size, overlap) for m in memories]
    if overlap < config.dataset.window_overlap and any(len(pieces) > 1 for pieces in windows):
        say(f"Windows of {size} tokens overlap by {overlap} tokens, not {config.dataset.window_overlap}")
    contexts = [split_windows(m.text, prompter.count_tokens, largest, overlap) for m in memories]
    pieces = sum(map(len, windows))
    say(f"Read {len(memories)} memories in {pieces} windows of at most {size} tokens")
    engine, which = make_engine(config.rollout, memory, tokenizer, config.evaluation.batch_size)
    say(which)
    return Bedroom(config, model, tokenizer, memory, engine, prompter, memories, windows, contexts, earlier)


def window_size(config: RunConfig, prompter: Prompter, context: int) -> int:
    """Return how many tokens of a memory fit the context beside the longest prompt, request and answer.

    Raises:
        `ValueError`: if hardly any do.
    """
    data = config.dataset
    around = 0
    for template in map(Template.load, data.templates):
        prompts = [template.respond] if template.ask is None else [template.respond, template.ask]
        lengths = [len(prompter(p, context="x", request="x", source="memory")[0]) for p in prompts]
        around = max(around, *lengths)
    request = max(data.max_new_tokens, config.evaluation.max_new_tokens)
    answer = max(data.max_new_tokens, config.seeding.max_completion_length)
    room = context - around - request - answer
    if room < 16:
        raise ValueError(
            f"A context of {context} tokens leaves {room} for a memory, beside {around} of prompt, {request} of "
            f"question and {answer} of answer. Lower dataset.max_new_tokens and seeding.max_completion_length, or "
            f"raise max_context."
        )
    return room


def evaluate(room: Bedroom, when: str) -> dict[str, Any]:
    """Ask the memories' questions, those of earlier nights, and the skill probe.

    Returns:
        `dict`: `recall` without context, `with_context` (before only), `base` (before only, and not on a first night:
        recall by the pretrained model), `skill` (`None` without a probe), `earlier` by entry.
    """
    config = room.config

    def score(name: str, quizzes: Sequence[Quiz], with_context: bool) -> float | None:
        chosen = sample_quizzes(quizzes, config.evaluation.max_questions, config.seed)
        if len(chosen) < len(quizzes):
            say(f"Asking {len(chosen)} of {len(quizzes)} questions (evaluation.max_questions)")
        with bar(f"Asking {name}", len(chosen)) as progress:
            return ask(
                chosen,
                room.engine,
                room.prompter,
                with_context=with_context,
                metric=config.evaluation.metric,
                max_new_tokens=config.evaluation.max_new_tokens,
                progress=progress,
            )

    quizzes = [
        Quiz(q.question, q.answers, window_with_answer(contexts, q.answers))
        for memory, contexts in zip(room.memories, room.contexts, strict=True)
        for q in memory.questions
    ]
    skill: list[Quiz] = []
    if config.evaluation.skill:
        skill = [Quiz(q.question, q.answers, m.text) for m in read_skill(config.evaluation.skill) for q in m.questions]
    result: dict[str, Any] = {
        "recall": score(f"without context, {when}", quizzes, False),
        "skill": score(f"fresh passages, {when}", skill, True),
        "earlier": {entry: score(f"{entry}, {when}", asked, False) for entry, asked in earlier_quizzes(room).items()},
    }
    if when == "before":
        result["with_context"] = score("with context", quizzes, True)
        if room.earlier:
            with room.memory.as_base():
                result["base"] = score("without context, the pretrained model", quizzes, False)
    return result


def evaluate_after(room: Bedroom) -> dict[str, Any]:
    """Ask again. If the experts are routed, `load` says how many tokens went to each meanwhile, layer by layer."""
    if not room.memory.spec.is_routed:
        return evaluate(room, "after")
    with room.memory.counting():
        result = evaluate(room, "after")
    loads = torch.tensor(gather_object([room.memory.load()]))  # (processes, layers, max_experts)
    return result | {"load": loads.sum(0).tolist()}


def earlier_quizzes(room: Bedroom) -> dict[str, list[Quiz]]:
    """Return the questions of earlier entries, by entry."""
    quizzes: dict[str, list[Quiz]] = {entry.id: [] for entry in standing(room.earlier)}
    if room.config.continue_from:
        for row in read_jsonl(room.config.continue_from / "adapter" / "questions.jsonl"):
            quizzes[row["entry"]].append(Quiz(row["question"], tuple(row["answers"])))
    return quizzes


def write_dataset(room: Bedroom) -> dict[str, Any]:
    """Let the teacher write about the memories, and let it write the self-replay. No expert is learning yet."""
    config, data, seeds = (
        room.config,
        room.config.dataset,
        iter(range(room.config.seed + 1, room.config.seed + 1000, 2)),
    )
    windows = [
        Window(memory.id, memory.source, text)
        for memory, texts in zip(room.memories, room.windows, strict=True)
        for text in texts
    ]
    written = Written()
    for template in map(Template.load, data.templates):
        with bar(
            f"Writing {template.name}", len(windows) * data.samples_per_window * (2 if template.ask else 1)
        ) as step:
            written += write_about(
                windows,
                template,
                room.engine,
                room.prompter,
                samples_per_window=data.samples_per_window,
                max_new_tokens=data.max_new_tokens,
                ask_temperature=data.ask_temperature,
                temperature=data.temperature,
                seed=next(seeds),
                keep_truncated=data.keep_truncated,
                progress=step,
            )
    if data.general_share > 0 and data.general_samples:
        count = data.general_samples + HELD_OUT
        with bar("Writing general self-replay", count) as step:
            tokens = data.general_max_new_tokens
            texts = [m.text for m in read_memories(str(data.general_texts))] if data.general_texts else []
            written += write_general(room.engine, room.prompter, count, tokens, next(seeds), texts, step)
    if config.continue_from and data.earlier_share > 0:
        prompts = list(read_jsonl(config.continue_from / "adapter" / "prompts.jsonl"))
        with bar("Answering earlier prompts", len(prompts)) as step:
            options = (data.max_new_tokens, data.temperature, next(seeds), data.keep_truncated)
            written += write_earlier(prompts, room.engine, *options, step)
    counts = {part: sum(s.part == part for s in written.samples) for part in ("memory", "general", "earlier")}
    kept = ", ".join(f"{count} {part}" for part, count in counts.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(written.dropped.items())) or "none"
    say(f"The teacher wrote {kept} samples; dropped: {dropped}")
    if counts["earlier"] == 0 and config.continue_from and data.earlier_share > 0:
        say("[yellow]No prompt of an earlier night got a usable answer: what those nights taught is not replayed[/]")
    silent = sorted({memory.id for memory in room.memories} - {s.memory_id for s in written.samples})
    if silent:
        say(f"[yellow]Nothing usable was written about {len(silent)} memories: {', '.join(silent[:5])}[/]")
    return {"counts": counts, "dropped": dict(written.dropped), "samples": [s.as_row() for s in written.samples]}


def seed(
    room: Bedroom, samples: list[Sample], seed_expert: SeedExpert, steps: int | None = None, name: str = "seeded"
) -> list[dict[str, Any]]:
    """Train the new expert on rows made of the samples, and keep its weights under a name."""
    config, folder = room.config, room.config.output_dir
    config = config.model_copy(
        update={"seeding": config.seeding.model_copy(update={"steps": steps or config.seeding.steps})}
    )
    general = [s for s in samples if s.part == "general"]
    rows = build_rows(
        [s for s in samples if s.part != "general"] + general[HELD_OUT:],
        room.tokenizer,
        steps=config.seeding.steps,
        per_step=config.seeding.prompts_per_step,
        shares={
            "dream": config.dream.share,
            "general": config.dataset.general_share,
            "earlier": config.dataset.earlier_share,
        },
        prefix_share=config.dataset.prefix_share,
        max_completion=config.seeding.max_completion_length,
        seed=config.seed,
    )
    checkpoints = folder / ("checkpoints" if name == "seeded" else f"checkpoints-{name}")
    history = seed_expert(config, room.model, room.tokenizer, rows, checkpoints, room.engine)
    if PartialState().is_main_process:
        save_memory(room.memory, folder / "phases" / name)
    return history


def dream(
    room: Bedroom, phases: Phases, samples: list[Sample], seed_expert: SeedExpert, dreamer: Dreamer
) -> tuple[dict[str, Any], list[Sample]]:
    """Dream about the memories just consolidated, and let the new expert learn the dreams that helped in the end.

    Returns:
        `tuple[dict, list[Sample]]`: what became of the dreams, and those that helped.
    """
    config, folder = room.config, room.config.output_dir / "phases"
    rows = phases.once("write_quiz", lambda: write_quiz(room))
    if len(rows) < PartialState().num_processes:
        say("[yellow]There is nothing to ask about these memories, so there are no dreams[/]")
        return summarize([], 0), []

    def try_out() -> list[dict[str, Any]]:
        records = dreamer(config, room.model, room.tokenizer, rows, samples, config.output_dir / "checkpoints-dreamt")
        if PartialState().is_main_process:
            save_memory(room.memory, folder / "dreamt")
        return records

    records = phases.once("dream", try_out)
    dreams = as_samples(config, rows, records, room.prompter)
    if not dreams:
        say("No dream of the last round made its task better: the expert stays as it was seeded")
    if not dreams or config.dream.into == "lora":
        load_experts(room.memory, folder / "seeded")
        return summarize(records, len(dreams)), dreams
    say(f"Learning {len(dreams)} dreams that made their tasks better")
    load_experts(room.memory, folder / "dreamt")
    history = phases.once(
        "learn_dreams", lambda: seed(room, samples + dreams, seed_expert, config.dream.steps, "learnt")
    )
    load_experts(room.memory, folder / "learnt")
    return {**summarize(records, len(dreams)), "history": history}, dreams


def adapt_to_dreams(room: Bedroom, dreams: list[Sample]) -> str | None:
    """Let an adapter over the grown model learn the dreams, and return its folder."""
    if not PartialState().is_main_process:
        return None
    say(f"Learning {len(dreams)} dreams that made their tasks better, into an adapter")
    return str(learn_into_adapter(room.config, room.tokenizer, dreams, room.model.device))


def write_quiz(room: Bedroom) -> list[dict[str, Any]]:
    """Make the tasks of dreaming: a row for each window of the memories, with questions about it."""
    config, prompter = room.config, room.prompter
    windows = room.windows
    if size := config.dream.window:
        windows = [split_windows(m.text, prompter.count_tokens, size, 0) for m in room.memories]
    with room.memory.as_teacher():
        return write_tasks(config, find_tasks(room.memories, windows), room.engine, prompter, config.seed + 1001)


def commit(
    room: Bedroom, expert: int, samples: list[Sample], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Write the experts, what later nights need of this one, the grown model, and the ledger, in this order.

    Routed experts do not fold into a checkpoint: then there is no `model/`, and no `fold_difference`.
    """
    if not PartialState().is_main_process:
        return {}
    config, adapter = room.config, room.adapter
    entry = LedgerEntry(
        id=f"entry-{len(room.earlier) + 1:03}",
        date=now(),
        expert=expert,
        level=room.memory.records[expert].level,
        fingerprint=room.memory.fingerprint(expert),
        base=base_fingerprint(room.memory),
        parents=tuple(e.id for e in standing(room.earlier)),
        sources=tuple(Source(id=m.id, source=m.source, sha256=m.sha256) for m in room.memories),
        metrics={"before": before, "after": after},
    )
    save_memory(room.memory, adapter)
    prompts = {
        (s.prompt, s.template): {
            "entry": entry.id,
            "memory_id": s.memory_id,
            "template": s.template,
            "prompt": s.prompt,
            "prompt_ids": s.prompt_ids,
            "stop": s.stop,
        }
        for s in samples
        if s.part == "memory"
    }
    questions = [
        {"entry": entry.id, "question": q.question, "answers": list(q.answers)}
        for m in room.memories
        for q in m.questions
    ]
    write_jsonl(adapter / "prompts.jsonl", [*_earlier_rows(room, "prompts.jsonl"), *prompts.values()])
    write_jsonl(adapter / "questions.jsonl", [*_earlier_rows(room, "questions.jsonl"), *questions])
    difference = None
    if not room.memory.spec.is_routed:
        probe = torch.tensor([room.prompter.question(Template.load("question_answer"), "x")], device=room.model.device)
        difference = fold(room.memory, config.output_dir / "model", probe)
        room.tokenizer.save_pretrained(config.output_dir / "model")
        card = model_card(config.model, [*room.earlier, entry], room.memory.active, "checkpoint")
        write_text(config.output_dir / "model" / "README.md", card)
    write_ledger(config.output_dir / "ledger.jsonl", [*room.earlier, entry])
    return {"entry": entry.id, "fold_difference": difference}


def _earlier_rows(room: Bedroom, name: str) -> list[dict[str, Any]]:
    return list(read_jsonl(room.config.continue_from / "adapter" / name)) if room.config.continue_from else []

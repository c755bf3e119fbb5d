"""The data set of a night: the teacher's samples about the memories, and self-replay."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..config.counting import counted
from ..data.documents import MemoryText
from ..data.drops import Drops, pack, unpack
from ..data.fit import sentence_size
from ..data.parts import COUNTED_APART
from ..data.quality import find_uncovered, measure_faithfulness
from ..data.samples import HELD_OUT, Sample, WrittenSamples, read_plain, write_earlier, write_general
from ..data.shipped_sets import REPLAYED, find_unreadable, read_shipped, readable_prompts, take
from ..data.templates import Template
from ..data.windows import find_headings
from ..data.writing import Task, Writing, drop_collisions, generations_of, measure_coverage, tasks_of, write_about
from ..distributed.progress import bar, echo
from ..evaluation.metrics import contains
from ..evaluation.perplexity import find_guessing, mean_loss
from ..planning.inputs import SEEDS_APART
from ..planning.plan import describe_fit
from ..planning.relearning import prompts_without
from ..planning.selection import divide
from ..rollout import Engine
from ..runs.files import read_jsonl
from ..runs.folder import RunFolder
from ..runs.phases import Phases
from .context import NightContext
from .earlier_prompts import choose_prompts
from .teacher_questions import hold_out_if_needed

TRIED = 8  # pieces of plain texts on which it is tried whether the model can read them


class NothingUsable(ValueError):
    """The teacher wrote nothing usable about any memory of a night."""


def write_dataset(ctx: NightContext) -> dict[str, Any]:
    """Let the teacher write about the memories, and the model write the self-replay. No expert is active yet.

    What each template and each part of the self-replay gave is on disk before the next begins, so that an interrupted
    phase resumes where it stopped. [`remove_parts`] removes these files once the result is on disk.

    Returns:
        `dict`: `counts` of samples by part (`general` without those `held_out` to measure agreement), `dropped`
        completions by reason and some of their texts (`dropped_texts`), the `coverage` of sentences and those
        `uncovered`, the number of `headings`, the `sources` by which the report names memories, how many samples are
        `faithful`, the `samples` as rows, those held out as `teacher_questions`, and the ids of the memories that do
        not fit the night and stay `queued`.

    Raises:
        `NothingUsable`: if nothing usable was written about any memory.
    """
    config, data = ctx.config, ctx.config.dataset
    seeds = iter(range(config.seed + 1, config.seed + 1000, SEEDS_APART))
    windows = ctx.inputs.reading
    queued = [memory.id for memory in ctx.inputs.fit.queued]
    if queued:
        echo(describe_fit(len(ctx.memories), len(queued), ctx.inputs.fit.limit), style="yellow")
    parts = Phases(_parts_of(ctx))
    written = _about_memories(ctx, parts, seeds) if windows else WrittenSamples()
    written = drop_collisions(written, ctx.inputs.titles)
    coverage = measure_coverage(windows, written.samples)
    faithful, uncovered = measure_faithfulness(windows, written.samples), find_uncovered(windows, written.samples)
    written.samples, teacher_questions = hold_out_if_needed(ctx, written.samples)
    written += _general(ctx, parts, seeds)
    written += _earlier(ctx, parts, seeds, list(written.samples))
    counts = {part: sum(s.part == part for s in written.samples) for part in ("memory", "general", "earlier")}
    counts["held_out"] = min(counts["general"], HELD_OUT)
    counts["general"] -= counts["held_out"]
    kept = ", ".join(f"{count} {COUNTED_APART.get(part, part)}" for part, count in counts.items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(written.dropped.items())) or "none"
    echo(f"Samples: {kept}; dropped: {dropped}")
    if coverage["covered"]:  # no sample is about a sentence if no template asks about them
        echo(f"Sentences with a usable sample: {coverage['covered']:,} of {coverage['sentences']:,}")
    if headings := sum(len(find_headings(memory.text)) for memory in ctx.memories):
        echo(f"Headings, which are read but not asked about: {headings:,}")
    if quoted := sum(sample.is_quoted for sample in written.samples):
        echo(f"Questions whose answer failed its check, answered by the sentence they are about: {quoted:,}")
    if counts["earlier"] == 0 and config.continue_from and data.earlier_share > 0:
        echo("No prompt of an earlier night got a usable answer, so earlier nights are not replayed", style="yellow")
    if data.general_samples and counts["held_out"] and not counts["general"]:
        echo("All usable general samples are held out to measure agreement, so none are replayed", style="yellow")
    if windows and not counts["memory"]:
        raise NothingUsable(
            "The teacher wrote nothing usable about the memories. See the counts of dropped samples above: raise "
            "dataset.max_new_tokens if they were truncated, dataset.samples_per_window if there were few."
        )
    if unused := sorted({memory.id for memory in ctx.memories} - {s.memory_id for s in written.samples}):
        about = f"{counted(len(unused), 'memory')}: {', '.join(unused[:5])}"
        echo(f"Nothing usable was written about {about}", style="yellow")
    samples = [sample.as_row() for sample in written.samples]
    return {
        "counts": counts,
        "dropped": dict(written.dropped),
        "dropped_texts": pack(written.dropped.examples),
        "coverage": coverage,
        "headings": headings,
        "uncovered": uncovered,
        "sources": _name_sources(ctx.memories),
        "faithful": faithful,
        "quoted": quoted,
        "samples": samples,
        "teacher_questions": [sample.as_row() for sample in teacher_questions],
        "queued": queued,
    }


def _name_sources(memories: Sequence[MemoryText]) -> dict[str, str]:
    """Return the source of each memory that no other shares, if it says more than the id."""
    shared = Counter(memory.source for memory in memories)
    return {m.id: m.source for m in memories if shared[m.source] == 1 and m.source not in ("", m.id)}


def remove_parts(ctx: NightContext) -> None:
    """Remove what [`write_dataset`] needed to resume."""
    if PartialState().is_main_process:
        shutil.rmtree(_parts_of(ctx), ignore_errors=True)


def _parts_of(ctx: NightContext) -> Path:
    return RunFolder(ctx.config.output_dir).phases / "write_dataset"


def _once(parts: Phases, name: str, write: Callable[[], WrittenSamples]) -> WrittenSamples:
    """Write a part of the data set, or read it if it is on disk."""

    def work() -> dict[str, Any]:
        written = write()
        rows, dropped = [sample.as_row() for sample in written.samples], written.dropped
        return {"samples": rows, "dropped": dict(dropped), "dropped_texts": pack(dropped.examples)}

    done = parts.once(name, work)
    dropped = Drops(done["dropped"], unpack(done.get("dropped_texts", {})))
    return WrittenSamples([Sample(**row) for row in done["samples"]], dropped)


def _about_memories(ctx: NightContext, parts: Phases, seeds: Iterator[int]) -> WrittenSamples:
    """Let the teachers write about each window; teachers share the samples of a window."""
    data, windows, written = ctx.config.dataset, ctx.inputs.reading, WrittenSamples()
    tries = data.tries_per_sample
    models: Sequence[Engine] = ctx.teachers or [ctx.engine]
    writers = [ctx.answering(model) for model in models]
    agree = agree_by_words if data.check_answers else None
    for number, template in enumerate(map(Template.load, data.templates)):
        counts = ctx.inputs.sample_counts[number]
        by_window = (
            tasks_of(w, count, template, data.cues_per_sentence) for w, count in zip(windows, counts, strict=True)
        )
        tasks = deal_out(by_window, len(writers))
        with bar(f"Writing {template.name}", sum(map(len, tasks)) * generations_of(template, agree, tries)) as progress:
            for place, (writer, own) in enumerate(zip(writers, tasks, strict=True)):
                write = partial(
                    write_about,
                    own,
                    template,
                    writer,
                    ctx.prompter,
                    Writing(
                        max_new_tokens=data.max_new_tokens,
                        ask_temperature=data.ask_temperature,
                        temperature=data.temperature,
                        top_p=data.top_p,
                        keep_truncated=data.keep_truncated,
                        seed=next(seeds),
                        sentence_tokens=sentence_size(ctx.inputs.context),
                    ),
                    agree=agree,
                    student=ctx.answering(ctx.engine),
                    tries=tries,
                    progress=progress,
                )
                if own:
                    written += _once(parts, f"template-{number}-teacher-{place}", write)
    return written


def deal_out(by_window: Iterable[Sequence[Task]], writers: int) -> list[list[Task]]:
    """Divide the tasks of each window among writers, as evenly as possible, and return those of each writer."""
    tasks: list[list[Task]] = [[] for _ in range(writers)]
    for turn, of_window in enumerate(by_window):
        left = iter(of_window)
        for own, share in zip(tasks, divide(len(of_window), writers, turn), strict=True):
            own += islice(left, share)
    return tasks


def agree_by_words(answer: str, other: str) -> bool:
    """Whether one of two answers contains the other."""
    return contains(answer, other) or contains(other, answer)


def _general(ctx: NightContext, parts: Phases, seeds: Iterator[int]) -> WrittenSamples:
    """Let the pretrained model write general samples, and read plain texts; it also teaches them."""
    data = ctx.config.dataset
    if not (data.general_share > 0 and data.general_samples):
        return WrittenSamples()
    tokens, seed = data.general_max_new_tokens, next(seeds)
    assert seed == ctx.inputs.general_seed, "the plan knows which texts are taken"
    plain = _plain(ctx, seed)
    count = HELD_OUT + data.general_samples - len(plain)
    spare = 2 * HELD_OUT  # so that a text is not both held out and trained on, even if some samples are dropped
    texts = take(_general_texts(ctx, seed), count, once=spare)

    def write() -> WrittenSamples:
        with bar("Writing general self-replay", count) as progress, ctx.memory.as_base():
            return write_general(ctx.answering(ctx.engine), ctx.prompter, count, tokens, seed, texts, progress)

    return _once(parts, "general", write) + WrittenSamples(plain)


def _plain(ctx: NightContext, seed: int) -> list[Sample]:
    """Return pieces of texts that are read as they are: the user's, or the shipped ones if the model can read them."""
    data, tokenizer, given = ctx.config.dataset, ctx.tokenizer, ctx.inputs.plain
    if not (count := round(data.plain_share * data.general_samples)):
        return []
    texts = given or read_shipped("prose")[REPLAYED]
    pieces = read_plain(tokenizer, [memory.text for memory in texts], count, data.general_max_new_tokens, seed)
    reason = (
        None if given else find_unreadable(tokenizer, texts, "prose", "dataset.plain_texts") or _guesses(ctx, pieces)
    )
    if reason:
        echo(f"No plain texts are read for self-replay: {reason}", style="yellow")
        return []
    whose = "given" if given else "shipped"
    echo(f"For self-replay the model also reads {len(pieces)} pieces of {whose} texts")
    return pieces


def _guesses(ctx: NightContext, pieces: Sequence[Sample]) -> str | None:
    """Return a reason not to replay shipped texts if the pretrained model predicts them worse than by guessing."""
    with ctx.memory.as_base():
        loss = mean_loss(ctx.model, [piece.prompt_ids + piece.reference_ids for piece in pieces[:TRIED]])
    return find_guessing(loss, ctx.inputs.vocabulary, "the shipped prose", "dataset.plain_texts")


def _general_texts(ctx: NightContext, seed: int) -> list[str]:
    """Return the texts that general samples begin with: the user's, or the shipped ones that the model can read."""
    if given := [memory.text for memory in ctx.inputs.general]:
        return given
    room = ctx.inputs.context - ctx.config.dataset.general_max_new_tokens
    texts, left_out = readable_prompts(ctx.prompter, room, seed)
    reasons = "; ".join(f"{number} left out: {reason}" for reason, number in sorted(left_out.items()))
    if texts:
        how = "answers" if ctx.prompter.has_chat else "continues"
        echo(f"For self-replay the model {how} shipped prompts: {len(texts)} to choose from ({reasons or 'all'})")
    else:
        echo(
            f"The model can read none of the shipped prompts ({reasons}), so general self-replay starts from "
            f"nothing and protects little. Give texts that the model knows (dataset.general_texts)",
            style="yellow",
        )
    return texts


def _earlier(ctx: NightContext, parts: Phases, seeds: Iterator[int], samples: list[Sample]) -> WrittenSamples:
    """Let the model answer prompts of earlier nights, if they are replayed or consolidated."""
    config, data = ctx.config, ctx.config.dataset
    is_needed = data.earlier_share > 0 or ctx.inputs.consolidations or ctx.relearning
    if not (config.continue_from and is_needed):
        return WrittenSamples()
    forgotten = ctx.relearning.forgotten if ctx.relearning else ()
    prompts = prompts_without(read_jsonl(RunFolder(config.continue_from).adapter.prompts), forgotten)
    seed = next(seeds)
    prompts = choose_prompts(ctx.inputs, prompts, samples, seed)

    def write() -> WrittenSamples:
        with bar("Answering earlier prompts", len(prompts)) as progress:
            options = (data.max_new_tokens, data.temperature, seed, data.keep_truncated)
            return write_earlier(prompts, ctx.answering(ctx.engine), *options, progress)

    return _once(parts, "earlier", write)

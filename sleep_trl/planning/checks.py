"""The checks of preflight. Each takes a run's inputs, and raises `ValueError` for what would stop the run."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec

import torch
from transformers import SchedulerType

from ..config import SeedingConfig
from ..config.model_name import MAIN
from ..data.documents import MemoryText
from ..data.templates import Template
from ..distributed.zero3 import check_launch, count_shards
from ..dreams.measure import HELDOUT
from ..models.inspection import build_without_weights, read_header, read_tokenizer
from ..models.loading import context_limit
from ..runs.finished import give_base
from ..runs.folder import RunFolder
from .consolidation import check_blocks
from .inputs import RunInputs
from .output_dir import check_output

logger = logging.getLogger(__name__)

FAR_BELOW = 20  # times lower than the default learning rate (ours)

# -- machine and options -------------------------------------------------------------------------------------------


def check_processes(inputs: RunInputs) -> None:
    """Raise for a launch with DeepSpeed that cannot work, or one with FSDP."""
    check_launch(dreams=inputs.config.dream.rounds > 0)


def check_output_dir(inputs: RunInputs) -> None:
    """Raise unless `output_dir` is free or can be resumed. Only in the first process: later ones would see what it has
    begun."""
    if int(os.environ.get("RANK", 0)) == 0:
        check_output(inputs.config)


def check_learning_rate(inputs: RunInputs) -> None:
    """Warn of a learning rate with which a new expert would learn next to nothing."""
    rate, default = inputs.config.seeding.learning_rate, SeedingConfig().learning_rate
    if rate < default / FAR_BELOW:
        logger.warning(
            f"seeding.learning_rate: {rate:g} is far below {default:g}, the default for a new expert, which may learn "
            f"little. Rates for whole models, as in a GRPOConfig, are too low: give --seeding.learning_rate "
            f"{default:g}."
        )


def check_learning_rate_schedule(inputs: RunInputs) -> None:
    """Raise if the installed version of transformers has no such schedule."""
    name, schedules = inputs.config.seeding.lr_scheduler_type, [str(schedule.value) for schedule in SchedulerType]
    if name not in schedules:
        raise ValueError(
            f"seeding.lr_scheduler_type: {name!r} is not a schedule of transformers. Choose one of "
            f"{', '.join(schedules)}."
        )


def check_report(inputs: RunInputs) -> None:
    """Raise if a report is asked for by name and cannot be drawn. By default a night without plotly writes none."""
    is_asked = inputs.config.report and "report" in inputs.config.model_fields_set
    if is_asked and find_spec("plotly") is None:
        raise ValueError("report: plotly is not installed. Run `pip install 'sleep-trl[report]'`, or give --no-report.")


def check_dtype(inputs: RunInputs) -> None:
    """Raise if the GPU does not have the dtype."""
    if inputs.config.dtype == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("dtype: this GPU has no bfloat16. Give --dtype float32.")


def check_templates(inputs: RunInputs) -> None:
    """Raise if a template of the data set cannot be loaded."""
    for name in inputs.config.dataset.templates:
        Template.load(name)


# -- model and memory ----------------------------------------------------------------------------------------------


def check_width(inputs: RunInputs) -> None:
    """Raise if an expert is as wide as the model."""
    smallest = min(min(host.hidden_size, host.intermediate_size) for host in inputs.hosts)
    if (width := inputs.capacity.width) >= smallest:
        raise ValueError(
            f"memory.width: {width} is not low-rank for {inputs.config.model!r}, whose hidden size is {smallest}. Give "
            f"a --memory.width below it (the paper's is 64)."
        )


def check_max_context(inputs: RunInputs) -> None:
    """Raise if more context is asked for than the model has."""
    asked, limit = inputs.config.max_context, context_limit(inputs.model_config)
    if asked is not None and asked > limit:
        raise ValueError(
            f"max_context: {asked} tokens are more than the {limit} that {inputs.config.model!r} can see. Give "
            f"--max_context {limit} or less, or leave it out."
        )


def check_earlier_experts(inputs: RunInputs) -> None:
    """Raise if the experts of the run to continue do not fit the model."""
    if inputs.config.continue_from is None or not inputs.experts:  # all earlier ones may have been dropped
        return
    run = RunFolder(inputs.config.continue_from)
    path = run.adapter.experts
    shapes = read_header(path)
    for host in inputs.hosts:
        name, expected = f"{host.name}.up", (inputs.capacity.width, host.hidden_size)
        found = {shape for key, shape in shapes.items() if key.endswith(f".{name}")}
        if found != {expected}:
            shown = ", ".join(map(str, found)) or "missing"
            raise ValueError(
                f"continue_from: {path} belongs to another model than {inputs.config.model!r}: {name} is {shown}, "
                f"expected {expected}. {give_base(run)}"
            )


def check_teachers(inputs: RunInputs) -> None:
    """Raise if a separate teacher is not a causal language model, or has another tokenizer than the student."""
    config, ours = inputs.config, inputs.tokenizer.get_vocab()
    for name, teacher in zip(config.teacher_model, inputs.teacher_configs, strict=True):
        build_without_weights(name, teacher, config.attn_implementation)
        vocabulary = int(teacher.get_text_config().vocab_size)
        other = config.model_copy(update={"model": name, "model_revision": MAIN})
        theirs = read_tokenizer(other, vocabulary).get_vocab()
        if differing := sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)):
            raise ValueError(
                f"teacher_model: {name!r} has another tokenizer than {config.model!r}: {len(differing):,} of "
                f"{len({*ours, *theirs}):,} tokens differ, such as {differing[0]!r}. A teacher's distribution is "
                f"compared with the student's token by token. Give a teacher of the same family, or leave it out."
            )


def check_consolidations(inputs: RunInputs) -> None:
    """Raise if entries cannot be removed as asked, or levels cannot have the blocks they should have."""
    if inputs.relearning is not None and inputs.config.dream.rounds:
        raise ValueError("dream.rounds: a night that removes entries has no memories to dream about. Leave it out.")
    capacity = inputs.capacity
    needed = capacity.experts + bool(inputs.consolidations)
    check_blocks(inputs.config.levels, needed, capacity.max_experts, capacity.is_routed, count_shards() > 1)


def check_nights(inputs: RunInputs) -> None:
    """Raise if the memory has not room for the nights that `nights auto` takes."""
    config, capacity = inputs.config, inputs.capacity
    if not config.nights or config.levels.when_full != "stop" or config.levels.chunks:
        return
    needed = capacity.experts + (inputs.fit.nights_after if inputs.fit.queued else 0)
    if needed > capacity.max_experts:
        about = "about " if inputs.fit.is_estimated else ""
        raise ValueError(
            f"nights auto: {len(inputs.available):,} memories take {about}{needed:,} nights of {config.seeding.steps} "
            f"steps, but the memory has room for {capacity.max_experts} experts. Raise --seeding.steps, give "
            f"--memory.max_experts {needed} or more, or let --levels.when_full merge them."
        )


# -- texts ---------------------------------------------------------------------------------------------------------


def check_lengths(inputs: RunInputs) -> None:
    """Raise if what is to be generated is longer than the context."""
    config, context = inputs.config, inputs.context
    for name, tokens in {
        "dataset.max_new_tokens": config.dataset.max_new_tokens,
        "dataset.general_max_new_tokens": config.dataset.general_max_new_tokens,
        "seeding.max_completion_length": config.seeding.max_completion_length,
        "evaluation.max_new_tokens": config.evaluation.max_new_tokens,
    }.items():
        if tokens >= context:
            raise ValueError(
                f"{name}: {tokens} tokens do not fit the context of {context} tokens together with a prompt. Lower "
                f"--{name}."
            )


def check_texts(inputs: RunInputs) -> None:
    """Raise if a passage or a general text is longer than what the model can see at once."""
    _check_length("evaluation.skill", inputs.skill, inputs, inputs.largest_window)
    limit = inputs.context - inputs.config.dataset.general_max_new_tokens
    _check_length("dataset.general_texts", inputs.general, inputs, limit)


def _check_length(option: str, texts: list[MemoryText], inputs: RunInputs, limit: int) -> None:
    for text, tokens in zip(texts, inputs.prompter.count_all([text.text for text in texts]), strict=True):
        if tokens > limit:
            raise ValueError(
                f"{option}: row {text.id!r} has {tokens} tokens; at most {limit} fit the context along with question "
                f"and answer. Shorten it or remove it."
            )


def check_dream(inputs: RunInputs) -> None:
    """Raise for what would stop the dreaming of a night."""
    dream = inputs.config.dream
    if not dream.rounds:
        return
    template = Template.load(dream.template)
    if template.ask is not None:
        raise ValueError(
            f"dream.template: {dream.template!r} first asks for a request, but a dream is written in one go. Choose "
            f"notes, implications, questions, paraphrase, or a .j2 file without an .ask.j2 file next to it."
        )
    around = len(inputs.prompter(template.respond, context="x", source="memory")[0])
    size = dream.window or inputs.window
    if size + around + dream.max_new_tokens > inputs.context:
        raise ValueError(
            f"dream: a window of {size} tokens, {around} of prompt and a dream of {dream.max_new_tokens} do not fit "
            f"the context of {inputs.context} tokens. Lower --dream.window or --dream.max_new_tokens."
        )
    if dream.workers and find_spec("ray") is None:
        raise ValueError("dream.workers: Ray is not installed: pip install 'sleep-trl[ray]'.")
    if dream.measure == "questions" and not any(memory.questions for memory in inputs.memories):
        raise ValueError("dream.measure: the memories come with no questions. Give them some, or use measure quiz.")
    if dream.measure == "heldout_loss":
        held_out = [memory.columns.get(HELDOUT) for memory in inputs.memories]
        if not any(held_out) or not all(isinstance(text, str | None) for text in held_out):
            raise ValueError(
                "dream.measure: heldout_loss is the loss on a text that the dreamer does not see, and "
                f"{'a memory has something else' if any(held_out) else 'no memory has one'} under the key {HELDOUT}. "
                "Give the rows of the memories that key, or use measure quiz."
            )
    if dream.random_expert and not inputs.capacity.is_routed:
        raise ValueError(
            f"dream.random_expert: the memory of {inputs.config.continue_from} has routing dense, so every expert "
            f"takes part already. Leave it out, or start a memory with --memory.routing topk."
        )

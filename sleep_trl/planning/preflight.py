"""Preflight: everything that can be wrong with a run and can be told before its weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import jinja2
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, SchedulerType

from ..config import RunConfig, SeedingConfig
from ..data.documents import MemoryText, read_memories, read_skill
from ..data.fit import window_size
from ..data.prompts import Prompter
from ..data.templates import Template
from ..data.windows import split_all
from ..distributed.zero3 import check_launch, count_shards
from ..memory import ExpertRecord, MemorySpec
from ..memory.hosts import Host, find_hosts
from ..memory.storage import read_description
from ..models.inspection import build_without_weights, read_config, read_header, read_tokenizer
from ..models.loading import choose_dtype, context_limit
from ..rollout.choice import choose
from ..runs.ledger import read_ledger
from .consolidation import (
    HOW_TO_FREE_EXPERTS,
    HOW_TO_FREE_MORE,
    Consolidation,
    check_blocks,
    due_consolidations,
    missing_blocks,
)
from .dreaming import check_dream
from .night_source import night_memories
from .output_dir import check_disk, check_output
from .plan import Plan, Shape, estimate_disk, estimate_memory, render
from .relearning import Relearning, plan_relearning

__all__ = ["Plan", "preflight", "render"]

NOT_WITH_EXPERTS = {
    "use_vllm": "would sample from a vLLM that does not know the expert",
    "beta": "would hold the model to a reference without the experts of earlier nights; what holds it is the "
    "divergence to the teacher",
    "load_best_model_at_end": "needs an evaluation during training, which a night has not",
}
SET_BY_THE_RUN = {
    "output_dir": "output_dir",
    "seed": "seed",
    "max_steps": "seeding.steps",
    "num_train_epochs": "seeding.steps",
    "per_device_train_batch_size": "seeding.per_device_batch_size",
    "gradient_accumulation_steps": "seeding.prompts_per_step",
    "generation_batch_size": "seeding.prompts_per_step",
    "steps_per_generation": "seeding.prompts_per_step",
    "reward_weights": "rewards",
    "expert_width": "memory.width",
    "chat_template_kwargs": "chat_template_kwargs",
    "bf16": "dtype",
    "fp16": "dtype",
    "shuffle_dataset": "seed",
    "resume_from_checkpoint": "resume",
}
"""Arguments of TRL that may not stand in `seeding.extra`, and the option to use in their place."""


@dataclass(frozen=True)
class Capacity:
    """The place of the new expert: its width, how many there are with it, how many there can be, and how many take
    part in a token (`None` for all)."""

    width: int
    experts: int
    max_experts: int
    top_k: int | None = None


def preflight(config: RunConfig, check_rewards: Callable[[RunConfig], object] | None = None) -> Plan:
    """Check a run without loading a weight, and work out what it will be like. Writes nothing.

    Args:
        config (`RunConfig`):
            The run.
        check_rewards (`Callable[[RunConfig], object]`, *optional*):
            Raises `ValueError` for a reward that cannot be made, see `sleep_trl.rewards.check`. Without it rewards are
            not checked.

    Returns:
        `Plan`: the run in numbers.

    Raises:
        `ValueError`: at the first thing that would stop the run, with what to do about it.
    """
    check_launch(dreams=config.dream.rounds > 0)
    if int(os.environ.get("RANK", 0)) == 0:  # the others would see what the first has begun
        check_output(config)
    check_options(config)
    memories = night_memories(config)
    skill = read_skill(config.evaluation.skill) if config.evaluation.skill else []
    general = read_memories(str(config.dataset.general_texts)) if config.dataset.general_texts else []
    for name in config.dataset.templates:
        Template.load(name)
    capacity = find_capacity(config)
    model_config = read_config(config.model)
    model = build_without_weights(config.model, model_config)
    hosts = find_hosts(model)
    check_fit(config, capacity, model, hosts)
    choose(config.rollout, model_config, hosts, is_routed=capacity.top_k is not None)
    vocabulary = int(model_config.get_text_config().vocab_size)
    tokenizer = read_tokenizer(config, vocabulary)
    contexts = [context_limit(model, config), *(check_teacher(config, n, tokenizer) for n in config.teacher_model)]
    context = min(contexts)
    check_lengths(config, context)
    prompter = Prompter(tokenizer, config.chat_template_kwargs)
    largest = find_window(config, prompter, context)
    check_texts("evaluation.skill", skill, prompter, largest)
    check_texts("dataset.general_texts", general, prompter, context - config.dataset.general_max_new_tokens)
    window = config.dataset.window or largest
    if config.dream.rounds:
        check_dream(config, prompter, context, window, sum(len(memory.questions) for memory in memories))
        check_random_expert(config, capacity)
    if check_rewards:
        check_rewards(config)
    dtype = choose_dtype(config.dtype)
    shape = Shape.of(
        architecture=type(model).__name__,
        hosts=hosts,
        vocabulary=vocabulary,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes_per_weight=dtype.itemsize,
        is_routed=capacity.top_k is not None,
    )
    texts = [memory.text for memory in memories]
    windows = sum(map(len, split_all(texts, prompter.count_tokens, window, config.dataset.window_overlap)))
    tokens = sum(map(prompter.count_tokens, texts))
    due = find_consolidations(config, capacity, tokens)
    needed = capacity.experts + any(isinstance(what, Consolidation) for what in due)
    check_blocks(config.levels, needed, capacity.max_experts, capacity.top_k is not None, count_shards() > 1)
    adapter_bytes, disk_bytes = estimate_disk(shape, capacity.width, capacity.experts)
    check_disk(config.output_dir, disk_bytes)
    check_extra(config.seeding.extra)
    rows = config.seeding.steps * config.seeding.prompts_per_step
    return Plan(
        model=config.model,
        architecture=shape.architecture,
        dtype=str(dtype).removeprefix("torch."),
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        context=context,
        base_parameters=shape.parameters,
        added_parameters=shape.expert_parameters(capacity.width),
        width=capacity.width,
        experts=capacity.experts,
        max_experts=capacity.max_experts,
        top_k=capacity.top_k,
        consolidations=tuple(map(str, due)),
        output_dir=str(config.output_dir),
        memories=len(memories),
        memory_tokens=tokens,
        questions=sum(len(memory.questions) for memory in memories),
        window=window,
        windows=windows,
        samples=windows * len(config.dataset.templates) * config.dataset.samples_per_window,
        rows=rows,
        steps=config.seeding.steps,
        rollouts=rows * config.seeding.num_generations,
        peak_memory_mib=estimate_memory(shape, config, capacity.width, capacity.max_experts, context, count_shards()),
        adapter_bytes=adapter_bytes,
        disk_bytes=disk_bytes,
    )


# -- what the options say --------------------------------------------------------------------------


def check_options(config: RunConfig) -> None:
    """Raise for options that are wrong for this machine or this version of transformers."""
    seeding = config.seeding
    schedules = [str(schedule.value) for schedule in SchedulerType]
    if seeding.lr_scheduler_type not in schedules:
        raise ValueError(
            f"seeding.lr_scheduler_type: {seeding.lr_scheduler_type!r} is no schedule of "
            f"transformers. Choose one of {', '.join(schedules)}."
        )
    if config.report and find_spec("plotly") is None:
        raise ValueError("report: plotly is not installed. Run `pip install 'sleep-trl[report]'`, or give --no-report.")
    has_gpu = torch.cuda.is_available()
    if config.dtype == "bfloat16" and has_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError("dtype: this GPU has no bfloat16. Give --dtype float32.")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    rollouts = seeding.prompts_per_step * seeding.num_generations
    per_device = seeding.per_device_batch_size or max(1, rollouts // processes)
    if rollouts % (per_device * processes):
        raise ValueError(
            f"seeding: the {rollouts} rollouts of a step (prompts_per_step x num_generations) "
            f"cannot be shared out over {processes} processes in batches of {per_device}. Change "
            f"seeding.prompts_per_step or seeding.per_device_batch_size."
        )


def check_lengths(config: RunConfig, context: int) -> None:
    """Raise if something that is to be written is longer than the context, in tokens."""
    for name, tokens in {
        "dataset.max_new_tokens": config.dataset.max_new_tokens,
        "dataset.general_max_new_tokens": config.dataset.general_max_new_tokens,
        "seeding.max_completion_length": config.seeding.max_completion_length,
        "evaluation.max_new_tokens": config.evaluation.max_new_tokens,
    }.items():
        if tokens >= context:
            raise ValueError(
                f"{name}: {tokens} tokens do not fit the context of {context} tokens together with "
                f"a prompt. Lower --{name}."
            )


def find_window(config: RunConfig, prompter: Prompter, context: int) -> int:
    """Return the most tokens of a memory that the teacher can see at once.

    Raises:
        `ValueError`: if `dataset.window` is more than fits, or hardly anything fits.
    """
    try:
        window = window_size(config, prompter, context)
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(
            f"A prompt cannot be made from dataset.templates or the model's chat template: {error}. "
            f"Check the templates and --chat_template_kwargs."
        ) from None
    if config.dataset.window is not None and config.dataset.window > window:
        raise ValueError(
            f"dataset.window: {config.dataset.window} tokens of a memory do not fit a context of "
            f"{context} tokens beside prompt and answer; at most {window} do. Lower --dataset.window."
        )
    return window


def check_texts(option: str, texts: list[MemoryText], prompter: Prompter, window: int) -> None:
    """Raise if a text is longer than what the model can see at once."""
    for passage in texts:
        if (tokens := prompter.count_tokens(passage.text)) > window:
            raise ValueError(
                f"{option}: row {passage.id!r} has {tokens} tokens; at most {window} fit the "
                f"context beside question and answer. Shorten it or remove it."
            )


def check_extra(extra: Mapping[str, Any]) -> None:
    """Raise if `seeding.extra` holds what GRPOConfig does not know or what the run sets itself."""
    if not extra:
        return
    from trl import GRPOConfig  # the slowest import of all

    known = {field.name for field in fields(GRPOConfig)}
    for key in extra:
        own = f"seeding.{key}" if key in SeedingConfig.model_fields else SET_BY_THE_RUN.get(key)
        if own:
            raise ValueError(f"seeding.extra: {key!r} is set by the run itself. Take it out and use --{own}.")
        if key in NOT_WITH_EXPERTS and extra[key]:
            raise ValueError(f"seeding.extra: {key!r} {NOT_WITH_EXPERTS[key]}. Take it out.")
        if key not in known:
            raise ValueError(
                f"seeding.extra: {key!r} is no argument of TRL's GRPOConfig. Correct the name or take it out."
            )


# -- memory and model ------------------------------------------------------------------------------


def find_capacity(config: RunConfig) -> Capacity:
    """Return the place of the new expert, in a new memory or in that of the run to continue.

    Raises:
        `ValueError`: if that run is incomplete, has no room left, or is of another size than asked.
    """
    asked = config.memory
    if config.continue_from is None:
        first = 1 + len(missing_blocks(config.levels))
        return Capacity(asked.width, first, asked.max_experts, asked.top_k if asked.routing == "topk" else None)
    folder = config.continue_from
    needed = (
        "adapter/memory.json",
        "adapter/experts.safetensors",
        "adapter/prompts.jsonl",
        "adapter/questions.jsonl",
        "ledger.jsonl",
    )
    if missing := [name for name in needed if not (folder / name).is_file()]:
        found = "lacks " + ", ".join(missing) if folder.is_dir() else "does not exist"
        raise ValueError(f"continue_from: {folder} {found}. Give the output_dir of a run that has finished.")
    description = read_description(folder / "adapter")
    try:
        spec = MemorySpec(**description["spec"])
        read_ledger(folder / "ledger.jsonl")
    except (TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"continue_from: {folder} is no run of this version ({reason}). Give another run.") from None
    used = len(description["experts"]) + len(missing_blocks(config.levels, description["experts"]))
    shared = ("width", "routing", *(["top_k"] if spec.is_routed else []))
    for name in shared:
        given, fixed = getattr(asked, name), getattr(spec, name)
        if name in asked.model_fields_set and given != fixed:
            raise ValueError(
                f"memory.{name}: {given} was given, but the memory of {folder} has {name} "
                f"{fixed}, which later nights share. Leave out --memory.{name}."
            )
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


def find_consolidations(config: RunConfig, capacity: Capacity, tokens: int) -> list[Consolidation | Relearning]:
    """Return which experts the night makes one of, before it learns its own memories, of so many tokens, or in their
    place.

    Raises:
        `ValueError`: if the night takes entries back and cannot.
    """
    names = config.source.forget
    if (folder := config.continue_from) is None:
        if names:
            raise ValueError(f"memories: {config.memories} takes entries of a run back. Name it by --continue_from.")
        return []
    rows, ledger = read_description(folder / "adapter")["experts"], read_ledger(folder / "ledger.jsonl")
    records = {expert.index: expert for expert in (ExpertRecord(**row) for row in rows)}
    if names:
        if config.dream.rounds:
            raise ValueError("dream.rounds: a night that takes entries back has no memories to dream of. Leave it out.")
        return [plan_relearning(names, ledger, records)]
    size = capacity.max_experts - len(missing_blocks(config.levels, rows))
    return [*due_consolidations(config.levels, ledger, records, size, tokens)]


def check_random_expert(config: RunConfig, capacity: Capacity) -> None:
    """Raise if dreams are to be sampled with a further expert where every expert takes part already."""
    if config.dream.random_expert and capacity.top_k is None:
        raise ValueError(
            f"dream.random_expert: the memory of {config.continue_from} has routing dense, so every expert takes part "
            f"already and there is no further one. Leave it out, or begin a memory with --memory.routing topk."
        )


def check_teacher(config: RunConfig, name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the tokens of context that a separate teacher reads.

    Raises:
        `ValueError`: if it is no causal language model, or has another tokenizer than the student.
    """
    teacher = read_config(name)
    given = config.model_copy(update={"model": name})
    theirs = read_tokenizer(given, int(teacher.get_text_config().vocab_size))
    ours, other = tokenizer.get_vocab(), theirs.get_vocab()
    if differing := sorted(token for token in {*ours, *other} if ours.get(token) != other.get(token)):
        raise ValueError(
            f"teacher_model: the tokenizer of {name!r} is not that of {config.model!r}: {len(differing):,} of "
            f"{len({*ours, *other}):,} tokens differ, such as {differing[0]!r}. A teacher's distribution is compared "
            f"with the student's token by token. Give a teacher of the same family, or leave it out."
        )
    return context_limit(build_without_weights(name, teacher), config)


def check_fit(config: RunConfig, capacity: Capacity, model: PreTrainedModel, hosts: list[Host]) -> None:
    """Raise if experts or context are larger than the model, or an earlier expert is another's."""
    smallest = min(min(host.hidden_size, host.intermediate_size) for host in hosts)
    if capacity.width >= smallest:
        raise ValueError(
            f"memory.width: {capacity.width} is not low-rank for {config.model!r}, whose hidden size is "
            f"{smallest}. Give a --memory.width below it (the paper's is 64)."
        )
    limit = context_limit(model, config.model_copy(update={"max_context": None}))
    if config.max_context is not None and config.max_context > limit:
        raise ValueError(
            f"max_context: {config.max_context} tokens are more than the {limit} that "
            f"{config.model!r} can see. Give --max_context {limit} or less, or leave it out."
        )
    if config.continue_from is None or not read_description(config.continue_from / "adapter")["experts"]:
        return  # all earlier ones may have been dropped
    path = config.continue_from / "adapter" / "experts.safetensors"
    shapes = read_header(path)
    for host in hosts:
        name, expected = f"{host.name}.up", (capacity.width, host.hidden_size)
        found = {shape for key, shape in shapes.items() if key.endswith(f".{name}")}
        if found != {expected}:
            shown = ", ".join(map(str, found)) or "missing"
            raise ValueError(
                f"continue_from: {path} belongs to another model than {config.model!r}: {name} is "
                f"{shown}, expected {expected}. Give that run's --model."
            )

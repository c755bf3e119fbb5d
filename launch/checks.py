"""What preflight checks by the parts above it: the trainer's real arguments, and the rewards on made-up rows."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sleep_trl.config import RunConfig
    from sleep_trl.config.reward import RewardSpec
    from sleep_trl.planning.inputs import RunInputs

MADE_UP_QUESTION = "What does the text say?"


def check_trainer(inputs: RunInputs) -> list[str]:
    """Raise `ValueError` for rewards or trainer arguments with which the night would stop later, and return what should
    be known before it. Loads no weights."""
    check_arguments(inputs)
    warnings = check_rewards(inputs)
    check_measure(inputs)
    return warnings


def check_arguments(inputs: RunInputs) -> None:
    """Raise `ValueError` unless the arguments in `seeding.extra` and the schedule make a trainer's configuration, whose
    optimizer, schedule and trackers can be created."""
    config = inputs.config
    if not config.seeding.extra and "lr_scheduler_type" not in config.seeding.model_fields_set:
        return  # the rest was checked option by option, and TRL takes seconds to import
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations import get_reporting_integration_callbacks

    from sleep_trl.runs.folder import RunFolder
    from sleep_trl.trainers.knowledge_seeding.from_config import seeding_arguments

    steps = inputs.expected_steps
    seeding = config.seeding.model_copy(update={"steps": steps})
    folder = RunFolder(config.output_dir).checkpoints
    try:
        arguments = seeding_arguments(config.model_copy(update={"seeding": seeding}), folder)
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
        extra: Any = arguments.lr_scheduler_kwargs or {}
        get_scheduler(arguments.lr_scheduler_type, optimizer, config.seeding.warmup_steps, steps, extra)
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (ValueError, TypeError, RuntimeError, ImportError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400].rstrip(".")
        given = ", ".join(["lr_scheduler_type", *config.seeding.extra])
        raise ValueError(
            f"seeding: the trainer cannot be configured: {reason}. Correct what was given ({given}), or "
            f"install what it needs."
        ) from None


def check_rewards(inputs: RunInputs) -> list[str]:
    """Raise `ValueError` for a reward that cannot be created, or that fails on two made-up rows, and return a sentence
    for each that gave them no value. Loads no weights: rewards with a model are not tried."""
    from sleep_trl.data import rows
    from sleep_trl.night import dream_tasks
    from sleep_trl.rewards import check

    config, warnings = inputs.config, list[str]()

    def memories() -> tuple[str, ...]:
        return inputs.columns.names

    for reward in config.rewards:
        check(reward, rows.COLUMNS, memories, gamma=config.seeding.gamma, z0=config.seeding.z0)
        if inputs.memories and not try_reward(reward, inputs):
            warnings.append(
                f"Reward {reward.name!r} returned None for two made-up rows about a memory: it does not apply to them. "
                f"If it applies to no completion of the night, it has no effect. Check when it returns None."
            )
    for reward in config.dream.rewards if config.dream.rounds else ():
        check(reward, dream_tasks.COLUMNS, memories)
    return warnings


def check_reward_names(config: RunConfig) -> None:
    """Raise `ValueError` for names of rewards that are not registered. Imports no torch."""
    from sleep_trl.rewards import REWARDS

    for reward in (*config.rewards, *(config.dream.rewards if config.dream.rounds else ())):
        if reward.name.isidentifier():
            REWARDS.check_name(reward.name)


def check_measure(inputs: RunInputs) -> None:
    """Raise `ValueError` if the measure of dreams is a function that cannot be imported or called, or its judge's model
    cannot be read. Loads no weights."""
    from sleep_trl.config.reward import names_a_function
    from sleep_trl.rewards import make_judge
    from sleep_trl.rewards.judges import check_judge
    from sleep_trl.rewards.registry import import_function

    dream = inputs.config.dream
    if not dream.rounds:
        return
    if dream.judge is not None:
        check_judge(make_judge(dream.judge.model_dump()))
    if names_a_function(dream.measure):
        try:
            inspect.signature(import_function(dream.measure)).bind("task", "ask")
        except TypeError as error:
            raise ValueError(
                f"dream.measure: {dream.measure} cannot be called with a task and a function that asks the model "
                f"({error}). Write def f(task, ask) -> list[float]; ask(prompts) returns the replies."
            ) from None


def try_reward(reward: RewardSpec, inputs: RunInputs) -> bool:
    """Call a reward with two rows about a memory, one answered rightly.

    Returns:
        `bool`: whether one of them got a value. Also true if this is not known, since the reward loads a model, or has
        failed and abstained, which is logged.

    Raises:
        `ValueError`: if it fails or returns something else than rewards.
    """
    from transformers import TrainerState

    from sleep_trl.rewards import RewardError, resolve
    from sleep_trl.rewards.guard import unwrap

    guarded = resolve(reward, gamma=inputs.config.seeding.gamma, z0=inputs.config.seeding.z0)
    if hasattr(unwrap(guarded.func), "load"):
        return True
    columns = made_up_rows(inputs)
    completions = [columns["reference"][0], "Nothing."]
    batch = {
        "prompts": columns.pop("prompt"),
        "completions": completions,
        "completion_ids": [inputs.prompter.ids(text) for text in completions],
        "trainer_state": TrainerState(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
        **columns,
    }
    try:
        scores: Any = guarded(**batch)
        if inspect.isawaitable(scores):
            scores = asyncio.run(_result(scores))
    except RewardError as error:
        raise ValueError(
            f"rewards: tried on two made-up rows about a memory: {error} Correct the reward, or let it abstain "
            f"(on_error)."
        ) from None
    return guarded.has_failed or any(score is not None for score in scores)


async def _result(scores: Any) -> Any:
    return await scores


def made_up_rows(inputs: RunInputs) -> dict[str, list[Any]]:
    """Return the columns of two rows about a memory, as a night would make them."""
    from sleep_trl.data.columns import add_columns
    from sleep_trl.data.rows import MARGIN
    from sleep_trl.data.templates import Template

    window = inputs.extent.reading[0]
    template = Template.load(inputs.config.dataset.templates[0])
    variables = {"request": MADE_UP_QUESTION, "source": window.source, "sentence": None}
    ids, prompt, stop = inputs.prompter(template.respond, **variables)
    reference = window.sentences[0] if window.sentences else inputs.prompter.begin(window.text, inputs.lengths.sample)
    row: dict[str, Any] = {
        "prompt": prompt,
        "prompt_ids": ids,
        "teacher_prompt_ids": inputs.prompter(template.respond, context=window.text, **variables)[0],
        "reference": reference,
        "reference_ids": inputs.prompter.ids(reference),
        "prefix_text": "",
        "part": "memory",
        "memory_id": window.memory_id,
        "template": template.name,
        "stop": list(stop),
    }
    row["max_completion_length"] = len(row["reference_ids"]) + MARGIN
    rows = [dict(row), dict(row)]
    add_columns(rows, inputs.memories, inputs.columns.names)
    return {name: [each[name] for each in rows] for name in rows[0]}

"""The run, without its weights: each check is a step of preflight, or something that preflight takes for granted."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..config import RolloutConfig
from ..config.counting import counted
from ..data.sources import SHOWN
from .launcher import ChildFailed, run_python
from .machine import check_disk, check_memory
from .report import Case, Check, Finding, fault, from_error, ok, skipped, warning

UNREADABLE = 0.5  # share of unknown tokens from which a memory says nothing
THINKS = re.compile(r"(<(?:think|thinking|thought|reasoning)>|\[THINK\])\s*$")  # at the end of a prompt
CHAT_NAME = re.compile(r"(?i)(?:^|[-_./])(?:chat|instruct|it)(?:$|[-_./])")  # how chat models are usually named


def check_options(case: Case) -> Finding:
    """Report whether there is a run to check."""
    if case.config_error:
        return from_error(case.config_error)
    return skipped("no run given: --config FILE") if case.config is None else ok("valid")


def check_output_dir(case: Case) -> Finding:
    """Check that the run may use its folder and can write there."""
    from ..planning.output_dir import check_output

    check_output(case.run)
    folder = case.run.output_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ok(f"{case.run.output_dir} is writable")
    except OSError as error:
        return fault(f"output_dir: cannot write to {existing}: {error.strerror}", "Give another --output_dir.")


def check_tokenizer(case: Case) -> Finding:
    """Load the tokenizer."""
    return ok(f"{type(case.inputs.tokenizer).__name__} with {len(case.inputs.tokenizer):,} tokens")


def check_chat_template(case: Case) -> Finding:
    """Look for a chat template if the model's name or the options suggest one."""
    if (tokenizer := case.inputs.tokenizer).chat_template is not None:
        start = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}],
            add_generation_prompt=True,
            tokenize=False,
            **case.run.chat_template_kwargs,
        )
        if thought := THINKS.search(str(start)):
            return fault(
                f"with chat_template_kwargs {json.dumps(case.run.chat_template_kwargs)}, the chat template begins "
                f"every answer with {thought[1]}: the teacher would write down its thoughts, and the night learn them",
                "Give the --chat_template_kwargs that turns thinking off, a template without it, or another model.",
            )
        return ok("prompts are user messages")
    has_kwargs = "chat_template_kwargs" in case.run.model_fields_set and bool(case.run.chat_template_kwargs)
    if has_kwargs or CHAT_NAME.search(case.run.model):
        reason = "chat_template_kwargs is set" if has_kwargs else "the name is that of a chat model"
        return fault(
            f"{reason}, but the tokenizer of {case.run.model!r} has no chat template: prompts would be plain text",
            "Copy chat_template.jinja (or chat_template in tokenizer_config.json) from the original model, or use the "
            "base model and leave out chat_template_kwargs.",
        )
    return ok("none: prompts are plain text")


def check_memories(case: Case) -> Finding:
    """Read the memories, and report what of them a night would leave out."""
    found = f"{len(case.inputs.available):,} to learn"
    faults = [one.reason for one in case.inputs.left_out if one.is_fault]
    ignored = "".join(f"; {one.reason}" for one in case.inputs.left_out if not one.is_fault)
    if not faults:
        return ok(found + ignored)
    listed = "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else "")
    return warning(
        f"{found}; {len(faults):,} files or rows cannot be read: {listed}{ignored}",
        "Correct them, or let the night go on without them; with --strict it stops.",
    )


def check_vocabulary(case: Case) -> Finding:
    """Check that the tokenizer knows the memories' words."""
    from ..data.shipped_sets import MOST_UNKNOWN, unknown_share
    from ..data.vocabulary import find_unread

    shares = {m.id: unknown_share(case.inputs.tokenizer, [m.text]) for m in case.inputs.memories}
    unknown = {name: share for name, share in shares.items() if share > MOST_UNKNOWN}
    remedy = "Take a model that was trained on this language, or leave these memories out."
    if not unknown:
        if reason := find_unread(case.inputs.tokenizer, [m.text for m in case.inputs.memories]):
            return warning(reason, remedy)
        return ok(f"the tokenizer knows the words of {counted(len(shares), 'memory')}")
    worst = max(unknown, key=lambda name: unknown[name])
    found = (
        f"{len(unknown)} of {len(shares)} memories have more than {MOST_UNKNOWN:.0%} tokens that the tokenizer does "
        f"not know, {worst!r} the most: {unknown[worst]:.0%}"
    )
    return (fault if unknown[worst] > UNREADABLE else warning)(found, remedy)


def check_engine(case: Case) -> Finding:
    """Report which engine the run will generate with, and why."""
    from ..rollout.choice import count_engines

    choice = case.inputs.engine
    pool = f"{count_engines(case.run.rollout)} x {choice.replica} under Ray"
    return ok(f"{pool if choice.engine == 'ray' else choice.engine}: {choice.reason}")


def check_rewards(case: Case) -> Finding:
    """Create the rewards that the run names."""
    if case.check_rewards is None:
        return skipped("not checked")
    if warnings := list(case.check_rewards(case.inputs)):
        return replace(from_error(" ".join(warnings)), state="warning")
    return ok(", ".join(reward.name for reward in case.run.rewards))


def check_plan(case: Case) -> Finding:
    """Run preflight, which checks everything together."""
    from ..planning.plan import NOT_CONVERTED

    plan = case.plan
    counts = {"memory": plan.memories, "sample": plan.samples, "step": plan.steps, "rollout": plan.rollouts}
    found = ", ".join(counted(number, noun) for noun, number in counts.items())
    found += "; samples and steps are estimates" if plan.about else ""
    return ok(found if plan.is_converted else f"{found}; the model: {NOT_CONVERTED}")


def check_prompts(case: Case) -> Finding:
    """Check that the memory is in the teacher's prompts and not in the student's."""
    from ..data.templates import Template

    if not case.inputs.memories:
        return skipped("the night removes entries and reads no memories")
    window = case.inputs.extent.reading[0].text
    for name in case.run.dataset.templates:
        respond = Template.load(name).respond
        student, teacher = (
            case.inputs.prompter(respond, context=c, request="x", source="x")[0] for c in (None, window)
        )
        if student == teacher:
            return fault(
                f"template {name}: teacher and student get the same prompt, so there is nothing to teach",
                "Write {{ context }} into the template where it is set.",
            )
    return ok(f"{', '.join(case.run.dataset.templates)}: only the teacher sees the memory")


def check_context(case: Case) -> Finding:
    """Check that the windows cover all memories, and that every prompt fits the context with its answer."""
    inputs = case.inputs
    if not inputs.memories:
        return skipped("the night removes entries and reads no memories")
    for memory, pieces in zip(inputs.memories, inputs.windows, strict=True):
        if not covers(memory.text, pieces):
            return fault(f"the windows of memory {memory.id!r} leave something out", "Change --dataset.window.")
    windows = [window for pieces in inputs.windows for window in pieces]
    longest = inputs.lengths.teacher_prompt(max(inputs.prompter.count_all(windows)))
    answer = inputs.lengths.answer
    sizes = f"prompts of at most {longest} and answers of at most {answer}"
    message = f"{counted(len(windows), 'window')} of at most {inputs.window} tokens; {sizes}"
    if longest + answer > inputs.context:
        return fault(f"{message} do not fit a context of {inputs.context}", "Lower --dataset.window.")
    return ok(f"{message} fit a context of {inputs.context}: nothing is truncated")


def covers(text: str, windows: Iterable[str]) -> bool:
    """Return whether windows, in order, contain all of a text except white space between them."""
    begin = end = 0
    for window in windows:
        latest = len(text) - len(text[end:].lstrip())  # the next window must begin here or before
        if (begin := text.rfind(window, begin, latest + len(window))) < 0:
            return False
        end = max(end, begin + len(window))
    return not text[end:].strip()


CHECKS: Mapping[str, Check] = {
    "folder": check_output_dir,
    "tokenizer": check_tokenizer,
    "chat template": check_chat_template,
    "engine": check_engine,
    "plan": check_plan,
    "rewards": check_rewards,  # tried on the memories, so these are checked first
    "memories": check_memories,
    "vocabulary": check_vocabulary,
    "teacher's prompts": check_prompts,
    "context": check_context,
    "memory": check_memory,
    "disk": check_disk,
}


# -- the smoke test, in another process --------------------------------------------------------------

SMOKE_TEST = "smoke test"
SMOKE_TEST_TIMEOUT = 300.0  # seconds, in addition to the time that a pool may take to start


def smoke_test(case: Case) -> Iterator[Finding]:
    """Run [`sleep_trl.doctor.smoke_test`] with one engine of the kind that the run would choose."""
    if case.config_error:
        yield replace(skipped("the options are not valid"), name=SMOKE_TEST)
        return
    try:
        options = _smoke_test_options(case)
    except ValueError as error:
        yield replace(from_error(str(error)), name=SMOKE_TEST)
        return
    rollout = options["rollout"]
    timeout = SMOKE_TEST_TIMEOUT + (rollout["start_timeout_s"] if rollout["engine"] == "ray" else 0.0)
    try:
        printed = run_python("-m", "sleep_trl.doctor.smoke_test", json.dumps(options), timeout=timeout)
    except ChildFailed as error:
        message = f"a tiny model cannot be trained with rollout.engine {rollout['engine']}: {error}"
        remedy = "Fix the faults above, or give --rollout.engine transformers."
        yield replace(fault(message, remedy), name=SMOKE_TEST)
        return
    for finding in json.loads(printed.splitlines()[-1]):
        yield Finding(**finding)


def _smoke_test_options(case: Case) -> dict[str, Any]:
    if case.config is None:
        return {"rollout": RolloutConfig().model_dump(), "memory": {}}
    chosen = {"engine": case.inputs.engine.engine, "inner_engine": case.inputs.engine.replica, "num_engines": 1}
    return {
        "rollout": case.config.rollout.model_copy(update=chosen).model_dump(),
        "memory": case.config.memory.model_dump(include={"routing", "top_k"}),
    }

"""The run itself, without its weights: each check is a part of preflight, or what preflight takes for granted."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable

from .case import Case
from .finding import Finding, fault, mistake, ok, skipped

CHAT = re.compile(r"(?i)(?:^|[-_./])(?:chat|instruct|it)(?:$|[-_./])")  # in names of models that answer in a dialogue


def read_options(case: Case) -> Finding:
    """Tell whether there is a run to look at."""
    if case.mistake:
        return mistake(case.mistake)
    return skipped("no run was given: --config FILE") if case.config is None else ok("they can be read")


def write_to_folder(case: Case) -> Finding:
    """Look whether the run may have its folder, and try to write where it will be."""
    from ..planning.output_dir import check_output

    check_output(case.run)
    folder = case.run.output_dir.absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return ok(f"{case.run.output_dir} can be written to")
    except OSError as error:
        return fault(f"output_dir: {place} cannot be written to: {error.strerror}", "Give another --output_dir.")


def load_tokenizer(case: Case) -> Finding:
    """Load the tokenizer."""
    return ok(f"{type(case.tokenizer).__name__} of {len(case.tokenizer):,} tokens")


def find_chat_template(case: Case) -> Finding:
    """Look for a chat template where model or options let one expect it."""
    if case.tokenizer.chat_template is not None:
        return ok("prompts are a user's messages")
    is_asked = "chat_template_kwargs" in case.run.model_fields_set and bool(case.run.chat_template_kwargs)
    if is_asked or CHAT.search(case.run.model):
        why = "chat_template_kwargs are given" if is_asked else "the model's name is a chat model's"
        return fault(
            f"{why}, but the tokenizer of {case.run.model!r} has no chat template, and prompts would be plain text",
            "Copy chat_template.jinja (or chat_template in tokenizer_config.json) from the original, or take the base "
            "model and leave out chat_template_kwargs.",
        )
    return ok("none: prompts are plain text")


def choose_engine(case: Case) -> Finding:
    """Tell what the run will generate with, and why."""
    choice = case.engine
    pool = f"{case.run.rollout.num_engines} x {choice.replica} under Ray"
    return ok(f"{pool if choice.engine == 'ray' else choice.engine}: {choice.reason}")


def make_rewards(case: Case) -> Finding:
    """Make the rewards that the run names."""
    if case.check_rewards is None:
        return skipped("not looked at")
    case.check_rewards(case.run)
    return ok(", ".join(reward.name for reward in case.run.rewards))


def make_plan(case: Case) -> Finding:
    """Let preflight look at everything together."""
    plan = case.plan
    return ok(f"{plan.memories} memories, {plan.samples:,} samples, {plan.steps:,} steps, {plan.rollouts:,} rollouts")


def compare_prompts(case: Case) -> Finding:
    """Make the prompts of teacher and student: the memory has to stand in one, and not in the other."""
    from ..data.templates import Template

    window = case.windows[0][0]
    for name in case.run.dataset.templates:
        respond = Template.load(name).respond
        hidden, shown = (case.prompter(respond, context=c, request="x", source="x")[0] for c in (None, window))
        if hidden == shown:
            return fault(
                f"template {name}: the teacher is asked what the student is asked, and has nothing to teach",
                "Write {{ context }} into the template, where it is given.",
            )
    return ok(f"{', '.join(case.run.dataset.templates)}: the memory is shown to the teacher alone")


def fit_memories(case: Case) -> Finding:
    """Look whether all text of all memories is read, and every prompt and answer fits the context."""
    from ..data.templates import Template

    config, plan = case.run, case.plan
    for memory, windows in zip(case.memories, case.windows, strict=True):
        if not covers(memory.text, windows):
            return fault(f"the windows of memory {memory.id!r} leave something out", "Give another --dataset.window.")
    window = max((window for windows in case.windows for window in windows), key=case.prompter.count_tokens)
    prompts = [
        case.prompter(template, context=window, request="x", source="x")[0]
        for loaded in map(Template.load, config.dataset.templates)
        for template in (loaded.respond, loaded.ask)
        if template is not None
    ]
    request = max(config.dataset.max_new_tokens, config.evaluation.max_new_tokens)
    answer = max(config.dataset.max_new_tokens, config.seeding.max_completion_length)
    longest = max(map(len, prompts)) + request
    sizes = f"prompts of at most {longest} and answers of {answer}"
    told = f"{plan.windows} windows of at most {plan.window} tokens; {sizes}"
    if longest + answer > plan.context:
        return fault(f"{told} do not fit a context of {plan.context}", "Give a smaller --dataset.window.")
    return ok(f"{told} fit a context of {plan.context}: nothing is truncated")


def covers(text: str, windows: Iterable[str]) -> bool:
    """Tell whether windows, in their order, hold all of a text but white space between them."""
    begin = end = 0
    for window in windows:
        latest = len(text) - len(text[end:].lstrip())  # where the next one has to begin, or before
        if (begin := text.rfind(window, begin, latest + len(window))) < 0:
            return False
        end = max(end, begin + len(window))
    return not text[end:].strip()

"""The column `privileged_context` of TRL's self-distillation trainers, as a teacher's prompt."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]


def compose_teacher_prompt(prompt: str | Messages, privileged_context: Any, template: str) -> str | Messages:
    """Put a privileged context into a prompt, with the result of TRL's `SDFTTrainer` for the same values.

    Args:
        prompt (`str` or `list[dict]`):
            What the student sees: text, or messages that end with the user's.
        privileged_context (`str` or `list[dict]`):
            What only the teacher sees. The contents of messages are joined by line breaks.
        template (`str`):
            Text with `{prompt}` and `{privileged_context}`; of messages it makes the last one.

    Returns:
        `str` or `list[dict]`: the teacher's prompt, in the form of `prompt`.

    Raises:
        `ValueError`: if the last message is not the user's.
    """
    context = _text_of(privileged_context)
    if isinstance(prompt, str):
        return template.format(prompt=prompt, privileged_context=context)
    *earlier, last = prompt
    if last.get("role") != "user":
        raise ValueError(
            f"With `privileged_context`, a conversation has to end with a message of the user; this one ends with the "
            f"role {last.get('role')!r}. Give `teacher_prompt` instead."
        )
    text = template.format(prompt=_content_of(last), privileged_context=context)
    return [*earlier, {"role": "user", "content": text}]


def with_teacher_prompt(row: dict[str, Any], template: str) -> dict[str, Any]:
    """Return a row with the teacher's prompt made from its privileged context, if it has one.

    Args:
        row (`dict`):
            A row of the dataset.
        template (`str`):
            See [`compose_teacher_prompt`].

    Raises:
        `ValueError`: if the row has a teacher's prompt as well, or no `prompt` as text or messages.
    """
    context = row.get("privileged_context")
    if context is None:
        return row
    if given := [name for name in ("teacher_prompt", "teacher_prompt_ids") if row.get(name) is not None]:
        raise ValueError(
            f"A row has both `privileged_context` and `{given[0]}`. Give one of them: the teacher's prompt is made "
            f"from the context, or it is `teacher_prompt`."
        )
    if row.get("prompt") is None:
        raise ValueError("A row with `privileged_context` needs `prompt` as text or messages, not as token ids.")
    return row | {"teacher_prompt": compose_teacher_prompt(row["prompt"], context, template)}


def _text_of(context: Any) -> str:
    if isinstance(context, list) and context and isinstance(context[0], dict):
        return "\n".join(filter(None, map(_content_of, context)))
    return str(context)


def _content_of(message: dict[str, Any]) -> str:
    content = message.get("content", "")
    if isinstance(content, list):  # of parts, such as text and images
        return " ".join(part.get("text", "") for part in content if part.get("type") == "text")
    return str(content)

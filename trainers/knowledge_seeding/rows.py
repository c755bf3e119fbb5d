"""The rows of the data set: which columns they need, and what may stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trl import GRPOConfig

from sleep_trl.data.parts import PARTS
from sleep_trl.rewards import GuardedReward
from sleep_trl.rewards.registry import FROM_TRL

from .config import KnowledgeSeedingConfig

Rows = list[dict[str, Any]]
NEEDED = {
    "prompt": ("prompt", "prompt_ids"),
    "teacher_prompt": ("teacher_prompt", "teacher_prompt_ids", "privileged_context"),
    "reference": ("reference", "reference_ids"),
}


def check_arguments(args: Any) -> None:
    """Raise `ValueError` unless these are the arguments of [`KnowledgeSeedingTrainer`]."""
    if isinstance(args, KnowledgeSeedingConfig):
        return
    what = "a GRPOConfig, which lacks alpha, lmbda and others" if type(args) is GRPOConfig else f"a {_kind(args)}"
    raise ValueError(
        f"args is {what}. KnowledgeSeedingTrainer takes a KnowledgeSeedingConfig: a GRPOConfig with the parameters of "
        f"Knowledge Seeding. Write KnowledgeSeedingConfig(...) with the same arguments; with alpha=0 it trains as GRPO "
        f"does."
    )


def check_data(data: Any, name: str, args: KnowledgeSeedingConfig, reward_funcs: Any) -> None:
    """Raise `ValueError`, naming all columns that a data set lacks. Of a stream without known columns, the first row is
    read.

    Args:
        data (`Dataset`, `IterableDataset`, a mapping of them, or `None`):
            The data set.
        name (`str`):
            What the trainer calls it.
        args (`KnowledgeSeedingConfig`):
            The arguments: with `alpha=0` there is no teacher.
        reward_funcs (`RewardFunc` or list of them):
            The rewards; those from [`sleep_trl.rewards`] say what they need.
    """
    if isinstance(data, Mapping):
        for key, each in data.items():
            check_data(each, f"{name}[{key!r}]", args, reward_funcs)
        return
    if data is None or not isinstance(data, Iterable):
        return  # TRL says what it takes
    columns = set(getattr(data, "column_names", None) or next(iter(data), {}))
    needed = NEEDED if args.alpha > 0 else {"prompt": NEEDED["prompt"]}
    missing = [" or ".join(f"`{way}`" for way in ways) for ways in needed.values() if columns.isdisjoint(ways)]
    known = {*FROM_TRL, *columns, *(given for given, ways in NEEDED.items() if not columns.isdisjoint(ways))}
    known |= {"reference_ids"} if "reference" in known else set()
    for reward in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        if isinstance(reward, GuardedReward):
            missing += [f"`{column}` (for the reward {reward.__name__!r})" for column in reward.missing(known)]
    if missing:
        raise ValueError(
            f"The rows of {name} lack {', '.join(dict.fromkeys(missing))}. They have: "
            f"{', '.join(sorted(columns)) or 'no columns'}. Add or rename columns, such as "
            f"`dataset.rename_column('question', 'prompt')`."
        )


def normalize(rows: Rows) -> Rows:
    """Give all rows the same keys and plain values: lists in place of tensors and arrays, text in place of messages'
    text parts, `part` `"memory"` where it is not given, and `stop` as a list.

    Raises:
        `ValueError`: if a part is unknown, or a `stop` holds something else than strings.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: _plain(row.get(name)) for name in names} for row in rows]
    if "part" in names:
        for row in rows:
            row["part"] = row["part"] or "memory"
            if row["part"] not in PARTS:
                raise ValueError(f"A row has the `part` {row['part']!r}; it must be one of {', '.join(PARTS)}.")
    if "stop" in names:
        for row in rows:
            stop = row["stop"] = [row["stop"]] if isinstance(row["stop"], str) else row["stop"] or []
            if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
                raise ValueError(f"A row has the `stop` {stop!r}; it must be a string or a list of strings, not empty.")
    return rows


def require(rows: Rows, name: str) -> None:
    """Raise `ValueError` if a row has no `name`, in any of the ways in which it may be given."""
    ways = NEEDED[name]
    if any(all(row.get(way) is None for way in ways) for row in rows):
        raise ValueError(
            f"A row has no {' or '.join(f'`{way}`' for way in ways)}, and each row needs one. Leave such rows out: "
            f"`dataset.filter(lambda row: row[{name!r}] is not None)`."
        )


def text_of_reference(reference: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a reference as text, also one that was given as messages.

    Raises:
        `ValueError`: if a message holds something else than text, such as an image.
    """
    if isinstance(reference, str):
        return reference
    contents = [message.get("content") or "" for message in reference]
    if not all(isinstance(content, str) for content in contents):
        raise ValueError(
            "A row's `reference` has content other than text, such as an image, and only text can be taught. Give "
            "text, or messages whose content is text."
        )
    return "".join(contents)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a tensor or an array, if the data set has a format
        value = value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "content" in value[0]:
        return [{**message, "content": _joined(message.get("content"))} for message in value]
    return value


def _joined(content: Any) -> Any:
    """Return the text of a message's content given as parts; content with other parts, such as images, as it is."""
    if not isinstance(content, list) or not all(part.get("type") == "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    return type(value).__name__

"""Judges by name: who decides whether two texts mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sleep_trl.rewards.guard import RewardError
from sleep_trl.rewards.params import check_params, check_required


class Judge(Protocol):
    """Decides for pairs of texts whether they mean the same: r_sem of Eq. 3, 0 or 1.

    A judge that needs a model loads it in a method `load()`, and there only. A method `check()`, if it has one, raises
    `ValueError` before a run is begun if the model cannot be read, and loads no weights.
    """

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None) -> list[float]:
        """Return 1.0 for each pair that means the same, else 0.0.

        Args:
            candidates (`list[str]`):
                The student's continuations.
            references (`list[str]`):
                The teacher's, in the same order.
            contexts (`list[str]`, *optional*):
                The text before both, in the same order, without which a part of a sentence may have
                no meaning.
        """
        ...


M = TypeVar("M", bound=Callable[..., Judge])

JUDGES: dict[str, Callable[..., Judge]] = {}
"""Registered name -> factory: a class or function that takes the parameters and gives the judge."""


def judge(name: str) -> Callable[[M], M]:
    """Register a factory of judges under a name; its signature is the signature of `params`.

    Raises:
        `ValueError`: if the name is taken.
    """

    def register(factory: M) -> M:
        if name in JUDGES:
            raise ValueError(f"A judge named {name!r} is registered already; choose another name.")
        JUDGES[name] = factory
        return factory

    return register


def make_judge(spec: Judge | str | Mapping[str, Any]) -> Judge:
    """Make a judge from its name, and load no model.

    Args:
        spec (`Judge`, `str` or `Mapping`):
            A name, `{"name": ..., "params": {...}}`, or a judge, which is returned as it is.

    Returns:
        `Judge`: the judge.

    Raises:
        `ValueError`: if there is no such judge, or a parameter is unknown, missing or out of range.
    """
    if callable(spec):
        return spec
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given or (unknown := given.keys() - {"name", "params"}):
        extra = "" if "name" not in given else f" (not {', '.join(sorted(unknown))})"
        raise ValueError(f"A judge is written as a name or as {{name: ..., params: ...}}{extra}.")
    name, params = given["name"], given.get("params") or {}
    if name not in JUDGES:
        raise ValueError(f"There is no judge {name!r}; registered: {', '.join(sorted(JUDGES))}.")
    check_params(JUDGES[name], params, f"Judge {name!r}")
    check_required(JUDGES[name], params, f"Judge {name!r}")
    return JUDGES[name](**params)


def whole_statements(texts: Sequence[str], contexts: Sequence[str] | None) -> list[str]:
    """Put each text behind its context."""
    if contexts is None:
        return list(texts)
    return [context + text for context, text in zip(contexts, texts, strict=True)]


def refuse_too_long(lengths: Sequence[int], limit: int | None, what: str) -> None:
    """Raise if a text is longer than the judge's model reads: nothing is cut off in silence.

    Args:
        lengths (`Sequence[int]`):
            Lengths in tokens.
        limit (`int`, *optional*):
            Tokens that the model reads; None: no limit.
        what (`str`):
            The judge, for the message.

    Raises:
        `RewardError`: with the first pair that is too long.
    """
    for index, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise RewardError(
                f"{what}: pair {index} has {length} tokens and the judge's model reads {limit}; "
                f"take a judge with a longer input or shorten the samples"
            )

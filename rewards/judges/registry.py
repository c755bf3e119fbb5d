"""Judges by name: models that decide whether two texts mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sleep_trl.rewards.factories import Factories


class Judge(Protocol):
    """Decides for pairs of texts whether they mean the same: r_sem of Eq. 3, 0 or 1.

    A judge that needs a model loads it in a method `load()` and nowhere else. An optional method `check()` raises
    `ValueError` before a run begins if the model cannot be read, and loads no weights.
    """

    def __call__(self, candidates: list[str], references: list[str], contexts: list[str] | None) -> list[float]:
        """Return 1.0 for each pair that means the same, else 0.0.

        Args:
            candidates (`list[str]`):
                The student's continuations.
            references (`list[str]`):
                The teacher's, in the same order.
            contexts (`list[str]`, *optional*):
                The text before both, in the same order, without which part of a sentence may have no meaning.
        """
        ...


JUDGES = Factories("judge")
judge = JUDGES.register


def make_judge(spec: Judge | str | Mapping[str, Any]) -> Judge:
    """Make a judge from its name, without loading a model.

    Args:
        spec (`Judge`, `str` or `Mapping`):
            A name, `{"name": ..., "params": {...}}`, or a judge, which is returned as it is.

    Raises:
        `ValueError`: if there is no such judge, or a parameter is unknown, missing or out of range.
    """
    if callable(spec):
        return spec
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in given or (unknown := given.keys() - {"name", "params"}):
        extra = "" if "name" not in given else f" (not {', '.join(sorted(unknown))})"
        raise ValueError(f"A judge is written as a name or as {{name: ..., params: ...}}{extra}.")
    made: Judge = JUDGES.make(given["name"], given.get("params") or {})
    return made


def check_judge(judge: Judge | None) -> None:
    """Raise `ValueError` if a judge's model cannot be read, as far as this shows without loading weights."""
    if (check := getattr(judge, "check", None)) is not None:
        check()


def load_judge(judge: Judge | None) -> None:
    """Load a judge's model, if it has one."""
    if (load := getattr(judge, "load", None)) is not None:
        load()

"""The results of a night: `results.json` and the table that is printed."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from accelerate import PartialState
from rich.table import Table

from ..config import RunConfig
from ..data.documents import MemoryText
from ..data.files import LeftOut
from ..evaluation.recalls import recalls
from ..evaluation.retention import AGREEMENT, OF_AGREEMENT
from ..memory import Memory
from .evaluate import MEASURES as SKILL_MEASURES

SHOWN_IDS = 20  # of memories that were not trained on
PACKAGES = ("sleep-trl", "torch", "transformers", "trl", "accelerate", "datasets", "vllm", "ray", "deepspeed")


def collect_results(
    config: RunConfig,
    memory: Memory,
    before: dict[str, Any],
    after: dict[str, Any],
    forgotten: Collection[str],
    written: dict[str, Any],
    history: list[dict[str, Any]],
    dreams: dict[str, Any] | None,
    committed: dict[str, Any],
    chain: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Collect the figures of a night as plain data, the content of `results.json`.

    `perplexity` is the exponential of `loss`, the mean negative log-likelihood of a token in nats; `left_out` says why
    a measure of the base skill was not taken, if one was not. `retention` is the recall of earlier entries, apart from
    those `forgotten`, which the night removed. `fold_difference` is `None` if the experts are routed;
    then `load` has the tokens by layer and expert, if the model itself answered. `dreams` is present if the night
    dreamed, and `rolled_back`, the reason, if it was rolled back. `questions` is how many `recall` was measured on;
    `teacher_questions` is the recall on the `count` questions that the teacher wrote about memories without questions
    and nobody trained on. For `capacity` see [`measure_capacity`]; `consolidations` are the entries that hold others.
    """
    earlier = {e: {"before": before["earlier"][e], "after": after["earlier"][e]} for e in before["earlier"]}
    has_probe = before["skill"] is not None and after["skill"] is not None
    results: dict[str, Any] = {
        "recall": {"before": before["recall"], "with_context": before["with_context"], "after": after["recall"]},
        "base_skill": {
            "before": before["skill"] if has_probe else before["agreement"],
            "after": after["skill"] if has_probe else after["agreement"],
            "measure": f"answers from context to {_probe(before, 'skill')}" if has_probe else AGREEMENT,
            "questions": before.get("skill_questions") if has_probe else None,
        },
        "perplexity": {
            "before": before.get("perplexity"),
            "after": after.get("perplexity"),
            "loss": {"before": _log(before.get("perplexity")), "after": _log(after.get("perplexity"))},
            "texts": _probe(before, "perplexity"),
        },
        "agreement": {"before": before["agreement"], "after": after["agreement"]},
        "retention": {entry: pair for entry, pair in earlier.items() if entry not in forgotten},
        "chain": chain,
        "parameters": memory.count_parameters(),
        "capacity": measure_capacity(memory),
        "consolidations": committed.get("consolidations", []),
        "dataset": {
            "samples": written["counts"],
            "dropped": written["dropped"],
            "coverage": written.get("coverage", {"sentences": 0, "covered": 0}),  # 0.1 did not count them
            "headings": written.get("headings", 0),
            "faithful": written.get("faithful", {"samples": 0, "faithful": 0}),
            "quoted": written.get("quoted", 0),
            "collisions": written["dropped"].get("collision", 0),
        },
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "entry": committed["entry"],
        "fold_difference": committed["fold_difference"],
        "history": history,
        "versions": {"python": platform.python_version(), **_versions()},
        "processes": PartialState().num_processes,
        "device": str(PartialState().device),
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
    }
    optional = {
        "forgotten": {entry: pair for entry, pair in earlier.items() if entry in forgotten} or None,
        "questions": before.get("questions") or None,
        "teacher_questions": _teacher_questions(before, after),
        "left_out": before.get("left_out") or None,
        "load": after.get("load"),
        "dreams": dreams,
        "rolled_back": committed.get("rolled_back"),
    }
    return results | {name: value for name, value in optional.items() if value is not None}


def _teacher_questions(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any] | None:
    """Return the recall on the questions that the teacher wrote and nobody trained on, if some were held out."""
    if not (asked := before.get("teacher_questions")):
        return None
    figures = {"before": asked["recall"], "with_context": asked["with_context"]}
    return {"count": asked["count"], **figures, "after": after["teacher_questions"]["recall"]}


def asked_about(memories: Sequence[MemoryText]) -> dict[str, Any]:
    """Return how many memories have questions, as part of `results.json`; nothing if all or none have.

    Returns:
        `dict`: with `asked_about`, if not all: the number of `memories` with questions, `of` how many.
    """
    count = sum(bool(memory.questions) for memory in memories)
    return {"asked_about": {"memories": count, "of": len(memories)}} if 0 < count < len(memories) else {}


def not_trained(memories: Sequence[MemoryText], queued: Sequence[str], unused: Sequence[str]) -> dict[str, Any]:
    """Return which memories a night did not learn, as part of `results.json`; nothing if it learned all.

    Args:
        memories (`Sequence[MemoryText]`): those that the night was to learn.
        queued (`Sequence[str]`): ids of those that do not fit its steps.
        unused (`Sequence[str]`): ids of the night's memories without a row, for want of usable samples.

    Returns:
        `dict`: with `not_trained`, if any: its `count`, `of` how many memories, how many are `queued` for another night
        because they do not fit the steps, and at most 20 `ids`.
    """
    if not (ids := [*queued, *unused]):
        return {}
    counts = {"count": len(ids), "of": len(memories) + len(queued), "queued": len(queued)}
    return {"not_trained": {**counts, "ids": ids[:SHOWN_IDS]}}


def not_read(left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return which documents of a night could not be read, as part of `results.json`; nothing if all could.

    Returns:
        `dict`: with `not_read`, if any: how many `faults`, the `reasons` of at most 20, and what was `ignored`, because
        by its name it is no document.
    """
    if not left_out:
        return {}
    reasons = [one.reason for one in left_out if one.is_fault]
    ignored = [one.reason for one in left_out if not one.is_fault]
    return {"not_read": {"faults": len(reasons), "reasons": reasons[:SHOWN_IDS], "ignored": ignored[:SHOWN_IDS]}}


def measure_capacity(memory: Memory) -> dict[str, Any]:
    """Return the number of slots (`max_experts`), of experts by level (`by_level`, fast to slow), and of slots taken by
    the levels' own blocks (`blocks`)."""
    blocks = memory.blocks.values()
    counts = Counter(record.level for index, record in memory.records.items() if index not in blocks)
    by_level = {str(level): counts[level] for level in sorted(counts)}
    return {"max_experts": memory.spec.max_experts, "by_level": by_level, "blocks": len(blocks)}


def render_results(results: dict[str, Any]) -> Table:
    """Return the final table of a night."""
    status = " (rolled back; the model is what it was before)" if "rolled_back" in results else ""
    table = Table(title=f"One night: {results['entry']}{status}", show_header=True, header_style="bold")
    table.add_column("")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    skill, parameters = results["base_skill"], results["parameters"]
    for entry, values in results.get("forgotten", {}).items():
        table.add_row(f"recall of {entry}, which was removed", _percent(values["before"]), _percent(values["after"]))
    for recall in () if "forgotten" in results else recalls(results):
        what = f" ({recall['count']} of the teacher's questions, not trained on)" if recall["is_teachers"] else ""
        table.add_row(f"recall without context{what}", _percent(recall["before"]), _percent(recall["after"]))
        table.add_row(f"recall with context{what}", _percent(recall["with_context"]), "")
    table.add_row(f"base skill ({skill['measure']})", _percent(skill["before"]), _percent(skill["after"]))
    if (perplexity := results.get("perplexity")) and perplexity["before"] is not None:
        values = (_number(perplexity[when]) for when in ("before", "after"))
        table.add_row(f"perplexity ({perplexity['texts']})", *values)
    if skill["measure"] != AGREEMENT and results["agreement"]["before"] is not None:
        agreement = results["agreement"]
        table.add_row(f"{AGREEMENT} ({OF_AGREEMENT})", _percent(agreement["before"]), _percent(agreement["after"]))
    for name in results.get("left_out", ()):
        table.add_row(SKILL_MEASURES[name], "not measured", "")  # why was said when it was left out
    for entry, values in results["retention"].items():
        table.add_row(f"recall of {entry}", _percent(values["before"]), _percent(values["after"]))
    for number, counts in enumerate(results.get("dreams", {}).get("rounds", ()), start=1):
        helped = f"{counts['rewarded']} of {counts['tried']}"
        table.add_row(f"dreams that helped, round {number} (of those tried)", "", helped)
    for entry in results["consolidations"]:
        table.add_row(f"{entry['entry']}, of level {entry['level']}, holds", "", ", ".join(entry["holds"]))
    if (coverage := results["dataset"].get("coverage")) and coverage["covered"]:
        covered = f"{coverage['covered']:,}"
        table.add_row(f"sentences with a usable sample, of {coverage['sentences']:,}", "", covered)
    faithful = results["dataset"].get("faithful") or {"samples": 0}
    if faithful["samples"]:
        table.add_row(f"answers in words of the text, of {faithful['samples']:,}", "", f"{faithful['faithful']:,}")
    if quoted := results["dataset"].get("quoted"):
        table.add_row("questions answered by the sentence they are about", "", f"{quoted:,}")
    if (unread := results.get("not_read")) and unread["faults"]:
        table.add_row("files or rows that could not be read (not_read in results.json)", "", f"{unread['faults']:,}")
    if left := results.get("not_trained"):
        table.add_row(f"documents trained on, of {left['of']:,}", "", f"{left['of'] - left['count']:,}")
        table.add_row("documents that stay queued", "", f"{left['queued']:,}")
    total = parameters["base"] + parameters["added"]
    table.add_section()
    capacity = results["capacity"]
    levels = ", ".join(f"{count} of level {level}" for level, count in capacity["by_level"].items()) or "none"
    table.add_row(f"experts, of at most {capacity['max_experts'] - capacity.get('blocks', 0)}", "", levels)
    table.add_row("parameters", f"{total - parameters['trainable']:,}", f"{total:,}")
    for phase, value in results["seconds"].items():
        table.add_row(f"seconds: {phase.replace('_', ' ')}", "", f"{value:.1f}")
    return table


def _probe(metrics: dict[str, Any], name: str) -> str:
    """Return what was measured, which an evaluation by version 0.1 did not name."""
    return str((metrics.get("probes") or {}).get(name, "the skill probe"))


def _log(value: float | None) -> float | None:
    return None if value is None else math.log(value)


def _percent(value: float | None) -> str:
    return "no questions" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions

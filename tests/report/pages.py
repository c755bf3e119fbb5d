"""The files a report is made from, and a parser of the page."""

import json
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = (
    "<script>window.pwned=1</script></script><img src=x onerror=window.pwned=2><a href='https://evil.example/'>x</a>"
    "\u202egpj.exe\u0007\ud800\u2028\"'`{{ 7 * 7 }}%{x}"
)


def make_results(**changes):
    """Return what `results.json` holds after a night of three steps, with changes."""
    steps = [
        {
            "loss": 1.0 / step,
            "reward": 0.2 * step,
            "rewards/imitation/mean": 0.1 * step,
            "rewards/short/mean": 0.3 * step,
            "rewards/imitation/std": 9.0,
            "divergence/memory/rollout": 1.5 / step,
            "divergence/memory/reference": 1.25 / step,
            "divergence/general/rollout": 0.01 * step,
            "step": step,
        }
        for step in (1, 2, 3)
    ]
    results = {
        "recall": {"before": 0.02, "with_context": 0.98, "after": 0.96},
        "base_skill": {"before": 0.987, "after": 0.986, "measure": "answers from context to 150 questions"},
        "retention": {"entry-001": {"before": 0.97, "after": 0.965}},
        "parameters": {"base": 200_000, "added": 50_000, "trainable": 10_000},
        "dataset": {
            "samples": {"memory": 1480, "general": 24, "earlier": 0},
            "dropped": {"duplicate": 114},
            "coverage": {"sentences": 360, "covered": 354},
        },
        "seconds": {"write_dataset": 30.5, "seed": 120.25, "total": 150.75},
        "entry": "entry-002",
        "history": [*steps, {"train_loss": 0.6, "train_runtime": 3.4, "step": 3}],
        "versions": {"python": "3.11.7", "vllm": None},
        "processes": 1,
        "device": "cpu",
        "seed": 42,
        "config": {"model": "tiny", "seeding": {"alpha": 0.7, "extra": {}}, "memory": {"width": 64}},
    }
    return results | changes


def make_sample(**changes):
    sample = {"part": "memory", "memory_id": "m1", "template": "summary", "prompt": "Sum up:", "reference": "A town."}
    return sample | changes


def make_entry(**changes):
    entry = {
        "id": "entry-002",
        "date": "2026-01-02T03:04:05+00:00",
        "expert": 1,
        "base": "",
        "level": 1,
        "fingerprint": "abc123" * 10,
        "parents": ["entry-001"],
        "sources": [{"id": f"m{i}", "source": f"page {i}", "sha256": "00"} for i in range(6)],
        "metrics": {"before": {"recall": 0.02}, "after": {"recall": 0.96}},
    }
    return entry | changes


def write_run(folder, results, samples=None, entries=None, **written):
    """Write a run's files, with `written` in the result of `write_dataset`. JSON in ASCII, so that any string can be in
    them."""
    (folder / "results.json").write_text(json.dumps(results))
    if samples is not None:
        (folder / "phases").mkdir()
        result = {"counts": {}, "dropped": {}, "samples": samples} | written
        (folder / "phases" / "write_dataset.json").write_text(json.dumps({"seconds": 1.0, "result": result}))
    if entries is not None:
        (folder / "ledger.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def make_chain(**changes):
    """Return `chain` of `results.json` after two nights, with changes; `nights` are the `entries`."""
    chain = {
        "entries": ["entry-001", "entry-002"],
        "nights": ["entry-001", "entry-002"],
        "left_out": [],
        "recall": [[0.9], [0.6, 1.0]],
        "base_skill": [1.0, 0.99, 0.98],
        "average": 0.8,
        "after_own_night": 0.95,
        "forgetting": 0.3,
        "backward_transfer": -0.3,
        "forward_transfer": None,
    }
    chain |= changes
    return {"nights": chain["entries"]} | chain | ({"nights": changes["entries"]} if "entries" in changes else {})


class Page(HTMLParser):
    """A page's elements with their attributes, its scripts, and its text outside them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    @property
    def plots(self):
        return {plot["id"]: plot for plot in json.loads(self.scripts[0])}
